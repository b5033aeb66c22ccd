"""Refusals, and tasks with one changed function or actuator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from env_helpers import CartBall
from torch import Tensor

from envs import Task
from saltus.errors import SaltusError


def refused(make: Callable[[], Any], *parts: str, error: type[Exception] = SaltusError) -> None:
    with pytest.raises(error) as caught:
        make()
    missing = [part for part in parts if part not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"


def variant(function: str, body: Callable[..., Any]) -> type[Task]:
    """CartBall with another function, which every check but those of its results accepts."""
    return type("Wrong", (CartBall,), {function: body})


HINGE = (
    '<mujoco><worldbody><body><joint name="j" range="-1 1"/><geom size=".1"/></body></worldbody>'
    "<actuator>{}</actuator></mujoco>"
)


class Hinge(Task):
    """A hinge whose actuators each test sets."""

    def observation(self, state: Any) -> Tensor:
        return state.qpos

    def reward(self, state: Any, action: Tensor, next_state: Any) -> Tensor:
        return next_state.qpos[:, 0]

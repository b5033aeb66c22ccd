"""Fields of a state, and refusals, for the tests of tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from saltus.errors import SaltusError

POSITION = ("xpos", "xquat", "xipos", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat", "ten_length", "cam_xpos")
VELOCITY = ("cvel", "actuator_velocity", "ten_velocity", "qfrc_bias")
ACCELERATION = ("qacc", "actuator_force", "qfrc_actuator", "cfrc_ext", "cacc")
FIELDS = ("qpos", "qvel", "ctrl", "actuator_length", "sensordata", "time", *POSITION, *VELOCITY, *ACCELERATION)


def assert_refused(make: Callable[[], Any], *parts: str, error: type[Exception] = SaltusError) -> None:
    """Assert that `make` raises `error` with a message that contains all of `parts`."""
    with pytest.raises(error) as caught:
        make()
    missing = [part for part in parts if part not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"

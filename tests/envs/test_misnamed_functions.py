"""Names that other libraries give to a task's functions are warned about, unless the task's file reads them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from env_helpers import CartBall

from envs import Task
from envs.task_class import ALIASES, check_class, uncalled_methods
from saltus.errors import warn_once


@pytest.fixture(autouse=True)
def warn_again() -> None:
    warn_once.cache_clear()


READ = {"is_done", "time_limit"}  # by Helped


def with_attribute(name: str) -> type[Task]:
    return type("Mine", (CartBall,), {name: lambda self, state: None})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *((name, ALIASES[name]) for name in sorted(ALIASES.keys() - READ)),
        ("observations", "observation"),
        ("rewards", "reward"),
        ("resets", "reset"),
    ],
)
def test_name_that_nothing_reads_is_warned_about(name: str, meant: str) -> None:
    """CartBall defines the true ones of many."""
    with pytest.warns(UserWarning, match=rf"saltus does not use Mine.{name}; did you mean {meant}\?"):
        check_class(with_attribute(name))


class Helped(CartBall):
    time_limit = 3.0

    def is_done(self, state: Any) -> torch.Tensor:
        return state.time > self.time_limit

    def terminated(self, state: Any) -> torch.Tensor:
        return self.is_done(state)

    def speed(self, state: Any) -> torch.Tensor:
        return state.qvel

    def _force(self, state: Any) -> torch.Tensor:
        return state.qfrc_applied


def test_names_that_the_task_reads_are_its_own() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_class(Helped)


def test_public_methods_of_a_state_that_nothing_calls_are_found() -> None:
    assert uncalled_methods(Helped) == ["speed"]

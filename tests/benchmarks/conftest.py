"""Threads of child processes, and commands without child processes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import checkout, recipes
from benchmarks.training import SALTUS
from pipeline import cli


class SerialExecutor:
    """Takes the place of ThreadPoolExecutor: runs jobs one after another in this thread."""

    def __init__(self, _max_workers: int) -> None:
        pass

    def __enter__(self) -> SerialExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, function: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[Any]:
        return map(function, jobs)


@pytest.fixture(autouse=True)
def one_thread_in_child_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spinning threads slow these short runs down tenfold if other processes want the cores."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run `saltus` commands in this process: starting one takes longer than its work."""

    def run(*command: str | int | Path, **_variables: str) -> int:
        assert command[: len(SALTUS)] == SALTUS
        name, *arguments = command[len(SALTUS) :]
        getattr(cli, str(name))([str(argument) for argument in arguments], Console(file=io.StringIO()))
        return 0

    monkeypatch.setattr(checkout, "run", run)
    monkeypatch.setattr(recipes, "ThreadPoolExecutor", SerialExecutor)

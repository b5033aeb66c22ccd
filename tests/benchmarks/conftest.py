"""Threads of child processes, and commands without child processes."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from fake_campaign import FAKE, Fake
from forked_saltus import ForkedSaltus, Zygote
from rich.console import Console

from benchmarks import checkout, cores, curves, training_run
from benchmarks.population import evaluation
from benchmarks.training_run import SALTUS, Lines
from pipeline import cli
from saltus.errors import SaltusError


class SerialExecutor:
    """Takes the place of an executor of threads or processes: runs jobs one after another in this thread."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> SerialExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], *job: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*job))
        return future

    def shutdown(self, cancel_futures: bool) -> None:
        pass


@pytest.fixture(autouse=True)
def one_thread_in_child_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spinning threads slow these short runs down tenfold if other processes want the cores."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run `saltus` commands in this process: starting one takes longer than its work."""

    def run(*command: str | int | Path) -> int:
        assert command[: len(SALTUS)] == SALTUS
        name, *arguments = command[len(SALTUS) :]
        try:
            getattr(cli, str(name))([str(argument) for argument in arguments], Console(file=io.StringIO()))
        except SaltusError:
            return 1
        return 0

    monkeypatch.setattr(checkout, "run", run)
    monkeypatch.setattr(cores, "ThreadPoolExecutor", SerialExecutor)


@pytest.fixture
def forked_runs(zygote: Zygote, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the processes of `training_run.run_for`, which then imports nothing."""

    def run_for(
        _limit: float | None, command: Sequence[str], _cache: Path | None, _grace: float = 0.0, prefix: str = ""
    ) -> tuple[int, float, Lines]:
        assert tuple(command[: len(SALTUS)]) == SALTUS
        start = time.monotonic()
        with ForkedSaltus(zygote, command[len(SALTUS) :]) as process:
            lines = [(time.monotonic() - start, line.rstrip()) for line in process.stdout]
            return process.wait(), time.monotonic() - start, lines

    monkeypatch.setattr(training_run, "run_for", run_for)


@pytest.fixture
def evaluations_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluate the policies of a population in this process."""
    monkeypatch.setattr(evaluation, "ProcessPoolExecutor", SerialExecutor)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.setattr(training_run, "SALTUS", FAKE)
    monkeypatch.setattr(training_run, "PEER_TRAINING", FAKE)
    monkeypatch.setattr(curves, "draw", lambda *_: None)
    monkeypatch.setenv("FAKE_FOLDER", str(tmp_path))
    return Fake(tmp_path)

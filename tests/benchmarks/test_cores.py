"""Runs at once: the cores that child processes see, and the end of child processes at an interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from threading import Event

import psutil
import pytest

from benchmarks.cores import THREADS, core_sets, run_pinned
from envs.physics.cpu import available_cores

CORES = sorted(os.sched_getaffinity(0))
needs_two = pytest.mark.skipif(len(CORES) < 2, reason="one core")


def test_sets_of_cores_are_disjoint(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [sorted(cores) for cores in core_sets()] == [CORES]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(16)})
    sets = core_sets(2)
    assert (len(sets), {len(cores) for cores in sets}) == (8, {2})
    assert sorted(core for cores in sets for core in cores) == [*range(16)]
    assert len(core_sets(3)) == 5, "the last core stays idle"


@pytest.mark.parametrize("size", [0, len(CORES) + 1])
def test_sets_of_no_cores_or_too_many_are_refused(size: int) -> None:
    with pytest.raises(SystemExit, match=f"--cores-per-run {size}: give 1 to {len(CORES)}, the cores that this"):
        core_sets(size)


@needs_two
def test_child_processes_see_their_own_cores_and_run_at_once() -> None:
    running = [Event(), Event()]

    def run(job: int) -> str:
        running[job].set()
        assert running[1 - job].wait(30), "one after another"
        command = [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    seen: list[str] = []
    run_pinned(run, [0, 1], core_sets(1)[:2], seen.append)
    assert sorted(seen) == sorted(str({core}) for core in CORES[:2])
    assert sorted(os.sched_getaffinity(0)) == CORES, "this thread is not pinned"


@pytest.mark.slow
@needs_two
def test_torch_and_physics_use_as_many_threads_as_a_run_has_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("MKL_NUM_THREADS", "7")

    def run(_job: int) -> str:
        command = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
        threads = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        return f"{threads} {available_cores()}"

    seen: list[str] = []
    for size in (1, 2):
        run_pinned(run, [0], core_sets(size), seen.append)
    assert seen == ["1 1", "2 2"]


def test_numbers_of_threads_in_the_environment_are_those_of_a_set_until_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)

    def run(_job: int) -> tuple[str, ...]:
        return tuple(os.environ[name] for name in THREADS)

    seen: list[tuple[str, ...]] = []
    for cores in (CORES[:1], CORES):
        run_pinned(run, [0], [tuple(cores)], seen.append)
    assert seen == [("1", "1"), (str(len(CORES)),) * 2]
    assert (os.environ["OMP_NUM_THREADS"], os.environ.get("MKL_NUM_THREADS")) == ("7", None)


def test_interruption_ends_child_processes_of_jobs_and_starts_no_other_job() -> None:
    started: list[str] = []

    def run(seconds: str) -> int:
        started.append(seconds)
        return subprocess.run(["sleep", seconds], check=False).returncode

    def interrupt(_code: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)  # at which the command ends as at Ctrl-C

    before = signal.getsignal(signal.SIGTERM)
    with subprocess.Popen(["sleep", "64"]) as other:
        with pytest.raises(KeyboardInterrupt):
            run_pinned(run, ["0.2", "61", "62", "63"], [tuple(CORES)] * 2, interrupt)
        left = [child.pid for child in psutil.Process().children() if child.name() == "sleep"]
        other.kill()
    assert left == [other.pid]
    assert other.returncode == -signal.SIGKILL
    assert "63" not in started
    assert signal.getsignal(signal.SIGTERM) is before

"""A run that was stopped, in whatever way and however often, ends with the numbers of one that never was."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline_helpers import differing, finish, read_csv, saltus, small_arguments

from pipeline import checkpoint

RUN: dict[str, Any] = {
    "num_envs": 8,
    "num_threads": 2,
    "total_env_steps": 2400,
    "learning_starts": 400,
    "utd_ratio": 0.125,
    "batch_size": 32,
    "log_every": 80,
    "eval_every": 1000,
    "checkpoint_every": 480,
}


def train(run_dir: Path) -> subprocess.Popen[str]:
    return saltus("train", "InvertedPendulum-v5", *small_arguments(**RUN), "--run-dir", run_dir)


def last_row(run_dir: Path) -> int:
    """The env steps of the last row of metrics.csv."""
    rows = read_csv(run_dir / "metrics.csv")
    return int(rows[-1]["env_steps"] or 0) if rows else 0


def wait_until(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, f"the run ended too early: {process.communicate()[0]}"
        assert time.monotonic() < deadline
        time.sleep(0.001)


def kill_when(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    wait_until(process, happened)
    process.kill()
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output


def numbers(run_dir: Path) -> dict[str, Any]:
    """All that a run computed, but for wall-clock times."""
    tables = {
        name: [
            {
                column: value
                for column, value in row.items()
                if column != "seconds" and not column.endswith("_per_second")
            }
            for row in read_csv(run_dir / name)
        ]
        for name in ("metrics.csv", "evaluations.csv")
    }
    last = checkpoint.find(run_dir / "checkpoints")[-1]
    state = checkpoint.load(last)["state"]
    del state["seconds"], state["logged"]["seconds"]
    return {**tables, "last checkpoint": last.name, "state": state}


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    run_dir = tmp_path_factory.mktemp("unstopped") / "run"
    finish(train(run_dir))
    return run_dir


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_numbers_of_one_that_never_was(
    unstopped: Path, tmp_path: Path
) -> None:
    expected = numbers(unstopped)
    assert [row["env_steps"] for row in expected["evaluations.csv"]] == ["1000", "2000", "2400"]
    assert len(expected["metrics.csv"]) == 30
    run_dir = tmp_path / "run"
    kill_when(train(run_dir), lambda: last_row(run_dir) >= 440)
    assert [path.name for path in checkpoint.find(run_dir / "checkpoints")] == ["000000000000.pt"]
    kill_when(saltus("resume", run_dir), lambda: last_row(run_dir) >= 1200)

    def writing() -> bool:
        steps = last_row(run_dir)
        return steps >= 2160 or (steps >= 1400 and any((run_dir / "checkpoints").glob("*.partial")))

    kill_when(saltus("resume", run_dir), writing)
    finish(saltus("resume", run_dir))
    assert differing(numbers(run_dir), expected) == []


@pytest.mark.slow
def test_a_run_killed_before_it_learns_starts_over_the_same(unstopped: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    kill_when(train(run_dir), lambda: bool(checkpoint.find(run_dir / "checkpoints")))
    assert last_row(run_dir) <= 400
    finish(saltus("resume", run_dir))
    assert differing(numbers(run_dir), numbers(unstopped)) == []


@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing(unstopped: Path) -> None:
    before = numbers(unstopped)
    assert "finished" in finish(saltus("resume", unstopped))
    assert differing(numbers(unstopped), before) == []


@pytest.mark.slow
def test_a_signal_saves_ends_well_and_resumes_the_same(tmp_path: Path) -> None:
    settings = {**RUN, "algorithm": "sac", "steps_per_round": 2, "policy_delay": 2, "seed": 3, "total_env_steps": 2000}
    reference, run_dir = tmp_path / "reference", tmp_path / "run"
    arguments = ["train", "Hopper-v5", *small_arguments(**settings), "--run-dir"]
    finish(saltus(*arguments, reference))
    process = saltus(*arguments, run_dir)
    for number, steps in ((signal.SIGTERM, 560), (signal.SIGINT, 1280)):
        wait_until(process, lambda steps=steps: last_row(run_dir) >= steps)
        process.send_signal(number)
        output = finish(process)
        assert f"stopped by {number.name} and saved: `saltus resume {run_dir}` continues" in " ".join(output.split())
        saved = int(checkpoint.find(run_dir / "checkpoints")[-1].stem)
        assert steps <= saved < 2000
        assert steps <= last_row(run_dir) <= saved
        process = saltus("resume", run_dir)
    finish(process)
    assert differing(numbers(run_dir), numbers(reference)) == []


@pytest.mark.slow
def test_a_compiled_run_killed_and_resumed_ends_the_same(tmp_path: Path) -> None:
    settings = {**RUN, "compile": True, "total_env_steps": 1200, "checkpoint_every": 320}
    arguments = ["train", "InvertedPendulum-v5", *small_arguments(**settings), "--run-dir"]
    reference, run_dir = tmp_path / "reference", tmp_path / "run"
    assert "torch.compile failed" not in finish(saltus(*arguments, reference))
    kill_when(saltus(*arguments, run_dir), lambda: last_row(run_dir) >= 720)
    finish(saltus("resume", run_dir))
    assert differing(numbers(run_dir), numbers(reference)) == []

"""A run that was stopped, in whatever way and however often, ends with the numbers of one that never was."""

from __future__ import annotations

import io
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_helpers import differing, finish, read_csv, saltus, small_arguments, small_config
from rich.console import Console

from pipeline import checkpoint
from pipeline.config import Config
from pipeline.logger import Logger
from pipeline.run import Run, create, open_run
from pipeline.train import train as train_loop

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


def sitting(config: Config, run_dir: Path, until: int) -> None:
    """Start a run, or continue it, in this process, and stop it after `until` env steps."""
    state = open_run(run_dir)[1]["state"] if run_dir.exists() else None
    if state is None:
        create(config, run_dir)
    torch.manual_seed(until)
    run = Run(config, run_dir, announce=lambda _: None)
    if state is not None:
        run.load_state_dict(state)
    with Logger(run_dir, config, run.env_steps, Console(file=io.StringIO())) as logger:
        train_loop(run, logger, lambda: run.env_steps >= until)


# The presets, with what they leave out spread over them.
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("InvertedPendulum-v5", "fast", {}),
    ("InvertedPendulum-v5", "fast on Humanoid-v5", {}),
    ("InvertedPendulum-v5", "sac", {}),
    ("InvertedPendulum-v5", "redq", {"n_step": 3}),
    ("InvertedPendulum-v5", "droq", {"noise_repeat": 8}),
    ("InvertedPendulum-v5", "crossq", {"steps_per_round": 3}),
    ("InvertedPendulum-v5", "xqc", {"n_step": 3, "normalize_observations": True}),
    ("InvertedPendulum-v5", "flashsac", {"num_atoms": 11}),
    ("Hopper-v5", "sac", {"n_step": 3, "normalize_observations": True, "noise_repeat": 16, "buffer_size": 70}),
    ("Hopper-v5", "crossq", {"steps_per_round": 3, "reward_scaling": "bounded", "eval_policy_averaging": 0.5}),
    ("Hopper-v5", "crossq", {"physics": "warp"}),
]


@pytest.mark.parametrize(("task", "preset", "options"), CASES)
@pytest.mark.filterwarnings("ignore:No target network updater")
def test_a_run_may_be_stopped_at_any_vector_step(
    tmp_path: Path, task: str, preset: str, options: dict[str, Any]
) -> None:
    settings = {"policy_delay": 2, "total_env_steps": 160, "log_every": 4, "eval_every": 60, **options}
    config = small_config(task, preset=preset, **settings)
    sitting(config, tmp_path / "reference", 160)
    for until in (4, 36, 40, 44, 48, 72, 76, 80, 100, 156, 160):
        sitting(config, tmp_path / "run", until)
    assert differing(numbers(tmp_path / "run"), numbers(tmp_path / "reference")) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:No target network updater", "ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings("error:torch.compile failed")
def test_a_compiled_run_may_be_stopped_too(tmp_path: Path) -> None:
    parts = {"n_step": 3, "normalize_observations": True, "noise_repeat": 8, "eval_policy_averaging": 0.5}
    settings = {"num_atoms": 11, "policy_delay": 2, "total_env_steps": 120, "log_every": 4, "eval_every": 60}
    config = small_config(preset="xqc", compile=True, **parts, **settings)
    sitting(config, tmp_path / "reference", 120)
    for until in (60, 120):
        sitting(config, tmp_path / "run", until)
    assert differing(numbers(tmp_path / "run"), numbers(tmp_path / "reference")) == []


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
    kill_when(saltus("resume", run_dir), lambda: last_row(run_dir) >= 1120)

    def writing() -> bool:
        steps = last_row(run_dir)
        return steps >= 1920 or (steps >= 1360 and any((run_dir / "checkpoints").glob("*.partial")))

    kill_when(saltus("resume", run_dir), writing)
    finish(saltus("resume", run_dir))
    assert differing(numbers(run_dir), expected) == []


@pytest.mark.slow
def test_a_run_killed_as_soon_as_it_has_begun_starts_over_the_same(unstopped: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    kill_when(train(run_dir), lambda: bool(checkpoint.find(run_dir / "checkpoints")))
    finish(saltus("resume", run_dir))
    assert differing(numbers(run_dir), numbers(unstopped)) == []


@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing(unstopped: Path) -> None:
    before = numbers(unstopped)
    assert "finished" in finish(saltus("resume", unstopped))
    assert differing(numbers(unstopped), before) == []


@pytest.mark.slow
def test_a_signal_saves_ends_well_and_resumes_the_same(tmp_path: Path) -> None:
    settings = {**RUN, "preset": "sac", "steps_per_round": 2, "policy_delay": 2, "seed": 3, "total_env_steps": 2000}
    reference, run_dir = tmp_path / "reference", tmp_path / "run"
    arguments = ["train", "Hopper-v5", *small_arguments(**settings), "--run-dir"]
    finish(saltus(*arguments, reference))
    process = saltus(*arguments, run_dir)
    for number, steps in ((signal.SIGTERM, 560), (signal.SIGINT, 1120)):
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
    settings = {**RUN, "compile": True, "total_env_steps": 4800}
    arguments = ["train", "InvertedPendulum-v5", *small_arguments(**settings), "--run-dir"]
    reference, run_dir = tmp_path / "reference", tmp_path / "run"
    assert "torch.compile failed" not in finish(saltus(*arguments, reference))
    kill_when(saltus(*arguments, run_dir), lambda: last_row(run_dir) >= 720)
    finish(saltus("resume", run_dir))
    assert differing(numbers(run_dir), numbers(reference)) == []

"""Resume: a run that was stopped or killed ends with the numbers of one that was not, bit for bit on the CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_saltus import ROOT, ForkedSaltus, Zygote
from pipeline_helpers import differing, read_csv, small_arguments, small_config, train_here
from run_helpers import continue_run, quiet_console, train_run

from pipeline import checkpoint, cli
from pipeline import config as config_module
from pipeline.config import Config
from pipeline.run import Run
from pipeline.stored_run import open_run

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
SEEK = f"{Path(__file__).parents[2]}/examples/seek.py:Seek"  # with privileged and noisy observations
RUN: dict[str, Any] = {
    "num_envs": 8,
    "num_threads": 2,
    "total_env_steps": 2400,
    "learning_starts": 400,
    "utd_ratio": 0.0625,
    "steps_per_round": 2,
    "batch_size": 32,
    "log_every": 80,
    "eval_every": 1000,
    "checkpoint_every": 480,
}


def start(zygote: Zygote, run_dir: Path, task: str = "InvertedPendulum-v5", **settings: Any) -> ForkedSaltus:
    """Start ``saltus train`` in a new process, with one thread as in this one."""
    return ForkedSaltus(zygote, ["train", task, *small_arguments(**{**RUN, **settings}), "--run-dir", run_dir])


def last_row(run_dir: Path) -> int:
    """The env steps of the last row of metrics.csv."""
    rows = read_csv(run_dir / "metrics.csv")
    return int(rows[-1]["env_steps"] or 0) if rows else 0


def kill_when(process: ForkedSaltus | subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, f"the run ended too early: {process.communicate()[0]}"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output


def numbers(run_dir: Path) -> dict[str, Any]:
    """Everything that a run computed, except wall-clock times."""
    tables = {
        name: [
            {
                column: value
                for column, value in row.items()
                if column != "seconds" and not column.endswith("_per_second")
            }
            for row in read_csv(run_dir / name)
        ]
        for name in ("metrics.csv", "evaluations.csv", "evaluation_episodes.csv")
    }
    last = checkpoint.find(run_dir / "checkpoints")[-1]
    state = checkpoint.load(last)["state"]
    del state["seconds"], state["logged"]["seconds"]
    return {**tables, "last checkpoint": last.name, "state": state}


def session(config: Config, run_dir: Path, until: int) -> None:
    """Start a run, or resume it, in this process, and stop it after `until` env steps."""
    torch.manual_seed(until)  # a resumed run must not depend on the process' random state
    if not run_dir.exists():
        train_run(config, run_dir, until)
        return
    run = Run(config, run_dir)
    run.load_state_dict(open_run(run_dir)[1]["state"])
    continue_run(run, until)


# Before and at the first update (44), between actor updates, between rows, checkpoints and evaluations, before the end.
STOPS = (4, 40, 44, 48, 76, 100, 156, 160)
FEW = (44, 100, 160)  # the first update, within the run, its end
# Every preset, with the settings that no preset has spread over them.
CASES: list[tuple[str, str, dict[str, Any], tuple[int, ...]]] = [
    ("InvertedPendulum-v5", "fast", {}, STOPS),
    ("InvertedPendulum-v5", "sac", {}, FEW),
    ("InvertedPendulum-v5", "sac-v1", {"n_step": 3, "reward_scaling": "std"}, FEW),
    ("InvertedPendulum-v5", "redq", {"n_step": 3}, FEW),
    ("InvertedPendulum-v5", "droq", {"noise_repeat": 8}, FEW),
    ("InvertedPendulum-v5", "crossq", {"steps_per_round": 3}, STOPS),
    ("InvertedPendulum-v5", "xqc", {"n_step": 3, "normalize_observations": True}, FEW),
    ("InvertedPendulum-v5", "flashsac", {"num_atoms": 11}, FEW),
    (
        SEEK,
        "fast",
        {"n_step": 3, "normalize_observations": True, "task_options": {"max_episode_steps": 9}},
        (48, 100, 160),
    ),
    ("Hopper-v5", "sac", {"n_step": 3, "normalize_observations": True, "noise_repeat": 16, "buffer_size": 70}, STOPS),
    ("Hopper-v5", "crossq", {"steps_per_round": 3, "reward_scaling": "bounded", "eval_policy_averaging": 0.5}, FEW),
    (
        "Hopper-v5",
        "crossq",
        {"physics": "warp", "max_contacts": 20, "max_constraints": 80, "total_env_steps": 100},
        (64, 160),
    ),
]


@pytest.mark.parametrize(("task", "preset", "options", "stops"), CASES)
def test_resume_continues_bit_for_bit(
    tmp_path: Path, task: str, preset: str, options: dict[str, Any], stops: tuple[int, ...]
) -> None:
    settings = {"policy_delay": 2, "total_env_steps": 160, "log_every": 4, "eval_every": 60, **options}
    config = small_config(task, preset=preset, **settings)
    session(config, tmp_path / "reference", 160)
    for until in stops:
        session(config, tmp_path / "run", until)
    assert differing(numbers(tmp_path / "run"), numbers(tmp_path / "reference")) == []


def test_resume_within_the_growth_of_the_discount_continues_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_module, "GROWTH", (60, 140))
    config = small_config(
        "Hopper-v5", preset="fast", total_env_steps=160, log_every=4, eval_every=60, steps_per_round=3
    )
    session(config, tmp_path / "reference", 160)
    for until in (76, 100, 120, 160):
        session(config, tmp_path / "run", until)
    found, expected = numbers(tmp_path / "run"), numbers(tmp_path / "reference")
    assert differing(found, expected) == []
    assert float(found["state"]["agent"]["loss"]["_value_estimator.gamma"]) == pytest.approx(0.995)


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    run_dir = tmp_path_factory.mktemp("unstopped") / "run"
    train_here(run_dir, **RUN)
    return run_dir


@pytest.mark.slow
def test_run_killed_in_another_process_does_not_depend_on_the_hash_seed(unstopped: Path, tmp_path: Path) -> None:
    """The other tests fork their processes, which share a hash seed."""
    run_dir = tmp_path / "run"
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-m", "saltus", "train", "InvertedPendulum-v5", *small_arguments(**RUN), "--run-dir", run_dir],
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    kill_when(process, lambda: bool(checkpoint.find(run_dir / "checkpoints")))
    cli.resume([str(run_dir)], quiet_console())
    assert differing(numbers(run_dir), numbers(unstopped)) == []


def test_resuming_a_finished_run_changes_nothing(unstopped: Path) -> None:
    before = numbers(unstopped)
    console = quiet_console()
    cli.resume([str(unstopped)], console)
    assert "finished" in console.file.getvalue()
    assert differing(numbers(unstopped), before) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "error:compilation failed")
def test_compiled_run_killed_and_resumed_ends_bit_for_bit_the_same(zygote: Zygote, tmp_path: Path) -> None:
    parts = {"n_step": 3, "normalize_observations": True, "noise_repeat": 8, "eval_policy_averaging": 0.5}
    settings = {"preset": "crossq", "compile": True, "policy_delay": 1, "total_env_steps": 4800, **parts}
    reference, run_dir = tmp_path / "reference", tmp_path / "run"
    train_here(reference, **{**RUN, **settings})
    kill_when(start(zygote, run_dir, **settings), lambda: last_row(run_dir) >= 720)
    assert 480 <= open_run(run_dir)[1]["state"]["env_steps"] < 4800
    cli.resume([str(run_dir)], quiet_console())
    assert differing(numbers(run_dir), numbers(reference)) == []

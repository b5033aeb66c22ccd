"""Commands of `saltus` on two ranks, for `rank_scenarios.py`."""

from __future__ import annotations

import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.launcher.api as torch_launcher
from pipeline_helpers import small_arguments
from tensordict import TensorDict
from torch import Tensor

from pipeline import cli, launch, torchrun
from pipeline.run import Run

TASK = "InvertedPendulum-v5"
TRAINING = {
    "total_env_steps": 240, "checkpoint_every": 80, "eval_every": 120, "log_every": 80, "eval_episodes": 3,
    "steps_per_round": 2, "utd_ratio": 0.125,
}  # fmt: skip


def trained(folder: Path) -> Any:
    """``saltus train``, to its end."""
    return _train(folder / "trained")


def stopped(folder: Path) -> Any:
    """The same, stopped by a signal to rank 1 alone."""
    if os.environ["RANK"] == "1":
        Run.step = _stop_at_128  # type: ignore[method-assign]
    return _train(folder / "stopped")


def _stop_at_128(run: Run, action: Tensor, step: Callable[[Run, Tensor], TensorDict] = Run.step) -> TensorDict:
    if run.env_steps == 128:
        os.kill(os.getpid(), signal.SIGTERM)
    return step(run, action)


def resumed(folder: Path) -> Any:
    """``saltus resume`` of the stopped run."""
    _command("resume", folder / "stopped")


def different(folder: Path) -> Any:
    """Ranks with different seeds."""
    return _train(folder / "different", seed=int(os.environ["RANK"]))


def hanging(folder: Path) -> Any:
    """Rank 1 hangs in a step."""
    step = Run.step

    def step_or_hang(run: Run, action: Tensor) -> TensorDict:
        if run.env_steps == 128 and run.ranks.rank == 1:
            time.sleep(60)
        return step(run, action)

    Run.step = step_or_hang  # type: ignore[method-assign]
    os.environ[launch.TIMEOUT] = "6"
    return _train(folder / "hanging")


def full_disk(folder: Path) -> Any:
    """The disk of rank 1 is full after the second checkpoint."""
    step = Run.step

    def step_and_fill(run: Run, action: Tensor) -> TensorDict:
        if run.env_steps == 128 and run.ranks.rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        return step(run, action)

    Run.step = step_and_fill  # type: ignore[method-assign]
    return _train(folder / "full_disk")


def grown(folder: Path) -> Any:
    """A run of one rank, resumed by two."""
    run_dir, size = folder / "grown", os.environ.pop("WORLD_SIZE")
    if os.environ["RANK"] == "0":
        step = Run.step
        Run.step = _stop_at_128  # type: ignore[method-assign]
        _train(run_dir)
        Run.step = step  # type: ignore[method-assign]
        (folder / "grown-stopped").touch()
    while not (folder / "grown-stopped").exists():
        time.sleep(0.05)
    os.environ["WORLD_SIZE"] = size
    _command("resume", run_dir)


def timed(folder: Path) -> Any:
    """A run whose length is a time, with fewer episodes than ranks."""
    arguments = small_arguments("fast", minutes=0.02, eval_every=10_000, eval_episodes=1)
    length = arguments.index("--total-env-steps")
    _command("train", TASK, *arguments[:length], *arguments[length + 2 :], "--run-dir", folder / "timed")


def diverged(folder: Path) -> Any:
    """The critics' loss of rank 1 is NaN after 128 env steps."""
    learn = Run.learn

    def learn_and_fail(run: Run, logger: Any) -> None:
        learn(run, logger)
        if run.env_steps >= 128 and run.ranks.rank == 1:
            run.metrics["critic_loss"] = torch.tensor(math.nan)

    Run.learn = learn_and_fail  # type: ignore[method-assign]
    _train(folder / "diverged")


def missing(folder: Path) -> Any:
    """Rank 1 never starts."""
    os.environ[launch.TIMEOUT] = "1"
    if os.environ["RANK"] == "0":
        _train(folder / "missing")


def killed(folder: Path) -> Any:
    """``torchrun --standalone --max-restarts 1 --nproc-per-node 2``, with forks; rank 1 is killed once."""
    os.mkdir(folder / "killed")
    os.chdir(folder / "killed")
    config = torch_launcher.LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=1, start_method="fork", run_id="killed",
        rdzv_backend="c10d", rdzv_endpoint="localhost:0",
    )  # fmt: skip
    torch_launcher.elastic_launch(config, _train_and_die_once)()


def _train_and_die_once() -> None:
    """``saltus train``, whose rank 1 is killed after 192 env steps of its first start."""
    step = Run.step

    def step_or_die(run: Run, action: Tensor) -> TensorDict:
        if run.env_steps == 192 and torchrun.rank() == 1 and torchrun.restarts() == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(run, action)

    Run.step = step_or_die  # type: ignore[method-assign]
    _command("train", TASK, *small_arguments("fast", **TRAINING, normalize_observations=True))


def _train(run_dir: Path, **overrides: Any) -> None:
    settings = {**TRAINING, "normalize_observations": True, **overrides}
    _command("train", TASK, *small_arguments("fast", **settings), "--run-dir", run_dir)


def _command(*arguments: object) -> None:
    sys.argv = ["saltus", *map(str, arguments)]
    cli.main()


WAITING = (hanging, missing)  # until a timeout, while the others run
COMMANDS = (trained, stopped, resumed, grown, timed, different, full_disk, diverged)
AGENTS = (killed,)

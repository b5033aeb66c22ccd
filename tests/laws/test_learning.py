"""Members of the SAC family solve small tasks: a table of presets, tasks and mean returns of ten episodes."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.logger import Logger
from pipeline.presets import preset as preset_config
from pipeline.run import Run
from pipeline.run_dir import create
from pipeline.train import train

# Small networks, high rates and some worlds at once: they learn in a fraction of the time that one world takes.
QUICK: dict[str, Any] = {
    "device": "cpu",
    "num_envs": 16,
    "utd_ratio": 0.25,
    "total_env_steps": 60_000,
    "learning_starts": 1000,
    "actor_hidden": (64, 64),
    "critic_hidden": (64, 64),
    "actor_lr": 1e-3,
    "critic_lr": 1e-3,
    "tau": 0.02,
    "eval_every": 4000,
    "log_every": 4000,
    "checkpoint_every": 10**6,
}
ROWS: list[tuple[str, str, float, dict[str, Any]]] = [
    ("sac", "InvertedPendulum-v5", 1000.0, {"alpha_lr": 1e-3, "alpha_init": 0.2}),
    ("sac-v1", "InvertedPendulum-v5", 1000.0, {}),
]


@pytest.mark.learning
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore:No target network updater")
@pytest.mark.parametrize(("preset", "task", "bar", "options"), ROWS, ids=[f"{row[0]}-{row[1]}" for row in ROWS])
def test_a_preset_solves_a_task(tmp_path: Path, preset: str, task: str, bar: float, options: dict[str, Any]) -> None:
    """The run stops as soon as an evaluation reaches the bar."""
    config = preset_config(preset, task, **{**QUICK, **options})
    run = Run(config, tmp_path)
    create(config, tmp_path, run.env.task.model)

    def best() -> float:
        return run.best.get("return_mean", -math.inf)

    with Logger(tmp_path, config, 0, Console(file=io.StringIO())) as logger:
        train(run, logger, lambda: best() >= bar)
    assert best() >= bar, f"the best evaluation after {run.env_steps:,} env steps"

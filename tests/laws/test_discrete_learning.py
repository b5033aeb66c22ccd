"""Discrete and continuous SAC solve Pendulum-v1, and discrete SAC solves InvertedPendulum-v5."""

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

QUICK: dict[str, Any] = {
    "device": "cpu",
    "num_envs": 4,
    "utd_ratio": 0.5,
    "total_env_steps": 30_000,
    "learning_starts": 1000,
    "actor_hidden": (64, 64),
    "critic_hidden": (64, 64),
    "actor_lr": 1e-3,
    "critic_lr": 1e-3,
    "tau": 0.02,
    "eval_every": 2000,
    "log_every": 2000,
    "checkpoint_every": 10**6,
}
ROWS: list[tuple[str, str, float, dict[str, Any]]] = [
    ("fast", "Pendulum-v1", -200.0, {"num_envs": 16}),
    ("sac", "Pendulum-v1", -200.0, {}),
    ("sac-discrete", "Pendulum-v1", -200.0, {}),
    ("sac-discrete", "Pendulum-v1", -200.0, {"discrete_update": "score"}),
    ("sac-discrete", "Pendulum-v1", -200.0, {"discrete_update": "soft-q"}),
    ("sac-discrete", "InvertedPendulum-v5", 1000.0, {"alpha_init": 0.2}),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore:No target network updater")
@pytest.mark.parametrize(
    ("preset", "task", "bar", "options"),
    ROWS,
    ids=[f"{preset}-{task}-{options.get('discrete_update', '')}" for preset, task, _, options in ROWS],
)
def test_a_preset_solves_a_task(tmp_path: Path, preset: str, task: str, bar: float, options: dict[str, Any]) -> None:
    """The run stops as soon as the mean return of ten episodes reaches the bar."""
    run = Run(preset_config(preset, task, **{**QUICK, **options}), tmp_path)
    create(run.config, tmp_path, run.env.task.model)

    def best() -> float:
        return run.best.get("return_mean", -math.inf)

    with Logger(tmp_path, run.config, 0, Console(file=io.StringIO())) as logger:
        train(run, logger, lambda: best() >= bar)
    assert best() >= bar, f"the best evaluation after {run.env_steps:,} env steps"

"""Members of the SAC family solve small tasks."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.logger import Logger
from pipeline.presets import preset as preset_config
from pipeline.run import Run
from pipeline.run_dir import create
from pipeline.train import train

ROOT = Path(__file__).parents[2]
# Small networks, high rates and several worlds at once: they learn in a fraction of the time that one world takes.
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
    "eval_every": 2000,
    "log_every": 2000,
    "checkpoint_every": 10**6,
}
MORE_UPDATES = {"num_envs": 4, "utd_ratio": 0.5}
# Tasks and mean returns of ten episodes.
BALANCE, SWING_UP = ("InvertedPendulum-v5", 1000.0), ("Pendulum-v1", -200.0)
CART_POLE, CENTRE = ("gym:CartPole-v1", 475.0), ("tests/laws/centre.py:make_env", -6.0)
ROWS: list[tuple[str, tuple[str, float], dict[str, Any]]] = [
    ("sac", BALANCE, {"alpha_lr": 1e-3, "alpha_init": 0.2}),
    ("sac-v1", BALANCE, {}),
    ("sac-discrete", BALANCE, {**MORE_UPDATES, "alpha_init": 0.2}),
    ("fast", SWING_UP, {"utd_ratio": 0.5}),
    ("sac", SWING_UP, MORE_UPDATES),
    ("sac-v1", SWING_UP, MORE_UPDATES),
    ("sac-discrete", SWING_UP, MORE_UPDATES),
    ("sac-discrete", SWING_UP, {**MORE_UPDATES, "discrete_update": "score"}),
    ("sac-discrete", SWING_UP, {**MORE_UPDATES, "discrete_update": "soft-q"}),
    ("sac-discrete", CART_POLE, {**MORE_UPDATES, "alpha_init": 0.2}),
    ("sac-discrete", CENTRE, {"policy": "factored", "compile": False, "alpha_init": 0.2}),
]


@pytest.mark.slow
@pytest.mark.learning
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore:No target network updater")
@pytest.mark.parametrize(
    ("preset", "goal", "options"),
    ROWS,
    ids=[f"{preset}-{task}-{options.get('discrete_update', '')}" for preset, (task, _), options in ROWS],
)
def test_a_preset_solves_a_task(tmp_path: Path, preset: str, goal: tuple[str, float], options: dict[str, Any]) -> None:
    """The run stops as soon as an evaluation reaches the bar."""
    task, bar = goal
    task = str(ROOT / task) if ".py:" in task else task
    config = replace(preset_config(preset, task), **{**QUICK, **options})
    run = Run(config, tmp_path)
    create(config, tmp_path, run.env.model)

    def best() -> float:
        return run.best.get("return_mean", -math.inf)

    with Logger(tmp_path, config, 0, Console(file=io.StringIO())) as logger:
        train(run, logger, lambda: best() >= bar)
    assert best() >= bar, f"the best evaluation after {run.env_steps:,} env steps"

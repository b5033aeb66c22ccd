"""Rows of a run, and the messages of its health after them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.config import Config
from pipeline.health.health import Health


def new_health(alpha_init: float = 1.0, **settings: Any) -> Health:
    """The health of a run with squared errors and without reward scaling, if the settings do not change them."""
    config = Config("Hopper-v5", **{"critic_loss": "mse", "reward_scaling": "none", **settings})
    return Health(config, 1000, target_entropy=-3.0, alpha_init=alpha_init)


def evaluation(
    env_steps: int, mean: float, length: float = 1000.0, noise: float = 10.0, episodes: int = 10
) -> dict[str, float]:
    """A row whose interval of the mean has a half width of `noise`."""
    spread = {"return_std": noise / 1.96 * episodes**0.5, "episodes": episodes}
    return {"env_steps": env_steps, "seconds": env_steps / 2_000, "return_mean": mean, "length_mean": length, **spread}


def metrics(env_steps: int, **values: float) -> dict[str, float]:
    usual = {
        "td_error": 5.0,
        "alpha": 0.1,
        "entropy": -3.0,
        "episode_return": 1000.0,
        "episode_length": 500.0,
        "clipped_targets": 0.1,
    }
    return {"env_steps": env_steps, "unstable": 0, "nonfinite": 0, **usual, **values}


def evaluate(returns: Iterable[float], health: Health | None = None, **values: Any) -> list[str]:
    """Messages of evaluations every 50,000 env steps."""
    health = health or new_health()
    rows = [evaluation(50_000 * number, mean, **values) for number, mean in enumerate(returns, start=1)]
    return [message for row in rows for message in health.evaluation(row)]


def train(rows: Iterable[dict[str, float]], health: Health | None = None) -> list[str]:
    """Messages of rows of metrics every 10,000 env steps."""
    health = health or new_health()
    numbered = (metrics(10_000 * number, **row) for number, row in enumerate(rows, start=1))
    return [message for row in numbered for message in health.metrics(row)]

"""The rows of a run's tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipeline.config import Config
from pipeline.evaluate import Evaluation


def metrics_row(
    config: Config, totals: Mapping[str, float], since: Mapping[str, float], metrics: Mapping[str, float]
) -> dict[str, Any]:
    """A row of metrics.csv.

    Args:
        config: the run's configuration.
        totals: env steps, gradient steps, seconds, and the worlds' statistics (see `envs.statistics`), since the start.
        since: the same since the last row.
        metrics: the metrics of the latest updates and the agent's settings, by name.
    """
    episodes = since["episodes"] or math.nan
    return {
        "env_steps": totals["env_steps"],
        "gradient_steps": totals["gradient_steps"],
        "utd_ratio": totals["gradient_steps"] / totals["env_steps"],
        "episodes": int(totals["episodes"]),
        "episode_return": since["episode_return"] / episodes,
        "episode_length": since["episode_length"] / episodes,
        **{name: int(totals[name]) for name in ("unstable", "nonfinite", "overflowed")},
        **{name: metrics.get(name, math.nan) for name in _agent_metrics(config)},
        **{name: value / since["steps"] for name, value in since.items() if name.startswith("reward_terms/")},
        "seconds": totals["seconds"],
        "env_steps_per_second": since["env_steps"] / since["seconds"],
        "gradient_steps_per_second": since["gradient_steps"] / since["seconds"],
    }


def evaluation_row(counters: Mapping[str, float], evaluation: Evaluation) -> dict[str, Any]:
    """A row of evaluations.csv.

    Args:
        counters: env steps, gradient steps and seconds since the start.
        evaluation: the returns and lengths of its episodes.
    """
    low, high = evaluation.interval or (math.nan, math.nan)
    return {
        "env_steps": counters["env_steps"],
        "gradient_steps": counters["gradient_steps"],
        "return_mean": evaluation.mean,
        "return_std": evaluation.std,
        "return_low": low,
        "return_high": high,
        "length_mean": sum(evaluation.lengths) / len(evaluation.lengths),
        "episodes": len(evaluation.returns),
        "seconds": counters["seconds"],
    }


def episode_rows(env_steps: int, evaluation: Evaluation) -> list[dict[str, float]]:
    """The rows of evaluation_episodes.csv: one for each episode, numbered from 0."""
    episodes = zip(evaluation.returns, evaluation.lengths, strict=True)
    return [
        {"env_steps": env_steps, "episode": number, "return": value, "length": length}
        for number, (value, length) in enumerate(episodes)
    ]


def _agent_metrics(config: Config) -> list[str]:
    """The metrics of a configuration's updates, and the settings that change."""
    metrics = {
        "critic_loss": True,
        "td_error": True,
        "q_mean": True,
        "target_mean": True,
        "clipped_targets": config.critic_loss == "categorical",
        "actor_loss": True,
        "alpha_loss": config.learns_temperature,
        "alpha": True,
        "entropy": True,
        "value_loss": config.value_network,
        "gamma": True,
        "actor_lr": not config.without_actor,
        "reward_divisor": config.reward_scaling != "none",
    }
    return [name for name, computed in metrics.items() if computed]

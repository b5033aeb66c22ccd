"""The objective of a sweep: the mean return of the last third of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean

from pipeline.config import Config

Row = Mapping[str, float]
JUDGED_FROM = 2 / 3  # share of a run's length


def score(rows: Sequence[Row], config: Config) -> float:
    """Mean return of the evaluations in the last third of a run, of its env steps or its minutes.

    The last evaluation alone is noisier, the best one rises with the number of evaluations and their noise, and the
    mean of all of them measures the start of learning too.

    Args:
        rows: those of evaluations.csv.
        config: the run's configuration.
    """
    return mean(row["return_mean"] for row in rows if _share(row, config) > JUDGED_FROM)


def is_complete(rows: Sequence[Row], config: Config) -> bool:
    """Whether the last evaluation is that of the run's end."""
    return bool(rows) and _share(rows[-1], config) >= 1


def _share(row: Row, config: Config) -> float:
    return config.progress(row["env_steps"], row["seconds"])


def steps_of_evaluations(rows: Sequence[Row], config: Config) -> dict[int, float]:
    """Mean returns by the multiples of ``eval_every`` at which all trials are evaluated, whatever their num_envs.

    The evaluation of a run's end is left out: there is nothing to prune.
    """
    found: dict[int, float] = {}
    for row in rows:
        step = int(row["env_steps"]) // config.eval_every * config.eval_every
        if _share(row, config) < 1 and step > 0:
            found.setdefault(step, row["return_mean"] if math.isfinite(row["return_mean"]) else -math.inf)
    return found

"""Statistics of learning curves over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

RESAMPLES = 10_000
FEWEST_SEEDS = 5  # percentiles of three seeds are the lowest and the highest, which hold the mean in 75% of cases
BAND_RESAMPLES = 2_000  # at each point of a curve

Points = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class InterquartileMean:
    """The mean of the middle half of the seeds, with a 95% interval.

    Attributes:
        value: a quarter of the seeds, rounded down, is left out at either end.
        low, high: percentiles over bootstrap samples of seeds; None with fewer than `FEWEST_SEEDS`.

    Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
    """

    value: float
    low: float | None
    high: float | None


def interquartile_mean(values: Sequence[float]) -> InterquartileMean | None:
    """The interquartile mean of one value per seed; None without values."""
    from scipy import stats

    if not values:
        return None
    value = float(stats.trim_mean(values, 0.25))
    if len(values) < FEWEST_SEEDS:
        return InterquartileMean(value, None, None)

    def statistic(samples: Sequence[float], axis: int) -> Sequence[float]:
        return stats.trim_mean(samples, 0.25, axis=axis)

    found = stats.bootstrap([values], statistic, n_resamples=RESAMPLES, method="percentile", rng=0)
    return InterquartileMean(value, *map(float, found.confidence_interval))


@dataclass(frozen=True)
class Band:
    """Interquartile means of several curves, with 95% intervals, over their common x values.

    Attributes:
        x: env steps or seconds: every evaluation of every seed, from the latest first to the earliest last evaluation,
            so that all seeds have data everywhere.
        value: the interquartile means.
        low, high: percentiles over bootstrap samples of seeds; None with fewer than `FEWEST_SEEDS`.
    """

    x: list[float]
    value: list[float]
    low: list[float] | None
    high: list[float] | None


def band(curves: Sequence[Points]) -> Band | None:
    """Interquartile means over seeds along curves, with pointwise bootstrap intervals.

    Between its evaluations a curve is linear. Nothing is extrapolated: the band ends where the first seed ends.

    Args:
        curves: x values, which increase, and returns of each seed; seeds without evaluations are left out.

    Returns:
        None if there is no x at which all seeds have data.
    """
    from scipy import stats

    known = [(np.asarray(x, float), np.asarray(y, float)) for x, y in curves if len(x)]
    if not known:
        return None
    start, end = max(x[0] for x, _ in known), min(x[-1] for x, _ in known)
    grid = np.unique(np.concatenate([x for x, _ in known]))
    grid = grid[(grid >= start) & (grid <= end)]
    if not len(grid):
        return None
    values = np.stack([np.interp(grid, x, y) for x, y in known])  # (seeds, points)
    means = stats.trim_mean(values, 0.25, axis=0)
    if len(known) < FEWEST_SEEDS:
        return Band(grid.tolist(), means.tolist(), None, None)

    def statistic(samples: np.ndarray, axis: int) -> np.ndarray:
        return stats.trim_mean(samples, 0.25, axis=axis)

    found = stats.bootstrap(
        [values], statistic, axis=0, n_resamples=BAND_RESAMPLES, batch=200, method="percentile", rng=0
    )
    interval = found.confidence_interval
    return Band(grid.tolist(), means.tolist(), interval.low.tolist(), interval.high.tolist())


def first_reached(returns: Sequence[float], threshold: float) -> int | None:
    """The index of the first return of at least `threshold`, or None."""
    return next((index for index, value in enumerate(returns) if value >= threshold), None)


def share_below(returns: Sequence[float], threshold: float, floor: float) -> tuple[int, int]:
    """Count the returns after the first of at least `threshold`: those below `floor`, and all."""
    first = first_reached(returns, threshold)
    later = [] if first is None else returns[first + 1 :]
    return sum(value < floor for value in later), len(later)


def median_time(times: Sequence[float | None]) -> float | None:
    """Median of times, of which None is later than any; None if the median is."""
    middle = median([math.inf if time is None else time for time in times])
    return None if math.isinf(middle) else middle


def worst_time(times: Sequence[float | None]) -> float | None:
    """The latest time; None if one of them is."""
    known = [time for time in times if time is not None]
    return max(known) if len(known) == len(times) else None

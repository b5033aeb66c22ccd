"""Statistics over seeds, against values computed by hand."""

from __future__ import annotations

import pytest

from benchmarks.statistics import (
    Band,
    InterquartileMean,
    band,
    first_reached,
    interquartile_mean,
    median_time,
    share_below,
    worst_time,
)

pytest.importorskip("scipy")


def test_interquartile_mean_is_that_of_the_middle_half() -> None:
    found = interquartile_mean([1000.0, 1.0, 2.0, 3.0, 4.0, -500.0, 5.0, 6.0])
    assert found is not None
    assert found.value == (2 + 3 + 4 + 5) / 4
    assert found.low is not None
    assert found.high is not None
    assert -500 <= found.low < found.value < found.high <= 1000
    ten = interquartile_mean([float(value**2) for value in range(10)])
    assert ten is not None
    assert ten.value == (4 + 9 + 16 + 25 + 36 + 49) / 6, "a quarter of ten seeds is rounded down"


def test_interval_is_that_of_all_bootstrap_samples() -> None:
    """Of 0, 0, 0, 0, 10 the inner three are 0 if at most one is 10 (74%), and 10 if at least four are (0.7%)."""
    assert interquartile_mean([0.0, 0.0, 0.0, 0.0, 10.0]) == InterquartileMean(0.0, 0.0, 20 / 3)
    assert interquartile_mean([3.0] * 5) == InterquartileMean(3.0, 3.0, 3.0)


def test_few_seeds_have_no_interval() -> None:
    assert interquartile_mean([0.0, 10.0, 20.0, 30.0]) == InterquartileMean(15.0, None, None)
    assert interquartile_mean([0.0, 10.0]) == InterquartileMean(5.0, None, None)
    assert interquartile_mean([]) is None


def test_interval_is_the_same_each_time() -> None:
    values = [float(value) for value in range(10)]
    assert interquartile_mean(values) == interquartile_mean(values)


def test_first_reached_is_the_first_return_of_at_least_the_threshold() -> None:
    assert first_reached([1.0, 3.0, 2.0, 4.0], 3.0) == 1
    assert first_reached([1.0, 2.0], 3.0) is None
    assert first_reached([], 3.0) is None


def test_share_below_counts_after_the_threshold_was_reached() -> None:
    returns = [0.0, 0.0, 3.0, 2.9, 2.0, 3.1]
    assert share_below(returns, threshold=3.0, floor=3.0) == (2, 3)
    assert share_below(returns, threshold=3.0, floor=2.5) == (1, 3)
    assert share_below(returns, threshold=3.0, floor=2.0) == (0, 3), "the floor itself is not below it"
    assert share_below(returns, threshold=3.1, floor=3.1) == (0, 0), "no evaluation came after it"
    assert share_below(returns, threshold=9.0, floor=3.0) == (0, 0)


def test_seed_that_did_not_reach_it_is_later_than_all_others() -> None:
    assert (median_time([1.0, 5.0, 3.0]), worst_time([1.0, 5.0, 3.0])) == (3.0, 5.0)
    assert (median_time([1.0, None, 3.0]), worst_time([1.0, None, 3.0])) == (3.0, None)
    assert median_time([1.0, None]) is None
    assert median_time([1.0, 2.0, 4.0, None]) == 3.0
    assert median_time([None, None]) is None


def test_band_is_the_interquartile_mean_at_every_evaluation() -> None:
    x = [100.0, 200.0]
    found = band([(x, [10.0 * seed, float(seed**2)]) for seed in range(8)])
    assert found is not None
    assert found.x == x
    assert found.value == [35.0, (4 + 9 + 16 + 25) / 4]
    assert found.low is not None
    assert found.high is not None
    assert all(low < value < high for low, value, high in zip(found.low, found.value, found.high, strict=True))


def test_band_has_all_seeds_at_every_point() -> None:
    """The second seed is evaluated first at 200 and the first seed last at 300: nothing outside is shown."""
    same = [([200.0, 300.0], [3.0, 3.0])] * 3
    found = band([([100.0, 300.0], [0.0, 2.0]), ([200.0, 250.0, 400.0], [3.0, 3.0, 9.0]), ([], []), *same])
    assert found is not None
    assert found.x == [200.0, 250.0, 300.0]
    assert found.value == pytest.approx([3.0, 3.0, 3.0]), "without 1, 1.5, 2 and 3, 3, 5"


def test_band_of_few_seeds_has_no_interval_and_none_of_seeds_that_share_nothing() -> None:
    assert band([([1.0, 2.0], [3.0, 4.0])] * 4) == Band([1.0, 2.0], [3.0, 4.0], None, None)
    assert band([([1.0, 2.0], [3.0, 4.0]), ([3.0], [5.0])]) is None
    assert band([([], [])]) is None
    assert band([]) is None

"""Tables of made-up runs, against values computed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks.training_run import Trained
from benchmarks.training_tables import (
    failures_table,
    returns_table,
    seeds_table,
    tables,
    time_table,
)

pytest.importorskip("scipy")


def made_up(seed: int, returns: Sequence[float] = (), mean: float | None = None, **changes: Any) -> Trained:
    """A run with evaluations every 100 env steps and 10 s; the best policy has a return of `mean`, the last one less 1.

    Args:
        seed: the run's seed.
        returns: mean returns of the evaluations.
        mean: the best policy's return; None: there was no policy to evaluate.
        **changes: other fields.
    """
    fields: dict[str, Any] = {
        "system": "saltus", "task": "Hopper-v5", "preset": None, "options": (), "seed": seed, "minutes": 1.0,
        "episodes": 3, "cores": 1, "at_once": 1, "code": "code", "machine": "machine", "exit_code": 0,
        "seconds": 60.0 + seed, "output": [], "best": None, "last": None,
        "curve": {
            "env_steps": [100.0 * n for n, _ in enumerate(returns, 1)],
            "wall_seconds": [10.0 * n for n, _ in enumerate(returns, 1)],
            "return": [*returns],
        },
    }  # fmt: skip
    if mean is not None:
        fields["best"] = {"mean": mean, "env_steps": 200, "interval_95": [mean - 2, mean + 1000]}
        fields["last"] = {"mean": mean - 1, "env_steps": 400, "interval_95": [mean - 3, mean + 1]}
    return Trained(**fields | changes)


# Against a threshold of 5: reached after 20 s, then 4 and 3; after 30 s, then 7; not at all.
THREE = [made_up(0, [0, 5, 4, 3], 6.0), made_up(1, [1, 2, 6, 7], 8.0), made_up(2, [0, 0, 0, 0], 1.0)]


@pytest.mark.parametrize(("floor", "share"), [(5.0, "66.7% (2 of 3)"), (3.5, "33.3% (1 of 3)"), (1.0, "0.0% (0 of 3)")])
def test_times_count_seeds_that_did_not_reach_it_as_the_latest(floor: float, share: str) -> None:
    (row,) = time_table("title", THREE, 5.0, floor).rows
    assert row == ["saltus", "2 of 3", 30.0, "not reached", 300.0, "not reached", share]


def test_times_are_those_of_each_system() -> None:
    runs = [
        made_up(0, [5.0], system="sbx"),
        *THREE,
        made_up(1, [0, 0, 5.0], system="sbx"),
        made_up(0, [4.9], preset="fast"),
    ]
    table = time_table("title", runs, 5.0, 4.0)
    assert table.title == "title: time to a mean return of 5"
    assert table.columns[-1] == "evaluations below 4 after it"
    assert table.rows == [
        ["sbx", "2 of 2", 20.0, 30.0, 200.0, 300.0, None],
        ["saltus", "2 of 3", 30.0, "not reached", 300.0, "not reached", "33.3% (1 of 3)"],
        ["saltus fast", "0 of 1", *["not reached"] * 4, None],
    ]


@pytest.mark.parametrize(
    ("returns", "mean", "interval", "worst"),
    [
        ([7.0], 7.0, None, 0),
        ([10.0, 0.0], 5.0, None, 1),
        ([100.0, 1.0, 3.0, -50.0], 2.0, None, 3),  # without the first and the last
        ([float(seed**2) for seed in range(10)], (4 + 9 + 16 + 25 + 36 + 49) / 6, ..., 0),  # without two of each
    ],
)
def test_interquartile_mean_and_worst_seed(returns: list[float], mean: float, interval: Any, worst: int) -> None:
    runs = [made_up(seed, mean=value) for seed, value in enumerate(returns)]
    best, last = returns_table("title", runs).rows
    evaluated = f"{len(returns)} of {len(returns)}"
    assert best[:4] == ["saltus", "best", evaluated, pytest.approx(mean)]
    assert last[:4] == ["saltus", "last", evaluated, pytest.approx(mean - 1)]
    assert best[5:] == [str(worst), returns[worst]]
    assert last[5:] == [str(worst), returns[worst] - 1]
    if interval is not ...:
        assert best[4] == interval
    else:
        low, high = (float(end) for end in str(best[4]).replace(",", "").split(" to "))
        assert min(returns) <= low < mean < high <= max(returns)


def test_seeds_without_a_policy_are_counted() -> None:
    best, last = returns_table("title", [made_up(0, mean=4.0), made_up(1)]).rows
    assert best == ["saltus", "best", "1 of 2", 4.0, None, "0", 4.0]
    assert last == ["saltus", "last", "1 of 2", 3.0, None, "0", 3.0]
    best, _ = returns_table("title", [made_up(1)]).rows
    assert best == ["saltus", "best", "0 of 1", "none", None, None, None]


def test_every_seed_has_a_row_and_each_system_its_medians() -> None:
    table = seeds_table("title", THREE, threshold=5.0, floor=3.5)
    assert table.columns[-3:] == ["below 3.5 after it", "env steps to 5", "s to 5"]
    assert {len(row) for row in table.rows} == {len(table.columns)}
    assert table.rows == [
        ["saltus", "0", 60.0, 0, 400, 6.0, 200, "4.00 to 1,006", 5.0, "3.00 to 7.00", "50.0% (1 of 2)", 200.0, 20.0],
        ["saltus", "1", 61.0, 0, 400, 8.0, 200, "6.00 to 1,008", 7.0, "5.00 to 9.00", "0.0% (0 of 1)", 300.0, 30.0],
        [
            "saltus",
            "2",
            62.0,
            0,
            400,
            1.0,
            200,
            "-1.00 to 1,001",
            0.0,
            "-2.00 to 2.00",
            None,
            "not reached",
            "not reached",
        ],
        ["saltus", "median", 61.0, None, None, 6.0, None, None, 5.0, None, None, *["2 of 3 reached it"] * 2],
    ]
    *_, medians = seeds_table("title", THREE[:2], threshold=5.0, floor=3.5).rows
    assert medians[-2:] == [250.0, 25.0]


def test_run_that_failed_has_a_row_without_a_policy() -> None:
    row, medians = seeds_table("title", [made_up(3, exit_code=1)]).rows
    assert row == ["saltus", "3", 63.0, 1, None, "none", None, None, "none", None]
    assert medians == ["saltus", "median", 63.0, *[None] * 7]


def test_floor_is_the_threshold_by_default() -> None:
    assert [table.title for table in tables("title", THREE)] == ["title", "title: returns over seeds"]
    assert tables("title", THREE, 5.0) == tables("title", THREE, 5.0, 5.0)
    assert tables("title", THREE, 5.0)[-1] == time_table("title", THREE, 5.0, 5.0)


def test_failures_have_their_last_line() -> None:
    output = ["begins", "ArithmeticError: bad"]
    runs = [THREE[0], made_up(1, exit_code=1, output=output, task="tasks.py:Mine"), made_up(2, exit_code=-9)]
    (table,) = failures_table(runs, {"sbx": "pip install sbx-rl"})
    assert table.rows == [
        ["Mine", "saltus", "1", "exit code 1: ArithmeticError: bad"],
        ["Hopper-v5", "saltus", "2", "exit code -9: no output"],
        [None, "sbx", None, "not installed: pip install sbx-rl"],
    ]
    assert failures_table(THREE, {}) == []

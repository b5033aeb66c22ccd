"""Tables of the experiments that led to the default recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.result import Result
from benchmarks.statistics import first_reached, share_below
from benchmarks.table import Cell, Table

# How far an evaluation may be from a column's step, as a share of it.
NEAR = {"env_steps": 0.05, "gradient_steps": 0.2}


def tables(found: Result) -> list[Table]:
    """A table for each task: the returns of every run, at some steps, the best and the last."""
    settings, title = found.settings, found.settings["question"]
    tasks = dict.fromkeys(row["task"] for row in found.measurements)
    return [
        _table(
            f"{title} {task}" if title.endswith("?") else f"{title}, {task}",
            [row for row in found.measurements if row["task"] == task],
            settings["levels"].get(task, ()), settings["levels_of"], settings["threshold"],
        )
        for task in tasks
    ]  # fmt: skip


def _table(
    title: str, rows: Sequence[Mapping[str, Any]], levels: Sequence[int], steps: str, threshold: float | None
) -> Table:
    averages = any("average" in row for row in rows)
    columns = [
        "run",
        "seed",
        *(["average"] if averages else []),
        *[f"at {level:,}" for level in levels],
        "best",
        "last",
    ]
    columns += [f"{steps.replace('_', ' ')} done"]
    training = any("training_return" in row["curve"] for row in rows)
    columns += ["training episodes, median of the last half"] if training else []
    if threshold is not None:
        columns += [f"{threshold:,} first after", f"below {threshold:,} since"]
    cells: list[list[Cell]] = []
    for row in rows:
        times, returns = row["curve"][steps], row["curve"]["return"]
        cell: list[Cell] = [row["label"], str(row["seed"]), *([row["average"]] if averages else [])]
        cell += [_at(times, returns, level, NEAR[steps]) for level in levels]
        cell += [_whole(max(returns)), _whole(returns[-1]), times[-1]]
        if training:
            cell.append(_whole(median(row["curve"]["training_return"][len(times) // 2 :])))
        if threshold is not None:
            first = first_reached(returns, threshold)
            below, later = share_below(returns, threshold, threshold)
            cell += ["not reached" if first is None else times[first], f"{below} of {later}" if later else None]
        cells.append(cell)
    return Table(title, columns, cells)


def _at(times: Sequence[float], returns: Sequence[float], level: int, near: float) -> Cell:
    """The return of the evaluation that is nearest to a number of steps; None if it is too far away."""
    nearest = min(range(len(times)), key=lambda index: abs(times[index] - level))
    return _whole(returns[nearest]) if abs(times[nearest] - level) <= near * level else None


def _whole(value: float) -> int:
    return round(value)

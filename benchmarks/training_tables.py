"""Tables of training runs: every seed, and statistics over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Literal

from benchmarks.statistics import first_reached, interquartile_mean, median_time, share_below, worst_time
from benchmarks.table import Cell, Table, span
from benchmarks.training_run import Trained, task_name

Which = Literal["best", "last"]


def by_system(trained: Sequence[Trained]) -> dict[str, list[Trained]]:
    """The runs of each system and preset."""
    systems: dict[str, list[Trained]] = {}
    for run in trained:
        systems.setdefault(run.label, []).append(run)
    return systems


def tables(
    title: str, trained: Sequence[Trained], threshold: float | None = None, floor: float | None = None
) -> list[Table]:
    """The tables of one task.

    Args:
        title: the start of the tables' titles.
        trained: the task's runs.
        threshold: a mean return to reach.
        floor: a mean return to stay above afterwards; None: the threshold.
    """
    if threshold is None:
        return [seeds_table(title, trained), returns_table(title, trained)]
    floor = threshold if floor is None else floor
    every_seed = seeds_table(title, trained, threshold, floor)
    return [every_seed, returns_table(title, trained), time_table(title, trained, threshold, floor)]


def seeds_table(title: str, trained: Sequence[Trained], threshold: float | None = None, floor: float = 0.0) -> Table:
    """One row per run, and the medians of each system over its seeds."""
    columns = ["system", "seed", "ended, s", "exit code", "env steps"]
    columns += ["best policy", "after env steps", "95% interval", "last policy", "95% interval"]
    if threshold is not None:
        columns += [f"below {floor:,g} after it", f"env steps to {threshold:,g}", f"s to {threshold:,g}"]
    rows: list[list[Cell]] = []
    for system, runs in by_system(trained).items():
        of_seeds = [_row(run) for run in runs]
        medians = _medians(system, runs)
        if threshold is not None:
            of_seeds = [row + _reached_cells(run, threshold, floor) for run, row in zip(runs, of_seeds, strict=True)]
            medians += [None, *(_median_reached(runs, threshold, name) for name in ("env_steps", "wall_seconds"))]
        rows += [*of_seeds, medians]
    return Table(title, columns, rows)


def _row(run: Trained) -> list[Cell]:
    cells: list[Cell] = [run.label, str(run.seed), run.seconds, run.exit_code]
    cells.append(run.last["env_steps"] if run.last is not None else None)
    if run.best is not None:
        cells += [run.best["mean"], run.best["env_steps"], _episodes_interval(run.best)]
    else:
        cells += ["none", None, None]
    return cells + (["none", None] if run.last is None else [run.last["mean"], _episodes_interval(run.last)])


def _medians(system: str, runs: Sequence[Trained]) -> list[Cell]:
    best, last = (_median_return([getattr(run, which) for run in runs]) for which in ("best", "last"))
    return [system, "median", median(run.seconds for run in runs), None, None, best, None, None, last, None]


def _reached_cells(run: Trained, threshold: float, floor: float) -> list[Cell]:
    """The share of evaluations below the floor after the threshold, and env steps and seconds to the threshold."""
    times = [_time_cell(_reached(run, threshold, name)) for name in ("env_steps", "wall_seconds")]
    return [_share([share_below(run.returns, threshold, floor)]), *times]


def _time_cell(when: float | None) -> Cell:
    return "not reached" if when is None else when


def _reached(run: Trained, threshold: float, column: str) -> float | None:
    """Seconds or env steps at the first evaluation with a mean return of at least `threshold`, or None."""
    first = first_reached(run.returns, threshold)
    return None if first is None else run.column(column)[first]


def times_to(runs: Sequence[Trained], threshold: float, column: str) -> list[float | None]:
    """Seconds or env steps at each run's first evaluation with a mean return of at least `threshold`."""
    return [_reached(run, threshold, column) for run in runs]


def _median_reached(runs: Sequence[Trained], threshold: float, column: str) -> Cell:
    times = times_to(runs, threshold, column)
    reached = [when for when in times if when is not None]
    return median(reached) if len(reached) == len(times) else f"{len(reached)} of {len(times)} reached it"


def _median_return(evaluations: Sequence[dict[str, Any] | None]) -> float | None:
    """Median of mean returns; None if one is missing."""
    returns = [found["mean"] for found in evaluations if found is not None]
    return median(returns) if len(returns) == len(evaluations) else None


def time_table(title: str, trained: Sequence[Trained], threshold: float, floor: float) -> Table:
    """Times to the threshold over the seeds of each system; a seed that did not reach it is later than all others."""
    columns = ["system", "reached it", "s, median", "s, worst", "env steps, median", "env steps, worst"]
    columns.append(f"evaluations below {floor:,g} after it")
    rows: list[list[Cell]] = []
    for system, runs in by_system(trained).items():
        seconds, steps = (times_to(runs, threshold, name) for name in ("wall_seconds", "env_steps"))
        count = sum(when is not None for when in seconds)
        times = [_time_cell(found(values)) for values in (seconds, steps) for found in (median_time, worst_time)]
        below = _share([share_below(run.returns, threshold, floor) for run in runs])
        rows.append([system, f"{count} of {len(runs)}", *times, below])
    return Table(f"{title}: time to a mean return of {threshold:,g}", columns, rows)


def _share(counts: Sequence[tuple[int, int]]) -> str | None:
    """A share of evaluations, pooled over seeds, and the counts; None without evaluations."""
    below, total = map(sum, zip(*counts, strict=True))
    return f"{below / total:.1%} ({below} of {total})" if total else None


def returns_table(title: str, trained: Sequence[Trained]) -> Table:
    """Interquartile means of the final evaluations over the seeds of each system, and the worst seed."""
    columns = ["system", "policy", "evaluated seeds", "interquartile mean", "95% interval", "worst seed", "its return"]
    rows: list[list[Cell]] = []
    for system, runs in by_system(trained).items():
        rows += [_returns_row(system, runs, which) for which in ("best", "last")]
    return Table(f"{title}: returns over seeds", columns, rows)


def _returns_row(system: str, runs: Sequence[Trained], which: Which) -> list[Cell]:
    found = {run.seed: getattr(run, which)["mean"] for run in runs if getattr(run, which) is not None}
    evaluated = f"{len(found)} of {len(runs)}"
    mean = interquartile_mean([*found.values()])
    if mean is None:
        return [system, which, evaluated, "none", None, None, None]
    interval = None if mean.low is None or mean.high is None else span(mean.low, mean.high)
    worst = min(found, key=lambda seed: found[seed])
    return [system, which, evaluated, mean.value, interval, str(worst), found[worst]]


def _episodes_interval(evaluation: dict[str, Any]) -> str | None:
    """The interval of an evaluation's mean, which a single episode lacks."""
    found = evaluation["interval_95"]
    return None if found is None else span(*found)


def failures_table(trained: Sequence[Trained], missing: Mapping[str, str]) -> list[Table]:
    """The runs that failed, and the systems that are not installed; no table if there are none.

    Args:
        trained: all runs.
        missing: commands that install systems, by name.
    """
    rows: list[list[Cell]] = [
        [
            task_name(run.task),
            run.label,
            str(run.seed),
            f"exit code {run.exit_code}: {run.output[-1] if run.output else 'no output'}",
        ]
        for run in trained
        if run.exit_code != 0
    ]
    rows += [[None, system, None, f"not installed: {command}"] for system, command in missing.items()]
    return [Table("Failed or not run", ["task", "system", "seed", "reason"], rows)] if rows else []

"""Two result files of one benchmark, case by case."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks import result, training
from benchmarks.installed import require_statistics
from benchmarks.result import Result
from benchmarks.statistics import InterquartileMean, interquartile_mean, median_time
from benchmarks.table import Cell, Table, show, span, text
from benchmarks.training_run import Trained, task_name
from benchmarks.training_tables import by_system, times_to
from pipeline.differences import differences
from saltus.errors import SaltusError

SLOWER, FASTER, SAME = "slower or worse", "faster or better", "within the noise"
NOISE = 0.03  # medians that differ by less are the same


def compare(a: Path, b: Path, /) -> None:
    """Compare two result files of the same benchmark; exit with code 1 if something is slower or worse in the second.

    Rates: a case counts as changed if the ranges of its turns do not overlap and the medians differ by more than 3%.
    Training: the final evaluations of a system count as changed if the 95% intervals of their interquartile means over
    the seeds do not overlap. Times to the threshold are shown, and do not count.

    Args:
        a: the result file to compare with.
        b: the newer result file.
    """
    try:
        first, second = result.read(a), result.read(b)
        table = comparison(first, second)
    except SaltusError as error:
        raise SystemExit(str(error)) from error
    if first.machine != second.machine or first.hardware != second.hardware:
        print(f"WARNING: the hardware differs: {first.hardware} and {second.hardware}. Rates and times depend on it.")
    for difference in differences(first.settings, second.settings):
        print(f"WARNING: the settings differ: {difference}")
    show([table], b)
    slower = [row[0] for row in table.rows if row[-1] == SLOWER]
    if slower:
        raise SystemExit(f"slower or worse: {'; '.join(map(str, slower))}")


def comparison(a: Result, b: Result) -> Table:
    """The table of two results.

    Raises:
        SaltusError: the benchmarks differ, cannot be compared, or share no case.
    """
    if a.benchmark != b.benchmark:
        raise SaltusError(f"{a.path} is a result of {a.benchmark}, and {b.path} of {b.benchmark}: name two of the same")
    if a.benchmark in ("environment", "update"):
        table = _rates(a, b)
    elif a.benchmark == "training":
        require_statistics()
        table = _training(a, b)
    else:
        raise SaltusError(f"results of {a.benchmark} cannot be compared: name two of environment, update or training")
    if not table.rows:
        raise SaltusError(f"{a.path} and {b.path} have no case in common")
    return table


def _rates(a: Result, b: Result) -> Table:
    of_b = {(row["task"], row["case"]): row.get("rates") for row in b.measurements}
    rows: list[list[Cell]] = []
    for row in a.measurements:
        before, after = row.get("rates"), of_b.get((row["task"], row["case"]), [])
        if before and after is None:
            rows.append([f"{row['task']}, {row['case']}", median(before), "failed or missing", None, None, SLOWER])
        elif before and after:
            ratio = median(after) / median(before)
            overlap = min(before) <= max(after) and min(after) <= max(before)
            same = overlap or abs(ratio - 1) <= NOISE
            verdict = SAME if same else SLOWER if ratio < 1 else FASTER
            extremes = span(min(after) / max(before), max(after) / min(before))
            rows.append([f"{row['task']}, {row['case']}", median(before), median(after), ratio, extremes, verdict])
    columns = ["case", "A, median", "B, median", "B ÷ A", "range over turns", "B is"]
    return Table(f"{a.benchmark}: A is {a.path.name}, B is {b.path.name}", columns, rows)


def _training(a: Result, b: Result) -> Table:
    groups = [_groups(one) for one in (a, b)]
    rows: list[list[Cell]] = []
    for key, (after, threshold) in groups[1].items():
        if key not in groups[0]:
            continue
        before = groups[0][key][0]
        shares = [sum(run.exit_code == 0 for run in runs) / len(runs) for runs in (before, after)]
        if shares[1] < shares[0]:
            rows.append([f"{key}: runs that did not fail", *(f"{share:.0%}" for share in shares), SLOWER])
        if threshold is not None:
            for unit, column in (("s", "wall_seconds"), ("env steps", "env_steps")):
                times = [median_time(times_to(runs, threshold, column)) for runs in (before, after)]
                cells = ["not reached" if when is None else round(when) for when in times]
                rows.append([f"{key}: {unit} to {threshold:,g}, median", *cells, None])
        for which in ("best", "last"):
            means = [_mean(runs, which) for runs in (before, after)]
            if means[0] is not None and means[1] is not None:
                verdict = _verdict(means[0], means[1])
                rows.append([f"{key}: {which} policy, interquartile mean", *map(_interval, means), verdict])
    columns = ["measurement", "A", "B", "B is"]
    return Table(f"training: A is {a.path.name}, B is {b.path.name}", columns, rows)


def _groups(found: Result) -> dict[str, tuple[Sequence[Trained], float | None]]:
    """The runs of each task and system, and the task's threshold."""
    return {
        f"{task_name(runs[0].task)}, {system}": (runs, threshold)
        for _, of_task, threshold, _ in training.by_task(found)
        for system, runs in by_system(of_task).items()
    }


def _mean(runs: Sequence[Trained], which: str) -> InterquartileMean | None:
    return interquartile_mean([found["mean"] for run in runs if (found := getattr(run, which)) is not None])


def _interval(mean: InterquartileMean | None) -> str:
    assert mean is not None
    interval = "" if mean.low is None or mean.high is None else f" ({span(mean.low, mean.high)})"
    return text(mean.value) + interval


def _verdict(before: InterquartileMean, after: InterquartileMean) -> str:
    if before.low is None or before.high is None or after.low is None or after.high is None:
        return "unknown: too few seeds"
    if after.high < before.low:
        return SLOWER
    return FASTER if after.low > before.high else SAME

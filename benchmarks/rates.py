"""Rates of cases: measured in turns into a result file, and compared in a table.

A measurement has the case's labels, its name as ``case`` and its ``rates``, one per turn, in units per second.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks import runner
from benchmarks.campaign import Campaign, Row, describe, failed, progress
from benchmarks.installed import install_command
from benchmarks.result import Result
from benchmarks.table import Cell, Table, span

PROGRESS_EVERY = 5.0  # seconds
Makers = Mapping[str, Callable[[], runner.Work]]


def jobs(groups: Mapping[str, Sequence[str]]) -> list[Row]:
    """The jobs of a campaign of rates: the cases of each task."""
    return [{"task": task, "case": case} for task, cases in groups.items() for case in cases]


def is_complete(row: Mapping[str, Any], repeats: int) -> bool:
    """Whether a case has all its turns."""
    return len(row.get("rates", ())) >= repeats


def measure(campaign: Campaign, task: str, makers: Makers, repeats: int, seconds: float, warmup_calls: int) -> None:
    """Measure the cases of a task that the campaign's file does not have, and write the file after each turn.

    A case that cannot be made, because a package is missing or for another reason, is reported in the file. The others
    are measured.

    Args:
        campaign: its jobs are from `jobs`.
        task: the task.
        makers: make the cases, by name.
        repeats, seconds, warmup_calls: as for `runner.measure`.
    """
    todo = {job["case"] for job in campaign.remaining if job["task"] == task}
    found = {case: dict(campaign.find({"task": task, "case": case})) for case in makers}
    for row in found.values():
        row.pop("error", None)

    def turn_done(case: str, rate: float | Exception) -> None:
        row = found[case]
        if isinstance(rate, Exception):
            traceback.print_exception(rate)
            row["error"] = describe(rate)
            campaign.say(f"{task}, {case} failed: {row['error']}", now=True)
        else:
            row.setdefault("rates", []).append(rate)
        campaign.put(row)
        campaign.say(describe_progress(campaign, repeats, seconds))

    cases: dict[str, runner.Work] = {}
    for case in [case for case in makers if case in todo]:
        try:
            cases[case] = makers[case]()
        except ModuleNotFoundError as error:
            found[case]["missing"] = install_command(error.name or str(error))
            campaign.put(found[case])
            campaign.say(f"{task}, {case} is not installed: {found[case]['missing']}", now=True)
        except Exception as error:
            turn_done(case, error)
    known = {case: len(row.get("rates", ())) for case, row in found.items()}
    runner.measure(cases, repeats, seconds, warmup_calls, known=known, turn_done=turn_done)


def describe_progress(campaign: Campaign, repeats: int, seconds: float) -> str:
    """The number of turns that are done, and the time that the others will take."""

    def turns(of: Iterable[Row]) -> int:
        return sum(len(campaign.find(job).get("rates", ())) for job in of)

    left = len(campaign.remaining) * repeats - turns(campaign.remaining)
    done, total = turns(campaign.jobs.values()), len(campaign.jobs) * repeats
    failures = sum(map(failed, campaign.rows))
    return progress(done, total, "turns", failures, left * seconds)


def by_task(found: Result) -> dict[str, list[Row]]:
    """The measurements of each task."""
    tasks: dict[str, list[Row]] = {}
    for row in found.measurements:
        tasks.setdefault(row["task"], []).append(row)
    return tasks


def comparison(
    title: str, rows: Sequence[Mapping[str, Any]], subject: str, targets: Mapping[str, float] | None = None
) -> Table:
    """The rates of cases, and the subject's rate as a multiple of each, as medians and ranges over the turns.

    Args:
        title: the table's title.
        rows: the measurements.
        subject: the case that the others are compared with.
        targets: the multiples that the subject should reach, by case.
    """
    rates: dict[str, list[float]] = {row["case"]: row.get("rates", []) for row in rows}
    columns = ["case", "median", "lowest to highest", f"{subject} ÷ case", "of single turns"]
    columns += ["target"] if targets else []
    cells = [
        [*_cells(row, rates.get(subject, []), row["case"] == subject, (targets or {}).get(row["case"]))] for row in rows
    ]
    return Table(title, columns, [row[: len(columns)] for row in cells])


def _cells(row: Mapping[str, Any], subject: Sequence[float], is_subject: bool, target: float | None) -> list[Cell]:
    rates = row.get("rates", [])
    if "missing" in row:
        return [row["case"], f"not installed: {row['missing']}", None, None, None, None]
    failure = f"failed: {row['error']}" if "error" in row else None
    if not rates:
        return [row["case"], failure or "not measured", None, None, None, None]
    cells: list[Cell] = [
        row["case"] + (f" ({failure})" if failure else ""),
        median(rates),
        span(min(rates), max(rates)),
    ]
    ratios = [] if is_subject else [mine / other for mine, other in zip(subject, rates, strict=False)]
    if not ratios:
        return [*cells, None, None, None]
    ratio = median(ratios)
    verdict = None if target is None else f"at least {target:.2f}, {'met' if ratio >= target else 'missed'}"
    return [*cells, ratio, span(min(ratios), max(ratios)), verdict]

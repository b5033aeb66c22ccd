"""The learning curves of result files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.curves import Panel
from benchmarks.result import Result
from benchmarks.statistics import Points
from benchmarks.training_run import present_names, task_name

AXES = {"wall_seconds": "wall-clock from process start, s", "env_steps": "env steps"}


@dataclass(frozen=True)
class LearningCurve:
    """The evaluations of one run.

    Attributes:
        task: the task's name.
        label: what the seeds of a group have in common: system and preset, recipe or variant.
        seed: the run's seed.
        columns: ``env_steps``, ``return``, and ``wall_seconds`` where they were measured.
    """

    task: str
    label: str
    seed: int
    columns: dict[str, list[float]]

    def points(self, axis: str) -> Points:
        """The returns over a column of `AXES`."""
        return self.columns[axis], self.columns["return"]


def curves_of(result: Result) -> list[LearningCurve]:
    """The learning curves over env steps that a result file holds; none in files of rates."""
    return [
        LearningCurve(task_name(row.get("task") or result.settings["task"]), _label(row), row["seed"], row["curve"])
        for row in result.measurements
        if isinstance(row.get("curve"), dict) and "env_steps" in row["curve"]
    ]


def _label(row: dict) -> str:
    for name in ("label", "recipe", "variant"):
        if name in row:
            average = row.get("average")  # of the policy that was evaluated: one run has several
            return (present_names(row[name]) or "the recipe itself") + (f", {average}" if average else "")
    return " ".join(filter(None, (row.get("system"), row.get("preset")))) or "saltus"


def grouped(curves: Sequence[LearningCurve]) -> dict[str, list[LearningCurve]]:
    """The curves of each label, in the order of the file."""
    groups: dict[str, list[LearningCurve]] = {}
    for curve in curves:
        groups.setdefault(curve.label, []).append(curve)
    return groups


def panel(title: str, curves: Sequence[LearningCurve], axis: str, threshold: float | None) -> Panel | None:
    """The returns of one task over one of `AXES`; None if no run has it."""
    known = [curve for curve in curves if axis in curve.columns]
    if not known:
        return None
    groups = {label: [curve.points(axis) for curve in group] for label, group in grouped(known).items()}
    return Panel(title, AXES[axis], groups, threshold)


def rows_of_panels(result: Result) -> list[list[Panel]]:
    """The picture of a result file: a row per task, over wall-clock time where it was measured, and over env steps."""
    curves = curves_of(result)
    rows = []
    for task in dict.fromkeys(curve.task for curve in curves):
        of_task = [curve for curve in curves if curve.task == task]
        found = [panel(task, of_task, axis, threshold(result, task)) for axis in AXES]
        rows.append([one for one in found if one is not None])
    return rows


def threshold(result: Result, task: str) -> float | None:
    """The return that a benchmark was to reach in a task; None if it named none."""
    found = result.settings.get("threshold")
    if not isinstance(found, list):  # of the only task
        return found
    tasks = [task_name(name) for name in result.settings.get("tasks", ())]
    values = found * len(tasks) if len(found) == 1 else found  # one is for all tasks
    return dict(zip(tasks, values, strict=False)).get(task)

"""The part of each task: learning curves with published marks, and tables over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from benchmarks import learning
from benchmarks.curves import Panel, label, look, plot, style
from benchmarks.learning import LearningCurve
from benchmarks.page import marks
from benchmarks.page.html import folded, heading, identifier, source, table
from benchmarks.page.svg import GRID, INK, MUTED, SERIES, VARIABLES, Chart
from benchmarks.published import Published
from benchmarks.result import Result
from benchmarks.table import Table

ORDER = ("Hopper-v5", "Humanoid-v5", "HalfCheetah-v5", "Walker2d-v5")  # then the others
KINDS = {"training": "system", "population": "variant", "recipes": "recipe", "search": "setting"}  # in this order
BORDERS = {"-": "solid", "--": "dashed", ":": "dotted"}
TOGETHER = 3  # groups of several seeds that share a chart
AXES = ("env_steps", "wall_seconds")


def names(results: Sequence[Result]) -> list[str]:
    """The tasks with learning curves."""
    found = {curve.task for result in results for curve in learning.curves_of(result)}
    return sorted(found, key=lambda task: (ORDER.index(task) if task in ORDER else len(ORDER), task))


def section(
    task: str,
    results: Sequence[Result],
    published: Sequence[Published],
    tables: Callable[[Result], Sequence[Table]],
) -> str:
    """The curves of a task in every result file, those of the most seeds first, and the published values.

    Args:
        task: the task's name.
        results: all result files.
        published: values of others, of all tasks.
        tables: the tables of a result file; those with the task in their titles are shown.
    """
    values = marks.of_task(published, task)
    files = [(result, [one for one in learning.curves_of(result) if one.task == task]) for result in results]
    files = [(result, curves) for result, curves in files if curves]
    files.sort(key=lambda file: ([*KINDS].index(file[0].benchmark), -_seeds(file[1]), file[0].date))
    parts = [heading(task, task)]
    for index, (result, curves) in enumerate(files):
        summary = f"{escape(_what(result, curves))} <span class=file>{escape(result.path.stem)}</span>"
        parts.append(folded(summary, _file(task, result, curves, values, tables(result)), index == 0))
    if values:
        count = f"{len(values)} value{'' if len(values) == 1 else 's'}"
        parts.append(folded(f"Published returns of {task.rpartition('-v')[0]}, {count}", published_table(values)))
    return f"<section>{''.join(parts)}</section>"


def _seeds(curves: Sequence[LearningCurve]) -> int:
    return max(len(group) for group in learning.grouped(curves).values())


def _what(result: Result, curves: Sequence[LearningCurve]) -> str:
    groups = learning.grouped(curves)
    count = f"{len(groups)} {KINDS[result.benchmark]}{'' if len(groups) == 1 else 's'}"
    seeds = sorted({len(group) for group in groups.values()})
    each = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else f"{seeds[0]} seed{'' if seeds == [1] else 's'}"
    return f"{result.benchmark.capitalize()}: {count}, {each}, {result.machine}, {result.date[:10]}"


def _file(
    task: str,
    result: Result,
    curves: Sequence[LearningCurve],
    values: Sequence[Published],
    tables: Sequence[Table],
) -> str:
    groups = learning.grouped(curves)
    name = identifier(f"{result.path.stem}-{task}")
    labels = {group: label(group, [one.points("env_steps") for one in of_group]) for group, of_group in groups.items()}
    target = learning.threshold(result, task)
    items = []
    if len(groups) > TOGETHER and min(map(len, groups.values())) > 2:  # their bands would hide each other
        charts = [
            _chart(f"{name}-{index}", learning.panel(labels[group], of_group, axis, target), axis, values, title=True)
            for index, (group, of_group) in enumerate(groups.items())
            for axis in AXES
        ]
    else:
        charts = [_chart(name, learning.panel(task, curves, axis, target), axis, values) for axis in AXES]
        for index, text in enumerate(labels.values()):
            color, line = look(index, SERIES)
            border = f"border-top:3px {BORDERS[line]} var(--{VARIABLES[color]})"
            items.append(f'<li><span class=line style="{border}"></span>{escape(text)}</li>')
    if target is not None:
        line = '<span class=line style="border-top:1px dashed var(--muted)"></span>'
        items.append(f"<li>{line}return to reach, {target:,g}</li>")
    items += [f"<li>{symbol}published: {escape(text)}</li>" for symbol, text in marks.legend(values)]
    shown = [table(one.columns, one.rows, one.title) for one in tables if task in one.title]
    legend = f"<ul class=legend>{''.join(items)}</ul>"
    return "".join([source(result), f"<div class=charts>{''.join(charts)}</div>", legend, *shown])


def _chart(name: str, panel: Panel | None, axis: str, values: Sequence[Published], title: bool = False) -> str:
    """A chart of one panel; nothing if no run has the axis."""
    ends = [x[-1] for seeds in panel.curves.values() for x, _ in seeds if len(x)] if panel is not None else []
    if panel is None or not ends:
        return ""
    chart = Chart(height=260, left=62)
    axes = chart.axes
    for index, seeds in enumerate(panel.curves.values()):
        plot(axes, seeds, *look(index, SERIES))
    if panel.threshold is not None:
        axes.axhline(panel.threshold, color=MUTED, linestyle="--", linewidth=0.9)
    axes.set(xlabel=panel.xlabel, ylabel="mean return of evaluations")
    style(axes, INK, GRID)
    marks.draw(chart, marks.place(values, axis, max(ends)), in_minutes=axis == "wall_seconds")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    caption = f"<figcaption>{escape(panel.title)}</figcaption>" if title else ""
    return f"<figure>{caption}{chart.svg(f'{name}-{axis}', f'{panel.title}: returns over {panel.xlabel}')}</figure>"


def published_table(values: Sequence[Published]) -> str:
    """A table of published values."""
    columns = ["system", "task", "value", "standard deviation", "env steps", "minutes", "hardware", "seeds", "source"]
    rows = [
        [
            one.system, one.task, round(one.value), None if one.deviation is None else round(one.deviation),
            None if one.env_steps is None else int(one.env_steps),
            None if one.seconds is None else f"{one.seconds / 60:.1f}", one.hardware, one.seeds, one.source,
        ]
        for one in sorted(values, key=lambda one: (one.system, one.env_steps or 0))
    ]  # fmt: skip
    return table(columns, rows)

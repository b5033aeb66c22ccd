"""Env steps/s and updates/s: ratios between systems with their spread, and rates on a GPU with published ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import median

from matplotlib.ticker import MaxNLocator

from benchmarks.page.html import Cell, folded, heading, identifier, source, table
from benchmarks.page.svg import GRID, INK, MUTED, PUBLISHED, SERIES, Chart
from benchmarks.published import Published, short
from benchmarks.result import Result
from benchmarks.table import Table

UNITS = {"environment": "env steps/s", "update": "updates/s"}
TITLES = {"environment": "Env steps per second", "update": "Updates per second"}


@dataclass(frozen=True)
class Spread:
    """The median, lowest and highest of a case's turns."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of the turns' values."""
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        places = 2 if self.median < 100 else 0
        return f"{self.low:,.{places}f} to {self.high:,.{places}f}"


def cases_of(result: Result) -> dict[str, dict[str, list[float]]]:
    """The rates of every turn, by task and case."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in result.measurements:
        if row.get("rates"):  # not of cases that failed
            found.setdefault(row["task"], {})[row["case"]] = row["rates"]
    return found


def ratios(cases: Mapping[str, Sequence[float]]) -> dict[str, Spread]:
    """The rate of the first case as a multiple of each other case's, over the turns that both have."""
    subject, *others = cases
    turns = {name: [*zip(cases[subject], cases[name], strict=False)] for name in others}  # a file may be unfinished
    return {name: Spread.of([mine / other for mine, other in both]) for name, both in turns.items() if both}


def section(benchmark: str, results: Sequence[Result], tables: Callable[[Result], Sequence[Table]]) -> str:
    """The comparisons of all files of a benchmark, that of the most systems first; `tables` makes those of a file."""
    files = [one for one in results if one.benchmark == benchmark]
    files.sort(key=lambda one: (len(one.measurements), one.date), reverse=True)
    if not files:
        return ""
    note = (
        f"A dot is the median over turns of the first system's {UNITS[benchmark]} divided by the other's in the same "
        "turn; the bar reaches from the lowest to the highest turn. Right of 1 the first system is faster."
    )
    parts = [_file(result, tables(result), opened=index == 0) for index, result in enumerate(files)]
    return f"<section>{heading(TITLES[benchmark], benchmark)}<p>{note}</p>{''.join(parts)}</section>"


def _file(result: Result, tables: Sequence[Table], opened: bool) -> str:
    comparisons = cases_of(result)
    if not comparisons:
        return ""
    charts = []
    for task, cases in comparisons.items():
        subject = next(iter(cases))
        title = f"{task}: {subject} ÷ other, {UNITS[result.benchmark]}"
        charts.append(_ratio_chart(f"{result.path.stem}-{task}", title, ratios(cases)))
    turns = len(next(iter(next(iter(comparisons.values())).values())))
    summary = f"{', '.join(comparisons)}, {turns} turns, {escape(result.machine)}, {result.date[:10]}"
    shown = "".join(table(one.columns, one.rows, one.title) for one in tables)
    content = f"{source(result)}<div class=charts>{''.join(charts)}</div>{shown}"
    return folded(f"{summary} <span class=file>{escape(result.path.stem)}</span>", content, opened)


def _ratio_chart(name: str, title: str, found: Mapping[str, Spread]) -> str:
    chart = Chart(height=70 + 24 * len(found))
    axes = chart.axes
    for place, (case, spread) in enumerate(found.items()):
        axes.hlines(place, spread.low, spread.high, color=SERIES[0], linewidth=4, alpha=0.35)
        (dot,) = axes.plot([spread.median], [place], "o", color=SERIES[0], markersize=6)
        dot.set_gid(chart.title(f"{case}: {spread.median:.2f} ({spread})"))
        axes.annotate(
            f"{spread.median:.2f}", (spread.median, place), (0, 5), "data", "offset points", ha="center", fontsize=10,
            color=INK,
        )  # fmt: skip
    axes.axvline(1, color=MUTED, linewidth=1)
    axes.set_yticks(range(len(found)), [*found])
    axes.set_ylim(len(found) - 0.4, -0.75)
    axes.set_xlim(0, 1.06 * max([1.0, *(spread.high for spread in found.values())]))
    frame(chart)
    return figure(chart, name, title)


def frame(chart: Chart) -> None:
    """The look of charts with a row per case."""
    axes = chart.axes
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.tick_params(colors=INK, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(INK)


def figure(chart: Chart, name: str, title: str) -> str:
    """A chart with its title as HTML."""
    return f"<figure><figcaption>{escape(title)}</figcaption>{chart.svg(identifier(name), title)}</figure>"


def gpu_section(results: Sequence[Result], published: Sequence[Published]) -> str:
    """Rates that were measured on a GPU, as bars, with published rates of the same kind between them."""
    bars = gpu_rates(results) + [
        Bar(one.metric, "" if one.task == "not stated" else one.task, one.system, Spread.of([one.value]), one)
        for one in published
        if one.metric != "return"
    ]
    ours = [bar for bar in bars if isinstance(bar.source, Result)]
    if not ours:
        return ""
    charts, tables = [], []
    for unit in dict.fromkeys(bar.unit for bar in ours):
        of_unit = [bar for bar in bars if bar.unit == unit]
        tables.append(_rate_table(unit, of_unit))
        for task in dict.fromkeys(bar.task for bar in of_unit):
            charts.append(_rate_chart(unit, task, [bar for bar in of_unit if bar.task == task]))
    files = {bar.source.path.stem: bar.source for bar in ours if isinstance(bar.source, Result)}
    note = (
        "Hatched bars are published, on the hardware that is named, and of another program: an end-to-end rate "
        "includes learning. Ours are of stepping with random actions, and of updates alone. A thin line reaches from "
        "the lowest to the highest turn."
    )
    return (
        f"<section>{heading('Rates on a GPU', 'gpu')}<p>{note}</p>{''.join(map(source, files.values()))}"
        f"<div class=charts>{''.join(charts)}</div>{''.join(tables)}</section>"
    )


@dataclass(frozen=True)
class Bar:
    """A rate, of our result file or published."""

    unit: str
    task: str
    name: str
    rate: Spread
    source: Result | Published

    @property
    def machine(self) -> str:
        """The machine of the rate."""
        return self.source.machine if isinstance(self.source, Result) else self.source.hardware


def gpu_rates(results: Sequence[Result]) -> list[Bar]:
    """The rates of env steps and updates in files of machines with a GPU."""
    found = []
    for result in results:
        for row in result.measurements if result.hardware.get("gpu") else ():
            if row.get("rates") and row.get("section") == "steps":
                title, _, unit = row["title"].rpartition(": ")
                task, _, worlds = title.partition(", ")
                found.append(Bar(unit, task, f"{row['case']}, {worlds}", Spread.of(row["rates"]), result))
            if row.get("rates") and row.get("section") == "updates":
                name = row.get("title") or f"saltus {row['preset']}{', combo kernels' if row['combo_kernels'] else ''}"
                found.append(Bar("updates/s", "", name, Spread.of(row["rates"]), result))
    return found


def _rate_chart(unit: str, task: str, bars: Sequence[Bar]) -> str:
    bars = sorted(bars, key=lambda bar: -bar.rate.median)
    chart = Chart(height=50 + 34 * len(bars))
    axes = chart.axes
    names = []
    for place, bar in enumerate(bars):
        ours = isinstance(bar.source, Result)
        (drawn,) = axes.barh([place], [bar.rate.median], height=0.5, color=SERIES[0])
        if not ours:
            drawn.set(facecolor="none", edgecolor=PUBLISHED, hatch="////")
        text = f"{bar.name}: {bar.rate.median:,.0f} {unit} ({bar.rate})" if ours else str(bar.source)
        drawn.set_gid(chart.title(text))
        if bar.rate.high > bar.rate.low:
            axes.plot([bar.rate.low, bar.rate.high], [place] * 2, "|-", color=INK, linewidth=1, markersize=7)
        axes.annotate(
            f"{bar.rate.median:,.0f}", (max(bar.rate.median, bar.rate.high), place), (4, 0), "data", "offset points",
            va="center", fontsize=10, color=INK,
        )  # fmt: skip
        names.append(bar.name if ours else f"{bar.name}\n(published, {bar.machine.removeprefix('NVIDIA ')})")
    axes.set_yticks(range(len(bars)), names, fontsize=10)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, 1.35 * max(bar.rate.high for bar in bars))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    frame(chart)
    return figure(chart, f"gpu-{unit}-{task}", f"{task}: {unit}" if task else unit)


def _rate_table(unit: str, bars: Sequence[Bar]) -> str:
    rows: list[list[Cell]] = []
    for bar in bars:
        ours = isinstance(bar.source, Result)
        name = bar.name if ours else f"{bar.name} (published)"
        rows.append([name, bar.task or "not stated", bar.rate.median, str(bar.rate) if ours else None, bar.machine])
    return table(["case", "task", unit, "lowest to highest turn", "machine"], rows)

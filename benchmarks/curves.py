"""Pictures of learning curves: every seed, and the interquartile mean over seeds."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image

from benchmarks.published import short
from benchmarks.statistics import Points, band

COLORS = ("#0072b2", "#c8500a", "#007a5a", "#a8458f", "#8a6d00", "#2f8fc4", "#5b5b5b")  # told apart by all eyes
LINES = ("-", "--", ":")
INK, GRID = "#333333", "#dddddd"
DIGEST = "Drawn data"  # the name of a picture's text that has the digest
DRAWING = "2"  # changes with the way in which data are drawn, so that older pictures are drawn anew


@dataclass(frozen=True)
class Panel:
    """One plot of mean returns of evaluations.

    Attributes:
        title, xlabel: the plot's title and the label of its x axis.
        curves: x values and returns of each seed, by the name of what the seeds have in common.
        threshold: a return to mark with a line.
    """

    title: str
    xlabel: str
    curves: Mapping[str, Sequence[Points]]
    threshold: float | None = None


def draw(path: Path, panels: Sequence[Sequence[Panel]]) -> None:
    """Write a PNG picture of rows of panels, opaque for pages of any color, with the data's digest in it."""
    rows, columns = len(panels), max(map(len, panels))
    with matplotlib.rc_context({"font.size": 11, "text.color": INK}):
        figure = Figure(figsize=(7 if columns == 1 else 5.5 * columns, 4 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey="row")
        handles: dict[str, Line2D] = {}
        for row, line in zip(grid, panels, strict=True):
            for axes, panel in zip(row, line, strict=False):
                handles |= _draw_panel(axes, panel)
                if axes is not row[0]:
                    axes.set_ylabel("")
            for axes in row[len(line) :]:
                axes.remove()
        across = 1 if max(map(len, handles)) > 40 else 3
        figure.set_figheight(4 * rows + 0.2 * math.ceil(len(handles) / across))
        figure.legend(handles=[*handles.values()], loc="outside lower center", ncols=across, frameon=False, fontsize=10)
        figure.savefig(path, dpi=110, facecolor="white", metadata={DIGEST: digest(panels), "Software": None})


def digest(panels: Sequence[Sequence[Panel]]) -> str:
    """A hash of all that `draw` draws."""
    data = json.dumps([DRAWING, [[asdict(panel) for panel in row] for row in panels]], sort_keys=True)
    return hashlib.sha256(data.encode()).hexdigest()[:16]


def drawn_digest(path: Path) -> str | None:
    """The digest of the data that a picture was drawn from; None if it has none."""
    with Image.open(path) as picture:
        return picture.info.get(DIGEST)


def _draw_panel(axes: Axes, panel: Panel) -> dict[str, Line2D]:
    """Draw one panel; return what its legend shows, by name."""
    handles = {}
    for index, (name, seeds) in enumerate(panel.curves.items()):
        color, line = look(index, COLORS)
        plot(axes, seeds, color, line)
        text = label(name, seeds)
        (handles[text],) = axes.plot([], [], line, color=color, linewidth=1.8, label=text)
    if panel.threshold is not None:
        text = f"return to reach in {panel.title}, {panel.threshold:,g}"
        handles[text] = axes.axhline(panel.threshold, color=INK, linestyle="--", linewidth=1, label=text)
    axes.set_title(panel.title, color=INK)
    axes.set(xlabel=panel.xlabel, ylabel="mean return of evaluations")
    style(axes, INK, GRID)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    return handles


def look(index: int, colors: Sequence[str]) -> tuple[str, str]:
    """The color and the line style of a group of seeds: after the last color, the first one dashed."""
    return colors[index % len(colors)], LINES[index // len(colors) % len(LINES)]


def label(name: str, seeds: Sequence[Points]) -> str:
    """A group's name and its number of seeds with evaluations."""
    count = sum(bool(len(x)) for x, _ in seeds)
    return f"{name}, {count} seed{'' if count == 1 else 's'}"


def plot(axes: Axes, seeds: Sequence[Points], color: str, line: str) -> None:
    """Plot every seed faintly, and over them their interquartile mean, with a 95% bootstrap interval of enough seeds.

    A curve of one point is a dot.
    """
    found = band(seeds)
    if len(seeds) > 1 or found is None:
        for x, y in seeds:
            axes.plot(x, y, _dot(x), color=color, alpha=0.8 if len(x) == 1 else 0.35, linewidth=0.8, markersize=5)
    if found is not None:
        axes.plot(found.x, found.value, _dot(found.x) or line, color=color, linewidth=1.8, markersize=5)
        if found.low is not None and found.high is not None:
            axes.fill_between(found.x, found.low, found.high, color=color, alpha=0.18, linewidth=0)


def _dot(x: Sequence[float]) -> str:
    return "o" if len(x) == 1 else ""


def style(axes: Axes, ink: str, grid: str) -> None:
    """An x axis from 0, short numbers, a light grid, and no frame at the top and right."""
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(lambda value, _: short(value) if axes.get_xlim()[1] >= 10_000 else f"{value:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.10g}")  # also of fractions
    axes.update_datalim([(0.0, 0.0)], updatey=False)  # for a margin at the right that is a share of the whole axis
    axes.autoscale_view(scaley=False)
    axes.set_xlim(left=0)
    axes.set_axisbelow(True)
    axes.grid(color=grid, linewidth=0.7)
    axes.tick_params(colors=ink, length=3)
    axes.xaxis.label.set_color(ink)
    axes.yaxis.label.set_color(ink)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(ink)

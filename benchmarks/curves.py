"""Learning curves of several runs in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Points = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Panel:
    """One plot of mean returns of evaluations.

    Attributes:
        title, xlabel: the plot's title and the label of its x axis.
        curves: pairs of x and y values, by name; curves of the same name share a color.
        threshold: a return to mark with a line.
    """

    title: str
    xlabel: str
    curves: Mapping[str, Sequence[Points]]
    threshold: float | None = None


def draw(path: Path, panels: Sequence[Sequence[Panel]]) -> None:
    """Write a picture of rows of panels."""
    rows, columns = len(panels), len(panels[0])
    figure = Figure(figsize=(8 if columns == 1 else 6 * columns, 4.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey="row")
    for row, line in zip(grid, panels, strict=True):
        for axes, panel in zip(row, line, strict=True):
            _draw_panel(axes, panel)
    figure.savefig(path, dpi=120)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for number, (name, lines) in enumerate(panel.curves.items()):
        for i, (x, y) in enumerate(lines):
            axes.plot(x, y, marker=".", color=f"C{number}", label=name if i == 0 else None)
    if panel.threshold is not None:
        axes.axhline(panel.threshold, color="0.4", linestyle="--", label=f"{panel.threshold:,g}")
    axes.set(title=panel.title, xlabel=panel.xlabel, ylabel="mean return of evaluations")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend()

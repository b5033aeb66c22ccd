"""Learning curves of several runs in one plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

Points = tuple[Sequence[float], Sequence[float]]


def draw(
    path: Path, title: str, xlabel: str, curves: Mapping[str, Sequence[Points]], threshold: float | None = None
) -> None:
    """Plot mean returns of evaluations; curves of the same name share a color.

    Args:
        path: the image file to write.
        title, xlabel: the plot's title and the label of its x axis.
        curves: pairs of x and y values, by name.
        threshold: a return to mark with a line.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, (name, lines) in enumerate(curves.items()):
        for i, (x, y) in enumerate(lines):
            axes.plot(x, y, marker=".", color=f"C{number}", label=name if i == 0 else None)
    if threshold is not None:
        axes.axhline(threshold, color="0.4", linestyle="--", label=f"{threshold:,g}")
    axes.set(title=title, xlabel=xlabel, ylabel="mean return of evaluations")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)

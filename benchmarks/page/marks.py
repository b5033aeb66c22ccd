"""Published returns as marks in charts of learning curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.page.svg import PAGE, PUBLISHED, Chart
from benchmarks.published import Published, short

FURTHEST = 2.0  # an axis ends at a mark of at most this multiple of the last evaluation; later marks are at its edge
SHAPES = {"mjlab PPO": "D", "WarpSAC, one world": "^"}  # systems that stand out; all others share a shape
OTHERS = "o"
SYMBOLS = {shape: f"<span class=symbol>{text}</span>" for shape, text in {"D": "◆", "^": "▲", OTHERS: "○"}.items()}
LINE = '<span class=line style="border-top:2px dotted var(--published)"></span>'

Axis = Callable[[Published], float | None]
AXES: dict[str, Axis] = {"env_steps": lambda one: one.env_steps, "wall_seconds": lambda one: one.seconds}


@dataclass(frozen=True)
class Marks:
    """The published returns of one task, as one axis shows them.

    Attributes:
        inside: those that the axis shows, with their x values.
        beyond: the first value of each system of which the axis shows none.
        levels: those without any x value, shown as lines.
        end: where the axis ends.
    """

    inside: list[tuple[float, Published]]
    beyond: list[tuple[float, Published]]
    levels: list[Published]
    end: float


def of_task(published: Sequence[Published], task: str) -> list[Published]:
    """The returns of a task, in all its versions."""
    name = task.rpartition("-v")[0]
    return [one for one in published if one.metric == "return" and one.task.rpartition("-v")[0] == name]


def place(values: Sequence[Published], axis: str, last: float) -> Marks:
    """Decide where an axis shows published returns.

    Args:
        values: the returns of one task.
        axis: one of `AXES`.
        last: the last x value of our curves.
    """
    known = sorted(((AXES[axis](one), one) for one in values), key=lambda pair: (pair[0] or 0.0, pair[1].system))
    placed = [(x, one) for x, one in known if x is not None]
    inside = [(x, one) for x, one in placed if x <= FURTHEST * last]
    shown = {one.system for _, one in inside}
    beyond = [(x, one) for x, one in reversed(placed) if one.system not in shown]
    first = {one.system: (x, one) for x, one in beyond}
    levels = [one for one in values if one.env_steps is None and one.seconds is None]
    end = max([last, *(x for x, _ in inside)])
    return Marks(inside, [*first.values()], levels, 1.04 * end)


def draw(chart: Chart, marks: Marks, in_minutes: bool) -> None:
    """Draw marks into a chart of returns: shapes, arrows at the edge for values beyond it, and lines."""
    axes = chart.axes
    axes.set_xlim(0, marks.end)
    points: dict[str, list[tuple[float, float, str]]] = {}
    for x, one in marks.inside:
        points.setdefault(SHAPES.get(one.system, OTHERS), []).append((x, one.value, str(one)))
    for x, one in marks.beyond:
        where = f"{x / 60:.3g} min" if in_minutes else f"{short(x)} env steps"
        text = f"{one}; beyond the axis"
        points.setdefault(SHAPES.get(one.system, OTHERS), []).append((marks.end, one.value, text))
        axes.annotate(
            f"{where} →", (marks.end, one.value), (-8, 0), "data", "offset points", ha="right", va="center",
            color=PUBLISHED, fontsize=10,
        )  # fmt: skip
    for shape, placed in points.items():
        xs, ys, texts = zip(*placed, strict=True)
        hollow = shape == OTHERS
        (drawn,) = axes.plot(
            xs, ys, shape, markersize=4.5 if hollow else 6.5, color=PUBLISHED, alpha=0.75 if hollow else 1.0,
            markerfacecolor="none" if hollow else PUBLISHED, markeredgecolor=PUBLISHED if hollow else PAGE,
            markeredgewidth=0.8, clip_on=False, zorder=4,
        )  # fmt: skip
        drawn.set_gid(chart.title(*texts))
    for one in marks.levels:
        line = axes.axhline(one.value, color=PUBLISHED, linewidth=1, linestyle=(0, (1, 2)))
        line.set_gid(chart.title(str(one)))


def legend(values: Sequence[Published]) -> list[tuple[str, str]]:
    """The symbols of a task's published returns as HTML, and what they stand for."""
    found = {}
    for one in values:
        version = one.task.rpartition("-")[2]
        line = one.env_steps is None and one.seconds is None
        if line or one.system in SHAPES:
            symbol = LINE if line else SYMBOLS[SHAPES[one.system]]
            text = f"{one.system}, {version}, {_seeds(one)}; hardware: {one.hardware}"
        else:
            count = len({other.system for other in values if other.system not in SHAPES and other.env_steps})
            symbol, text = SYMBOLS[OTHERS], f"{count} recipes of the SAC family, {version}; hardware: {one.hardware}"
        found[text] = symbol
    return [(symbol, text) for text, symbol in found.items()]


def _seeds(one: Published) -> str:
    return "seeds not stated" if one.seeds is None else f"{one.seeds} seed{'' if one.seeds == 1 else 's'}"

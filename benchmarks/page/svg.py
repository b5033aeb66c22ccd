"""Matplotlib's figures as SVG within HTML, with the page's colors and fonts."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 360  # units of a chart; on the page it is as wide as its column

# A figure is drawn in these colors, which its SVG names by variables of the page's style sheet, light or dark.
INK, MUTED, GRID, PUBLISHED, PAGE = "#0000a1", "#0000a2", "#0000a3", "#0000a4", "#0000a5"
SERIES = ("#0000b0", "#0000b1", "#0000b2", "#0000b3", "#0000b4", "#0000b5", "#0000b6")
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PUBLISHED: "published", PAGE: "page"} | {
    color: f"series-{index}" for index, color in enumerate(SERIES)
}


class Chart:
    """One set of axes, and the texts that a pointer shows over its marks."""

    def __init__(self, height: float, left: float | None = None) -> None:
        """Make empty axes.

        Args:
            height: in units, of which the width has `WIDTH`.
            left: units left of the axes; None: as much as their labels need, which takes twice as long to draw.
        """
        self.figure = Figure(figsize=(WIDTH / 72, height / 72))  # SVG has 72 units an inch
        self.axes: Axes = self.figure.subplots()
        if left is None:
            self.figure.set_layout_engine("constrained")
        else:
            self.figure.subplots_adjust(left / WIDTH, 42 / height, 1 - 12 / WIDTH, 1 - 10 / height)
        self._titles: list[list[str]] = []

    def title(self, *texts: str) -> str:
        """Note the text of an artist, or one for each of its markers; return the gid that the artist gets."""
        self._titles.append([escape(text) for text in texts])
        return f"mark-{len(self._titles) - 1}"

    def svg(self, name: str, description: str) -> str:
        """The chart as an SVG element, the same for the same content.

        Args:
            name: the chart's name, unique on the page.
            description: what a screen reader reads.
        """
        buffer = io.StringIO()
        with matplotlib.rc_context({"svg.hashsalt": name}):
            self.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        text = buffer.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
        box = re.search(r'viewBox="[^"]*"', text)
        assert box is not None
        opening = f'<svg role="img" aria-label="{escape(description)}" {box.group()}>'
        text = opening + text[text.index(">") + 1 :]
        for index, titles in enumerate(self._titles):
            before, _, after = text.partition(f'<g id="mark-{index}">')
            text = before + self._titled(after, titles)
        text = re.sub(r' id="[A-Za-z][\w.]*_\d+"', "", text)  # matplotlib's names, alike in all charts
        text = text.replace("xlink:href", "href")
        text = re.sub(r"font: (?:\w+ )?([\d.]+)px [^;\"]*", r"font-size: \1px", text)
        text = re.sub(r"#0000[ab]\d", lambda found: f"var(--{VARIABLES[found[0]]})", text)
        return re.sub(r"\n\s*", "\n", text)

    @staticmethod
    def _titled(text: str, titles: list[str]) -> str:
        """The text of a group, without its opening, and all that follows it, with the titles in place."""
        if len(titles) == 1:
            return f"<g><title>{titles[0]}</title>{text}"
        left = iter(titles)

        def titled(use: re.Match[str]) -> str:
            return f"{use[1]}><title>{next(left)}</title></use>"

        return "<g>" + re.sub(r"(<use [^>]*)/>", titled, text, count=len(titles))


@contextmanager
def style() -> Iterator[None]:
    """The settings with which charts are made."""
    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 11, "text.color": INK, "axes.labelcolor": INK}):
        yield

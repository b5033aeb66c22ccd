"""Pieces of HTML: tables, folded parts, lists."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from benchmarks.result import Result
from benchmarks.table import text

Cell = str | int | float | None
# A number, a range, a share with its counts, or what stands in place of one.
NUMBER = re.compile(r"[-+<>= \d.,%]+((to|of) [-\d.,]+)?( reached it)?( \([-\d., tof%]+\))?|none|not reached")


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str = "") -> str:
    """A table that scrolls in a frame of its own where it is wider than the page; columns of numbers align right."""
    shown = [[text(cell) for cell in row] for row in rows]
    numbers = [all(NUMBER.fullmatch(row[index]) for row in shown if row[index]) for index in range(len(columns))]

    def line(tag: str, cells: Sequence[str]) -> str:
        classes = [" class=number" if number else "" for number in numbers]
        parts = [f"<{tag}{kind}>{escape(cell)}</{tag}>" for cell, kind in zip(cells, classes, strict=True)]
        return f"<tr>{''.join(parts)}</tr>"

    title = f"<p class=caption>{escape(caption)}</p>" if caption else ""
    body = "".join(line("td", row) for row in shown)
    content = f"<table><thead>{line('th', columns)}</thead><tbody>{body}</tbody></table>"
    return f"{title}<div class=wide tabindex=0>{content}</div>"


def folded(summary: str, content: str, opened: bool = False) -> str:
    """A part that opens and closes; `summary` is HTML."""
    return f"<details{' open' if opened else ''}><summary>{summary}</summary>{content}</details>"


def source(result: Result) -> str:
    """A line that says where the numbers of a result file come from, with a link to its provenance."""
    link = f'<a href="#{identifier(result.path.stem)}">{escape(result.path.stem)}</a>'
    facts = f"{result.machine}; {result.date[:10]}; commit {result.commit_label}"
    return f"<p class=source>{link}: {escape(facts)}</p>"


def identifier(name: str) -> str:
    """A name as the id of an element."""
    return re.sub(r"[^\w.-]+", "-", name)


def heading(title: str, name: str) -> str:
    """A heading that the page's list of contents links to."""
    return f'<h2 id="{identifier(name)}">{escape(title)}</h2>'

"""Tables on the screen and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import rich.table
from rich.console import Console
from rich.table import Column

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """A title, the columns' names, and rows of cells."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def text(cell: Cell) -> str:
    """A cell as text: rounded, with thousands separators."""
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.2f}"
    return "" if cell is None else f"{cell:,}" if isinstance(cell, int) else cell


def span(low: float, high: float) -> str:
    """Two ends of a range, in one cell."""
    return f"{text(low)} to {text(high)}"


def show(tables: Sequence[Table], path: Path) -> None:
    """Print tables, and the path of the result file."""
    console = Console()
    for table in tables:
        columns = [Column(name, overflow="fold") for name in table.columns]
        rendered = rich.table.Table(*columns, title=table.title)
        for row in table.rows:
            rendered.add_row(*map(text, row))
        console.print(rendered)
    console.print(str(path), highlight=False, soft_wrap=True)


def markdown(table: Table) -> str:
    """A table as Markdown, without its title."""
    rows = [[_escape(text(cell)) for cell in row] for row in table.rows]
    lines = [[_escape(name) for name in table.columns], ["---"] * len(table.columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())

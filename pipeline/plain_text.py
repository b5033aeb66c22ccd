"""Plain text on a console."""

from __future__ import annotations

from rich.console import Console


def print_plain(console: Console, message: str) -> None:
    """Print without markup, colours, or line breaks that would cut a path in two."""
    console.print(message, markup=False, highlight=False, soft_wrap=True)

"""Text without markup, colours and line breaks of its own, which other programs can read."""

from __future__ import annotations

from rich.console import Console


def print_plain(console: Console, message: str) -> None:
    """Print a message as it is."""
    console.print(message, markup=False, highlight=False, soft_wrap=True)

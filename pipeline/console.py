"""Lines of text on the console, and the log messages of saltus among them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


class _ConsoleHandler(logging.Handler):
    def __init__(self, console: Console):
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        print_line(self._console, record.getMessage())


@contextmanager
def log_to(console: Console) -> Iterator[None]:
    """Print the log messages of saltus on the console."""
    log, handler = logging.getLogger("saltus"), _ConsoleHandler(console)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)


def print_line(console: Console, message: str) -> None:
    """Print without markup, colours, or line breaks that would cut a path in two."""
    console.print(message, markup=False, highlight=False, soft_wrap=True)

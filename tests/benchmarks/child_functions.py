"""Functions that tests run in child processes. It imports nothing that is slow to import."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.gpu.context import SectionContext


def measures(context: SectionContext) -> None:
    context.note("measures", value=1.0)


def waits_for_its_finding(context: SectionContext) -> None:
    """Ends when the result file, whose path is in the environment, has what it reported."""
    context.note("waits", value=5.0)
    until = time.monotonic() + 30
    file = Path(os.environ["RESULT"])
    while not file.exists() or '"waits"' not in file.read_text():
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(0.01)


def misses(context: SectionContext) -> None:
    context.failures.append("one case failed")
    context.note("misses", value=4.0)


def raises(context: SectionContext) -> None:
    context.note("raises", value=2.0)
    raise ZeroDivisionError("no such thing\nmore")


def dies(context: SectionContext) -> None:
    context.note("dies", value=3.0)
    os._exit(3)


def hangs(_context: SectionContext) -> None:
    time.sleep(600)


def one_unit() -> Callable[[], int]:
    return lambda: 1


def not_installed() -> Callable[[], int]:
    raise ModuleNotFoundError("No module named 'peer'", name="peer")

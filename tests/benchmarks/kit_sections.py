"""Sections for tests of the GPU kit; the kit's processes import this module."""

from __future__ import annotations

import os
import time

from benchmarks.gpu.context import SectionContext


def measures(context: SectionContext) -> None:
    context.note("measures", value=1.0)
    context.table("A table", ["value"], [[1.0]])


def raises(context: SectionContext) -> None:
    context.note("raises", value=2.0)
    raise ZeroDivisionError("no such thing\nmore")


def dies(context: SectionContext) -> None:
    context.note("dies", value=3.0)
    os._exit(3)


def hangs(_context: SectionContext) -> None:
    time.sleep(600)

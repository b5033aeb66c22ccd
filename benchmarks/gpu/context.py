"""The context of a section of the GPU kit: device, sizes, deadline, findings."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from benchmarks import json_result as result
from benchmarks import runner
from benchmarks.gpu.sizes import Sizes

# A measurement, or a table of measurements.
Finding: TypeAlias = dict[str, Any] | result.Table


@dataclass
class SectionContext:
    """Inputs and outputs of a section.

    Attributes:
        deadline: of the whole kit, by time.monotonic().
        send: called with each finding at once, so that it is kept if the section fails later.
        failures: reasons of cases that failed. The other cases are measured, then the section fails.
    """

    device: torch.device
    sizes: Sizes
    deadline: float
    send: Callable[[Finding], None]
    failures: list[str] = field(default_factory=list)

    def note(self, section: str, **values: Any) -> None:
        """Report one measurement."""
        self.send({"section": section, **values})

    def table(self, title: str, columns: list[str], rows: list[list[result.Cell]]) -> None:
        """Report one table."""
        self.send(result.Table(title, columns, rows))

    def compare(self, section: str, title: str, cases: Mapping[str, Callable[[], runner.Work]], subject: str) -> None:
        """Measure cases in turns; report their rates and a table.

        A case that fails is listed with its reason, and the others are measured. If the subject fails, no rates are
        measured, because there is nothing to compare with.
        """
        made: dict[str, runner.Work] = {}
        missing: dict[str, str] = {}
        for name, make in cases.items():
            try:
                work = make()
                for _ in range(self.sizes.warmup_calls):
                    work()
                made[name] = work
            except Exception as error:
                traceback.print_exc()
                missing[name] = f"failed: {first_line(error)}"
                self.failures.append(f"{title}: {name} {missing[name]}")
        if subject not in made:
            return
        measured = runner.measure(made, self.sizes.repeats, self.sizes.seconds, warmup_calls=0)
        for row in result.rows_of(measured, section=section, title=title):
            self.send(row)
        self.send(result.comparison(title, measured, subject, missing, {}))

    def require_success(self) -> None:
        """Raise a RuntimeError that lists the failures, if there are any."""
        if self.failures:
            raise RuntimeError("; ".join(self.failures))

    def seconds_left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()


# A part of the kit. It reports its findings through the context, and raises an exception if it fails.
Section: TypeAlias = Callable[[SectionContext], None]


def first_line(error: Exception) -> str:
    """An exception's type and the first line of its message, cut after 300 characters."""
    reason = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {reason}"[:300]

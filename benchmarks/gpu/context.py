"""The context of a section of the GPU kit: device, sizes, deadline, findings."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from benchmarks import runner
from benchmarks.campaign import describe
from benchmarks.gpu.sizes import Sizes

# A measurement.
Finding: TypeAlias = dict[str, Any]


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

    def compare(self, section: str, title: str, cases: Mapping[str, Callable[[], runner.Work]], subject: str) -> None:
        """Measure cases in turns; report their rates, as `benchmarks.rates` does.

        A case that fails is reported with its reason, and the others are measured. If the subject fails, no rates are
        measured, because there is nothing to compare with.
        """
        made: dict[str, runner.Work] = {}

        def report(name: str, outcome: float | Exception) -> None:
            if isinstance(outcome, Exception):
                traceback.print_exception(outcome)
                self.note(section, title=title, case=name, subject=subject, error=describe(outcome))
                self.failures.append(f"{title}: {name} failed: {describe(outcome)}")

        for name, make in cases.items():
            try:
                work = make()
                for _ in range(self.sizes.warmup_calls):
                    work()
                made[name] = work
            except Exception as error:
                report(name, error)
        if subject not in made:
            return
        measured = runner.measure(made, self.sizes.repeats, self.sizes.seconds, warmup_calls=0, turn_done=report)
        for name, rates in measured.items():
            if rates:
                self.note(section, title=title, case=name, subject=subject, rates=rates)

    def require_success(self) -> None:
        """Raise a RuntimeError that lists the failures, if there are any."""
        if self.failures:
            raise RuntimeError("; ".join(self.failures))

    def seconds_left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()


# A part of the kit. It reports its findings through the context, and raises an exception if it fails.
Section: TypeAlias = Callable[[SectionContext], None]

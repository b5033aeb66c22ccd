"""The runner that all benchmarks share: it times named cases in turns and compares their rates.

A case's *work* is a function that does some units of work and returns their number. In every repeat each case runs
once for a while, and the next repeat starts with another case. Anything that slows the machine down for a time thus
slows all cases.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import median

from benchmarks.baseline import ServedCase

Work = Callable[[], int]


@dataclass(frozen=True)
class Measurement:
    """One turn of one case: `units` of work in `seconds`."""

    case: str
    repeat: int
    units: int
    seconds: float

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.units / self.seconds


@dataclass(frozen=True)
class Summary:
    """A case's rates over all repeats, compared with the subject's.

    Attributes:
        median, low, high: of the rates.
        ratio_of_medians: the subject's median rate over this case's.
        median_of_ratios: the median over repeats of the subject's rate over this case's in the same repeat.
    """

    median: float
    low: float
    high: float
    ratio_of_medians: float
    median_of_ratios: float


def build(makers: Mapping[str, Callable[[], Work]]) -> tuple[dict[str, Work], dict[str, str]]:
    """Make the cases; return them, and by name the reason why others are missing (a package that is not installed)."""
    cases, missing = {}, {}
    for name, make in makers.items():
        try:
            cases[name] = make()
        except ModuleNotFoundError as error:
            missing[name] = f"{error.name} is not installed"
    return cases, missing


def isolated(make: Callable[[], Work]) -> Work:
    """Make and do work in a process of its own, where other cases cannot change torch.compile's caches.

    Args:
        make: makes the work; it can be pickled.

    Raises:
        Exception: anything that making or doing the work raised there.
    """
    context = get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=_serve, args=(there, make), daemon=True).start()
    there.close()  # so that reading raises EOFError when the process ends

    def answer() -> int:
        received = here.recv()
        if isinstance(received, Exception):
            raise received
        return received

    def work() -> int:
        here.send(None)
        return answer()

    answer()
    return work


def _serve(pipe: Connection, make: Callable[[], Work]) -> None:
    try:
        work = make()
        pipe.send(0)
        while True:
            pipe.recv()
            pipe.send(work())
    except EOFError:  # the other process has ended
        pass
    except Exception as error:
        pipe.send(error)


def measure(
    cases: Mapping[str, Work],
    repeats: int,
    seconds: float,
    warmup_calls: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Measurement]:
    """Warm up every case, in turns too, then measure each once per repeat, in rotating order.

    Args:
        cases: the work of each case, by name.
        repeats: turns of each case.
        seconds: minimum length of a turn; it ends with a whole call.
        warmup_calls: calls of each case before the first turn.
        clock: seconds from any fixed time.
    """
    for _ in range(warmup_calls):
        for work in cases.values():
            work()
    names = list(cases)
    measurements = []
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            work = cases[name]
            units, elapsed = work.turn(seconds) if isinstance(work, ServedCase) else _turn(work, seconds, clock)
            measurements.append(Measurement(name, repeat, units, elapsed))
    return measurements


def _turn(work: Work, seconds: float, clock: Callable[[], float]) -> tuple[int, float]:
    units, elapsed, start = 0, 0.0, clock()
    while elapsed < seconds:
        units += work()
        elapsed = clock() - start
    return units, elapsed


def summarize(measurements: Sequence[Measurement], subject: str) -> dict[str, Summary]:
    """Each case's rates, compared with those of `subject`, by name."""
    rates: dict[str, list[float]] = {}
    for measurement in sorted(measurements, key=lambda measurement: measurement.repeat):
        rates.setdefault(measurement.case, []).append(measurement.rate)
    return {
        name: Summary(
            median=median(values),
            low=min(values),
            high=max(values),
            ratio_of_medians=median(rates[subject]) / median(values),
            median_of_ratios=median(mine / other for mine, other in zip(rates[subject], values, strict=True)),
        )
        for name, values in rates.items()
    }

"""Time named cases in turns.

A case's *work* is a function that does some units of work and returns their number. In every repeat each case runs
once for a while, and the next repeat starts with another case. Anything that slows the machine down for a time thus
slows all cases.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TypeVar

from benchmarks.baseline import ServedCase

Work = Callable[[], int]
Answer = TypeVar("Answer")
# Called after each turn with the case's name, and its rate in units per second or the error that it raised.
TurnDone = Callable[[str, float | Exception], object]


def isolated(make: Callable[[], Callable[[], Answer]]) -> Callable[[], Answer]:
    """Make and do work in a process of its own, where other cases cannot change torch.compile's caches.

    The process ends with the returned function.

    Args:
        make: makes the work; it can be pickled.

    Raises:
        Exception: anything that making or doing the work raised there.
        RuntimeError: the process ended.
    """
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, make), daemon=True)
    process.start()
    there.close()  # so that reading raises EOFError when the process ends

    def answer() -> Answer:
        try:
            received = here.recv()
        except EOFError:
            process.join(10)
            raise RuntimeError(f"its process ended with exit code {process.exitcode}") from None
        if isinstance(received, Exception):
            raise received
        return received

    def work() -> Answer:
        here.send(None)
        return answer()

    answer()
    return work


def _serve(pipe: Connection, make: Callable[[], Callable[[], Answer]]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the other process too, which ends this one
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
    known: Mapping[str, int] | None = None,
    turn_done: TurnDone = lambda _name, _rate: None,
) -> dict[str, list[float]]:
    """Warm up every case, in turns too, then measure each once per repeat, in rotating order.

    A case that raises an exception is left out from then on.

    Args:
        cases: the work of each case, by name.
        repeats: turns of each case.
        seconds: minimum length of a turn; it ends with a whole call.
        warmup_calls: calls of each case before the first turn.
        clock: seconds from any fixed time.
        known: number of turns that were measured before, by name; these are not repeated.
        turn_done: called after each turn.

    Returns:
        The rates of each case, in units per second, without those that are known.
    """
    running = dict(cases)
    rates: dict[str, list[float]] = {name: [] for name in cases}

    def attempt(name: str, call: Callable[[], float]) -> float | None:
        try:
            return call()
        except Exception as error:
            del running[name]
            turn_done(name, error)
            return None

    for _ in range(warmup_calls):
        for name, work in list(running.items()):
            attempt(name, work)
    names = list(cases)
    known = known or {}
    for repeat in range(repeats):
        first = repeat % len(names) if names else 0
        for name in names[first:] + names[:first]:
            if name in running and repeat >= known.get(name, 0):
                rate = attempt(name, partial(_rate, running[name], seconds, clock))
                if rate is not None:
                    rates[name].append(rate)
                    turn_done(name, rate)
    return rates


def _rate(work: Work, seconds: float, clock: Callable[[], float]) -> float:
    if isinstance(work, ServedCase):
        units, elapsed = work.turn(seconds)
        return units / elapsed
    units, elapsed, start = 0, 0.0, clock()
    while elapsed < seconds:
        units += work()
        elapsed = clock() - start
    return units / elapsed

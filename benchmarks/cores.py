"""Runs at once, each pinned to cores of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import psutil

from saltus.signals import signals_interrupt

Job = TypeVar("Job")
Result = TypeVar("Result")

GRACE = 60.0  # seconds after which child processes that were terminated are killed
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # either limits the threads of PyTorch


def core_sets(cores_per_run: int | None = None) -> list[tuple[int, ...]]:
    """Disjoint sets of this process's cores, one for each run at a time.

    Args:
        cores_per_run: the size of each set; None: all cores, which makes one set.

    Raises:
        SystemExit: there are fewer cores.
    """
    cores = sorted(os.sched_getaffinity(0), key=_physical_core)
    size = len(cores) if cores_per_run is None else cores_per_run
    if not 1 <= size <= len(cores):
        raise SystemExit(f"--cores-per-run {size}: give 1 to {len(cores)}, the cores that this process may use")
    return [tuple(cores[first : first + size]) for first in range(0, len(cores) - size + 1, size)]


def _physical_core(core: int) -> tuple[int, int]:
    """A sort key that keeps hardware threads of a physical core together, so that runs share none."""
    try:
        siblings = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text()
        return int(siblings.replace("-", ",").split(",")[0]), core
    except (OSError, ValueError):
        return core, core


def run_pinned(
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    sets: Sequence[tuple[int, ...]],
    finished: Callable[[Result], Any],
) -> None:
    """Run jobs in threads, each pinned to a set of cores, which its child processes inherit.

    Their THREADS is the number of cores in a set, whatever it is in this process. At an error or an interruption no
    other job starts, and child processes are terminated, at which saltus saves.

    Args:
        function: does a job; most of the work is in child processes.
        jobs: its arguments.
        sets: sets of cores of one size, as many as jobs at a time.
        finished: called in this thread with each result, in the order in which jobs finish.

    Raises:
        KeyboardInterrupt: at SIGINT, SIGTERM or SIGHUP; child processes that jobs started have ended.
    """
    free: SimpleQueue[tuple[int, ...]] = SimpleQueue()
    for cores in sets:
        free.put(cores)
    others = set(psutil.Process().children())
    pool = ThreadPoolExecutor(len(sets), initializer=lambda: _pin(free.get()))
    with signals_interrupt(), _environment(dict.fromkeys(THREADS, str(len(sets[0])))), pool:
        futures = [pool.submit(function, job) for job in jobs]
        try:
            for future in as_completed(futures):
                finished(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            _end_children(futures, others)
            raise


def _pin(cores: tuple[int, ...]) -> None:
    os.sched_setaffinity(0, cores)  # on Linux: of this thread, and of processes that it starts


def _end_children(futures: Sequence[Future[Any]], others: set[psutil.Process]) -> None:
    """Terminate child processes but `others`, also those that start meanwhile, until no job runs."""
    terminated: set[psutil.Process] = set()
    deadline = time.monotonic() + GRACE
    while not all(future.done() for future in futures):  # `wait` would wait for those that were cancelled
        for child in set(psutil.Process().children()) - others:
            with suppress(psutil.NoSuchProcess):
                if child not in terminated:
                    child.terminate()
                    terminated.add(child)
                elif time.monotonic() > deadline:
                    child.kill()
        time.sleep(0.1)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, which child processes inherit, and restore them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value

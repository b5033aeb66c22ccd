"""Training runs that workers on any number of machines share."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks import result
from benchmarks.campaign import Row, failed, progress
from benchmarks.cores import run_pinned
from benchmarks.shared_cases import SharedCases
from benchmarks.training_run import Case, Trained, train
from saltus.signals import signals_interrupt

OF_A_WORKER = ("at_once", "machine")  # parts of a case that differ between workers
OF_THE_REPORT = ("threshold", "floor", "runs_at_once")  # settings that change no run
POLL = 2.0  # seconds between looks for a run whose worker has ended


def train_shared(
    url: str, lease: int, settings: Mapping[str, Any], cases: Sequence[Case], sets: Sequence[tuple[int, ...]]
) -> list[Row]:
    """Do the cases of which no other worker does or has done; return the measurements of all when all have ended.

    Args:
        url: of the database.
        lease: seconds after which the case of a worker that no longer answers is done again.
        settings: those of the benchmark.
        cases: all cases, with the parts of this worker.
        sets: this worker's sets of cores, one for each run at a time.

    Raises:
        SystemExit: the database cannot be used, or at a signal, after the cases of this worker were given back.
    """
    named = {_name(case): case for case in cases}
    identity = {name: value for name, value in settings.items() if name not in OF_THE_REPORT}
    shared = SharedCases(url, "training", identity, [*named], lease)

    def work(_: int) -> tuple[str, Trained] | None:
        name = shared.claim()
        return None if name is None else (name, train(named[name]))

    def keep(done: tuple[str, Trained] | None) -> None:
        if done is not None:
            name, run = done
            if not shared.finish(name, run.to_json()):
                print(f"{run.case}: another worker had taken the run up; its measurement is kept", flush=True)
            _say(shared, len(named))

    try:
        with signals_interrupt():
            _say(shared, len(named))
            while (unfinished := shared.unfinished) or (missing := named.keys() - shared.rows().keys()):
                if not unfinished:  # a worker that stopped gave cases back, and they did not wait yet
                    shared.add_missing(sorted(missing))
                run_pinned(work, range(shared.unfinished), sets, keep)
                if shared.unfinished:
                    time.sleep(POLL)
    except KeyboardInterrupt:
        shared.release()
        sys.exit(f"interrupted: the runs of this worker are given back to {shared.url}; the same command continues")
    rows = shared.rows()
    return [rows[name] for name in named]


def _name(case: Case) -> str:
    return result.encode({name: value for name, value in asdict(case).items() if name not in OF_A_WORKER})


def _say(shared: SharedCases, total: int) -> None:
    rows = shared.rows().values()
    print(progress(len(rows), total, "runs", sum(map(failed, rows)), None), flush=True)

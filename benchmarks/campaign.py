"""Training runs of one command, in a result file that is written after each of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import json_result as result
from benchmarks.training_run import Case, Trained


class Campaign:
    """The cases of a command, and a result file with those that were run.

    Args:
        path: the result file. Its runs are kept, and those that failed are run again.
        cases: all cases, in the order of the file.
        settings: the command's settings, for the file.
        tables: makes the file's tables of the runs so far.

    Raises:
        SystemExit: the file holds other cases, which would be lost, or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        cases: Sequence[Case],
        settings: Mapping[str, Any],
        tables: Callable[[Sequence[Trained]], list[result.Table]],
    ):
        self.path, self._cases, self._settings, self._tables = path, cases, settings, tables
        self._runs = {run.case: run for run in _read(path, cases)}
        self.remaining = [case for case in cases if case not in self._runs or self._runs[case].exit_code != 0]
        try:
            self.write()
        except OSError as error:
            raise SystemExit(f"{path} cannot be written ({error.strerror}): name a file with --output") from error

    @property
    def runs(self) -> list[Trained]:
        """The runs so far."""
        return [self._runs[case] for case in self._cases if case in self._runs]

    def write(self) -> None:
        """Write the result file."""
        result.write(self.path, self._settings, map(Trained.to_json, self.runs), self._tables(self.runs))

    def add(self, run: Trained) -> None:
        """Add a run to the result file, and print the progress."""
        self._runs[run.case] = run
        self.remaining.remove(run.case)
        self.write()
        print(self.progress(), flush=True)

    def progress(self) -> str:
        """Numbers of runs, and the time that the others will take."""
        done = len(self._cases) - len(self.remaining)
        failed = sum(run.exit_code != 0 for run in self.runs)
        parts = [f"{done} of {len(self._cases)} runs done"]
        if failed:
            parts.append(f"{failed} failed")
        seconds = seconds_left(self.remaining, [run.seconds for run in self.runs if run.exit_code == 0])
        if seconds:
            parts.append(f"about {seconds / 60:.0f} min left")
        return ", ".join(parts)


def seconds_left(remaining: Sequence[Case], known: Sequence[float]) -> float | None:
    """Seconds that cases will take, final evaluations aside; None if it is unknown, or there are none.

    Args:
        remaining: the cases.
        known: durations of other cases; without any, the time limit is taken.
    """
    if not remaining:
        return None
    first = remaining[0]
    if not known and first.minutes is None:
        return None
    each = mean(known) if known else 60 * (first.minutes or 0.0)
    return each * -(-len(remaining) // first.at_once)


def _read(path: Path, cases: Sequence[Case]) -> list[Trained]:
    """The runs of a result file; none if it does not exist."""
    if not path.exists():
        return []
    instead = "name another file with --output, or move this one away"
    try:
        runs = [Trained.from_json(measurement) for measurement in json.loads(path.read_text())["measurements"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path} holds no runs that this command could continue: {instead}") from error
    others = [run.case for run in runs if run.case not in cases]
    if others:
        raise SystemExit(
            f"{path} holds {len(others)} runs that this command does not ask for ({_difference(others[0], cases)}): "
            f"{instead}"
        )
    return runs


def _difference(other: Case, cases: Sequence[Case]) -> str:
    """The settings of a case that no case of `cases` has."""
    found = []
    for name in (field.name for field in fields(Case)):
        value, expected = getattr(other, name), {getattr(case, name) for case in cases}
        if value not in expected:
            found.append(f"{name} {value} instead of {', '.join(sorted(map(str, expected)))}")
    return "; ".join(found) or str(other)

"""The jobs of one command, in a result file that is written after each of them.

The same command continues the file: jobs that are complete are not done again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import result
from benchmarks.hardware import hardware, machine
from pipeline.differences import differences
from saltus.errors import SaltusError
from saltus.signals import signals_interrupt

Row = dict[str, Any]


class Campaign:
    """The jobs of a command, and a result file with the measurements of those that were done.

    A job is the part of a measurement that is known before: its task, case, seed. A measurement with an ``error`` or an
    ``exit_code`` other than 0 has failed, and one with ``missing`` names the command that installs what it needs.

    Args:
        path: the result file. Its measurements are kept. Those that are not complete are made again.
        benchmark: the benchmark's name.
        settings: the command's settings, for the file.
        jobs: all jobs, in the order of the file; each has the same names.
        complete: whether a measurement needs no more work. By default, if it has not failed.
        same_settings: whether the file must have the same settings.
        missing: further measurements that name what is not installed.
        every: seconds between lines of progress, at least.

    Raises:
        SystemExit: the file is no result file, holds other measurements, which would be lost, or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        benchmark: str,
        settings: Mapping[str, Any],
        jobs: Sequence[Mapping[str, Any]],
        complete: Callable[[Row], bool] | None = None,
        same_settings: bool = True,
        missing: Sequence[Row] = (),
        every: float = 0.0,
    ):
        result.require_name(path)
        self.path, self._benchmark, self._settings, self._missing = path, benchmark, settings, list(missing)
        self._complete = complete or (lambda row: not failed(row) and "missing" not in row)
        self._every, self._said = every, -every
        self.jobs = {self.key(job): dict(job) for job in jobs}
        self._names = [*jobs[0]]
        self._rows = self._read(same_settings) if path.exists() else {}
        done = [key for key, row in self._rows.items() if self._complete(row)]
        self._remaining = {key: job for key, job in self.jobs.items() if key not in done}
        try:
            # A complete file keeps the date, commit and machine of its measurements.
            self.result = self.write() if self._remaining or not path.exists() else result.read(path)
        except OSError as error:
            raise SystemExit(f"{path} cannot be written ({error.strerror}): name a file with --output") from error

    def key(self, row: Mapping[str, Any]) -> str:
        """A job's key, by which measurements are assigned to jobs."""
        return result.encode(row)

    @property
    def rows(self) -> list[Row]:
        """The measurements so far, in the order of the jobs."""
        return [self._rows[key] for key in self.jobs if key in self._rows]

    @property
    def remaining(self) -> list[Row]:
        """The jobs that were neither complete in the file nor done since."""
        return [*self._remaining.values()]

    def find(self, job: Mapping[str, Any]) -> Row:
        """The measurement of a job so far, or the job alone."""
        return self._rows.get(self.key(job), dict(job))

    def put(self, row: Row) -> None:
        """Add a measurement to the file, in place of an earlier one of the same job."""
        key = self.key({name: row[name] for name in self._names})
        self._rows[key] = row
        if failed(row) or "missing" in row or self._complete(row):
            self._remaining.pop(key, None)
        self.write()

    def write(self) -> result.Result:
        """Write the result file."""
        self.result = result.write(self.path, self._benchmark, self._settings, [*self.rows, *self._missing])
        return self.result

    def say(self, line: str, now: bool = False) -> None:
        """Print a line of progress, unless the last one is younger than `every` seconds."""
        if now or time.monotonic() - self._said >= self._every:
            self._said = time.monotonic()
            print(line, flush=True)

    @contextmanager
    def interruptible(self, progress: Callable[[], str]) -> Iterator[None]:
        """At SIGINT, SIGTERM or SIGHUP, write the file and exit with a message."""
        try:
            with signals_interrupt():
                yield
        except KeyboardInterrupt:
            self.write()  # again: the interruption may have come in the middle
            sys.exit(f"interrupted: {progress()}. {self.path} is up to date; the same command continues")

    def _read(self, same_settings: bool) -> dict[str, Row]:
        instead = "name another file with --output, or move this one away"
        try:
            found = result.read(self.path)
        except SaltusError as error:
            raise SystemExit(f"{error}. To keep the file, {instead}") from error
        here = machine(hardware())
        different = []
        if found.benchmark != self._benchmark:
            different.append(f"benchmark {found.benchmark} instead of {self._benchmark}")
        elif found.machine != here:
            different.append(f"machine {found.machine} instead of {here}")
        elif same_settings:
            different = differences(result.plain(self._settings), found.settings)
        if different:
            raise SystemExit(f"{self.path} holds other measurements ({'; '.join(different)}): {instead}")
        rows: dict[str, Row] = {}
        for row in found.measurements:
            if "missing" in row:
                continue
            job = {name: row.get(name) for name in self._names}
            key = self.key(job)
            if key not in self.jobs:
                raise SystemExit(
                    f"{self.path} holds measurements that this command does not ask for ({self._unknown(job)}): "
                    f"{instead}"
                )
            rows[key] = row
        return rows

    def _unknown(self, job: Row) -> str:
        """The values of a job that no job of this command has."""
        parts = []
        for name, value in job.items():
            expected = {str(result.plain(one[name])) for one in self.jobs.values()}
            if str(value) not in expected:
                parts.append(f"{name} {value} instead of {', '.join(sorted(expected))}")
        return "; ".join(parts) or ", ".join(map(str, job.values()))


def failed(row: Mapping[str, Any]) -> bool:
    """Whether a measurement failed."""
    return "error" in row or row.get("exit_code", 0) != 0


def describe(error: BaseException) -> str:
    """An exception's type and the first line of its message, cut after 300 characters."""
    reason = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {reason}"[:300]


def progress(done: int, total: int, unit: str, failures: int, seconds: float | None) -> str:
    """One line: how much is done, how much failed, and the time that is left.

    Args:
        done, total: numbers of units, failed ones included in `total` only.
        unit: a plural, such as runs.
        failures: number of units that failed.
        seconds: the time left; None if it is unknown, or nothing is left.
    """
    parts = [f"{done} of {total} {unit} done"]
    if failures:
        parts.append(f"{failures} failed")
    if seconds:
        parts.append(f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left")
    return ", ".join(parts)

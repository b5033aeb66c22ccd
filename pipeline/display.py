"""The display of a run: a live table on a terminal, lines elsewhere. A lost display ends nothing."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

_PLAIN_INTERVAL = 10.0  # seconds between progress lines without a terminal
_SHOWN = {
    "env_steps_per_second": "env steps/s",
    "gradient_steps_per_second": "gradient steps/s",
    "episode_return": "training return",
    "evaluation": "evaluation return",
    "alpha": "alpha",
    "entropy": "entropy",
    "failed": "failed world-steps",
}


class Display:
    """Shows the progress of a run.

    It is live if the console's file is a terminal that can move its cursor. FORCE_COLOR does not make a log file live.

    Args:
        console: where to print.
        total: env steps of the whole run.
        minutes: length of the run, if minutes instead of env steps limit it.
    """

    def __init__(self, console: Console, total: int, minutes: float | None = None):
        self._console, self._total, self._minutes = console, total, minutes
        self._done = 0.0
        self._is_live = _can_be_live(console)
        self._progress = _progress_bar(console)
        self._bar = self._progress.add_task("starting", total=1.0)
        self._values: dict[str, float] = {}
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4)
        self._last_line = 0.0
        self._phase = ""

    def __enter__(self) -> Display:
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_live:
            self._live.stop()

    def say(self, message: str) -> None:
        """Print a line, above the live table."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def phase(self, name: str) -> None:
        """Show the run's current activity."""
        if name != self._phase:
            self._phase = name
            self._progress.update(self._bar, description=name)
            if not self._is_live:
                self.say(f"[{name}]")

    def set_progress(self, progress: float) -> None:
        """Move the progress bar to a share of the run, in [0, 1]."""
        self._done = progress
        self._progress.update(self._bar, completed=progress)

    def show(self, values: Mapping[str, float]) -> None:
        """Show values by name, if they are known and of interest."""
        if "unstable" in values and "nonfinite" in values:
            values = {**values, "failed": values["unstable"] + values["nonfinite"]}
        self._values |= {name: values[name] for name in _SHOWN if name in values and not math.isnan(values[name])}

    def print_progress(self, env_steps: int) -> None:
        """Print the values as a line, every ten seconds, unless a live table shows them."""
        if self._is_live or time.monotonic() - self._last_line < _PLAIN_INTERVAL:
            return
        self._last_line = time.monotonic()
        shown = ", ".join(f"{label} {self._values[name]:.4g}" for name, label in _SHOWN.items() if name in self._values)
        self.say(f"{self._describe(env_steps)}: {shown}")

    def _describe(self, env_steps: int) -> str:
        """The env steps so far, and the run's length."""
        if self._minutes is None:
            return f"{env_steps:,} of {self._total:,} env steps"
        return f"{env_steps:,} env steps in {self._done * self._minutes:.1f} of {self._minutes:g} minutes"

    def _render(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for name, label in _SHOWN.items():
            if name in self._values:
                table.add_row(label, f"{self._values[name]:,.4g}")
        return Group(self._progress, table)


@contextmanager
def show_progress(console: Console, activity: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show the progress of an activity: a bar on a terminal, until it ends; a line every ten seconds elsewhere.

    Args:
        console: where to print.
        activity: its name.
        total: its length in `unit`.
        unit: the plural of what is counted.

    Yields:
        A function to call with the number that is done.
    """
    if _can_be_live(console):
        with _progress_bar(console, transient=True) as bar:
            task = bar.add_task(activity, total=total)
            yield lambda done: bar.update(task, completed=done)
        return
    last_line = time.monotonic()

    def report(done: int) -> None:
        nonlocal last_line
        if time.monotonic() - last_line >= _PLAIN_INTERVAL:
            last_line = time.monotonic()
            line = f"{activity}: {done:,} of {total:,} {unit}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    yield report


def _can_be_live(console: Console) -> bool:
    return console.file.isatty() and console.is_terminal and not console.is_dumb_terminal and not console.quiet


def _progress_bar(console: Console, transient: bool = False) -> Progress:
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
        TimeRemainingColumn(elapsed_when_finished=True), console=console, transient=transient,
    )  # fmt: skip


@contextmanager
def tolerate_lost_output() -> Iterator[None]:
    """Ignore errors of stdout and stderr: a closed terminal, a pipe without a reader, a full disk."""
    _open_standard_files()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _TolerantStream(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in before:
            _flush_or_discard(stream)


def tolerant_console(quiet: bool) -> Console:
    """A console on stdout that ignores its errors, as `tolerate_lost_output` does for a whole process."""
    return Console(file=cast(TextIO, _TolerantStream(sys.stdout)), quiet=quiet)


class _TolerantStream:
    """A text stream whose `write` and `flush` raise no errors of the stream."""

    def __init__(self, stream: TextIO | None):
        self._stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115 - open to the end

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # ValueError: a closed stream
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                self._stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _open_standard_files() -> None:
    """Open those of the descriptors 0, 1 and 2 that are closed, so that no file of a run gets their numbers."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _flush_or_discard(stream: TextIO | None) -> None:
    """Flush a stream; if that fails, discard its buffer, which Python would write at exit and fail."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except ValueError:
        pass  # closed

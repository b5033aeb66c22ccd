"""Logging of a run: live display, metrics.csv, evaluations.csv, TensorBoard, Weights & Biases."""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.config import Config
from saltus.errors import SaltusError

METRICS, EVALUATIONS = "metrics.csv", "evaluations.csv"
_PLAIN_INTERVAL = 10.0  # seconds between progress lines without a terminal
_SHOWN = {
    "env_steps_per_second": "env steps/s",
    "gradient_steps_per_second": "gradient steps/s",
    "utd_ratio": "gradient steps / env steps",
    "episode_return": "training return",
    "evaluation": "evaluation return",
    "alpha": "alpha",
    "entropy": "entropy",
    "unstable": "unstable world-steps",
}


class Logger:
    """Writes rows of numbers to a run's directory and displays progress.

    Args:
        run_dir: the run's directory. Existing tables are continued; their rows after `env_steps` are dropped.
        config: the run's configuration.
        env_steps: env steps done so far.
        console: displays progress.
    """

    def __init__(self, run_dir: Path, config: Config, env_steps: int, console: Console):
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self._config, self._console = config, console
        self._tables = {name: _CsvTable(run_dir / name, env_steps) for name in (METRICS, EVALUATIONS)}
        self._tensorboard = SummaryWriter(run_dir / "tensorboard", purge_step=env_steps + 1)
        self._wandb = _wandb_run(run_dir, config) if config.wandb else None
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
            TimeRemainingColumn(elapsed_when_finished=True), console=console,
        )  # fmt: skip
        self._bar = self._progress.add_task("starting", total=config.total_env_steps, completed=env_steps)
        self._shown: dict[str, float] = {}
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4)
        self._last_line = 0.0
        self._phase = ""

    def __enter__(self) -> Logger:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()
        for close in (*(table.close for table in self._tables.values()), self._tensorboard.close):
            with suppress(OSError):  # a full disk, reported already
                close()
        if self._wandb is not None:
            self._wandb.finish()

    def flush(self) -> None:
        """Write buffered TensorBoard events to their file; tables are not buffered."""
        self._tensorboard.flush()

    def say(self, message: str) -> None:
        """Print a line above the display."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def phase(self, name: str) -> None:
        """Show the run's current activity."""
        if name != self._phase:
            self._phase = name
            self._progress.update(self._bar, description=name)
            if not self._console.is_terminal:
                self.say(f"[{name}]")

    def advance(self, env_steps: int) -> None:
        """Move the progress bar."""
        self._progress.update(self._bar, completed=env_steps)

    def metrics(self, row: Mapping[str, float]) -> None:
        """Write a row of training metrics."""
        self._write(METRICS, "train", row)
        self._shown |= {name: row[name] for name in _SHOWN if name in row and not math.isnan(row[name])}
        if not self._console.is_terminal and time.monotonic() - self._last_line > _PLAIN_INTERVAL:
            self._last_line = time.monotonic()
            shown = ", ".join(
                f"{label} {self._shown[name]:.4g}" for name, label in _SHOWN.items() if name in self._shown
            )
            self.say(f"{int(row['env_steps']):,} of {self._config.total_env_steps:,} env steps: {shown}")

    def evaluation(self, row: Mapping[str, float], summary: str) -> None:
        """Write a row of evaluation results."""
        self._write(EVALUATIONS, "evaluation", row)
        self._shown["evaluation"] = row["return_mean"]
        self.say(f"evaluation at {int(row['env_steps']):,} env steps, {row['seconds']:.0f} s: {summary}")

    def _write(self, table: str, prefix: str, row: Mapping[str, float]) -> None:
        self._tables[table].append(row)
        step = int(row["env_steps"])
        scalars = {f"{prefix}/{name}": value for name, value in row.items() if name != "env_steps"}
        for name, value in scalars.items():
            self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(scalars, step=step)

    def _render(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for name, label in _SHOWN.items():
            if name in self._shown:
                table.add_row(label, f"{self._shown[name]:,.4g}")
        return Group(self._progress, table)


def read_table(path: Path) -> list[dict[str, float]]:
    """The complete rows of metrics.csv or evaluations.csv; none if there is no file. A missing number is NaN.

    Safe while a run is writing the file: it is read at once, and an incomplete last row is left out.
    """
    header, *rows = _whole_rows(path)
    return [{name: float(value or "nan") for name, value in zip(header, row, strict=True)} for row in rows]


def _whole_rows(path: Path) -> list[list[str]]:
    """Header and rows of a CSV file, without an incomplete last line; the header is empty if there is none."""
    text = path.read_text() if path.exists() else ""
    header, *rows = list(csv.reader(text.split("\n")[:-1])) or [[]]
    return [header, *(row for row in rows if len(row) == len(header))]


class _CsvTable:
    """A CSV file, flushed after every row; the first row sets the columns."""

    def __init__(self, path: Path, env_steps: int):
        self._columns: list[str] = []
        if path.exists():
            self._columns = _drop_rows_after(path, env_steps)
        self._file: TextIO = open(path, "a", newline="")  # noqa: SIM115 - closed by `close`

    def append(self, row: Mapping[str, float]) -> None:
        writer = csv.writer(self._file)
        if not self._columns:
            self._columns = list(row)
            writer.writerow(self._columns)
        writer.writerow([row.get(name, "") for name in self._columns])
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _drop_rows_after(path: Path, env_steps: int) -> list[str]:
    """Drop rows that a resumed run will write again, and an incomplete last one; return the columns."""
    header, *rows = _whole_rows(path)
    kept = [row for row in rows if int(row[0]) <= env_steps]
    partial = path.with_suffix(".partial")
    with open(partial, "w", newline="") as file:
        csv.writer(file).writerows([header, *kept] if header else [])
    os.replace(partial, path)
    return header


def require_packages(config: Config) -> None:
    """Raise SaltusError if an optional package that the configuration needs is missing."""
    if config.wandb:
        try:
            import wandb  # noqa: F401
        except ImportError:
            raise SaltusError("--wandb needs the wandb package: pip install 'saltus[wandb]'") from None


def _wandb_run(run_dir: Path, config: Config) -> Any:
    import wandb

    name = run_dir.resolve().name
    return wandb.init(project="saltus", dir=run_dir, id=name, name=name, config=config.to_dict(), resume="allow")

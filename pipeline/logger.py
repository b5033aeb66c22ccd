"""Logging of a run: display, tables, messages.txt, TensorBoard, Weights & Biases."""

from __future__ import annotations

import io
import os
import socket
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline import files
from pipeline.config import Config
from pipeline.display import Display
from pipeline.file_names import EPISODES, EVALUATIONS, MESSAGES, METRICS, TENSORBOARD
from pipeline.run_file import Folder, RunFile
from pipeline.tables import Table, read_table
from saltus.errors import SaltusError


class Logger:
    """Writes rows of numbers to a run's directory and displays progress.

    No error of a file, of Weights & Biases or of the display ends the run. Rows that cannot be written are written
    later, as soon as they can be.

    Args:
        run_dir: the run's directory. Existing tables are continued; their rows after `env_steps` are dropped.
        config: the run's configuration.
        env_steps: env steps done so far.
        console: displays progress.
        evaluation_pending: the evaluation at `env_steps` will be done again, so its row is dropped as well.

    Raises:
        SaltusError: Weights & Biases could not be started.
    """

    def __init__(
        self, run_dir: Path, config: Config, env_steps: int, console: Console, evaluation_pending: bool = False
    ):
        self._folder = Folder(run_dir)
        evaluated = env_steps - evaluation_pending
        self._kept = {METRICS: env_steps, EVALUATIONS: evaluated, EPISODES: evaluated}
        self._tables = {name: Table(self._folder, name, steps) for name, steps in self._kept.items()}
        self._messages = MessageFile(self._folder, MESSAGES)
        self._events = _open_events(self._folder, evaluated)
        if evaluation_pending:
            self._repeat_metrics(evaluated)
        self._wandb = _wandb_run(run_dir, config) if config.wandb else None
        self._display = Display(console, config.total_env_steps, config.minutes)
        self.phase, self.set_progress = self._display.phase, self._display.set_progress

    def __enter__(self) -> Logger:
        self._display.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()
        self._try_wandb("finish")
        self._display.__exit__()

    @property
    def _files(self) -> list[RunFile[Any]]:
        return [*self._tables.values(), self._messages, *([self._events] if self._events else [])]

    @property
    def run_dir(self) -> Path:
        """The run's directory, which may have been renamed."""
        return self._folder.path

    def earlier_rows(self, table: str) -> list[dict[str, float]]:
        """The rows that a table had when the logger was made; none if it cannot be read."""
        with suppress(OSError):  # reported by the table
            rows = read_table(self._tables[table].path)
            return [row for row in rows if row["env_steps"] <= self._kept[table]]
        return []

    def sync(self) -> None:
        """Make the files survive a power cut."""
        for file in self._files:
            file.sync()

    def say(self, message: str) -> None:
        """Print a line, and keep it in messages.txt."""
        self._display.say(message)
        self._messages.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")

    def metrics(self, row: Mapping[str, float]) -> None:
        """Write a row of training metrics."""
        self._write(METRICS, "train", row)
        self._display.show(row)
        self._display.print_progress(int(row["env_steps"]))

    def evaluation(self, row: Mapping[str, float], summary: str, episodes: Sequence[Mapping[str, float]] = ()) -> None:
        """Write a row of evaluation results, and those of its episodes."""
        self._write(EVALUATIONS, "evaluation", row)
        self._tables[EPISODES].append(*episodes)
        self._display.show({"evaluation": row["return_mean"]})
        self.say(f"evaluation at {int(row['env_steps']):,} env steps, {row['seconds']:.0f} s: {summary}")

    def _write(self, table: str, prefix: str, row: Mapping[str, float]) -> None:
        self._tables[table].append(row)
        step, scalars = _scalars(prefix, row)
        if self._events is not None:
            self._events.append_scalars(step, scalars)
        self._try_wandb("log", scalars, step=step)

    def _repeat_metrics(self, env_steps: int) -> None:
        """Write the metrics after `env_steps` to TensorBoard's file, whose start drops all scalars after them."""
        for row in self.earlier_rows(METRICS):
            if row["env_steps"] > env_steps and self._events is not None:
                self._events.append_scalars(*_scalars("train", row))

    def _try_wandb(self, method: str, *args: Any, **options: Any) -> None:
        """Call a method of the run at Weights & Biases; after an error, warn and use it no more."""
        if self._wandb is None:
            return
        try:
            getattr(self._wandb, method)(*args, **options)
        except Exception as error:  # wandb's errors have no common type
            self._wandb = None
            warnings.warn(f"Weights & Biases failed: {error}. The run continues without it", stacklevel=2)


class SilentLogger(Logger):
    """The logger of a rank that leaves files and display to rank 0."""

    def __init__(self, run_dir: Path):
        self._folder = Folder(run_dir)
        ignore: Any = lambda _: None  # noqa: E731
        self.phase = self.set_progress = ignore

    def __enter__(self) -> SilentLogger:
        return self

    def __exit__(self, *_: object) -> None: ...

    def earlier_rows(self, table: str) -> list[dict[str, float]]:
        return []

    def say(self, message: str) -> None: ...

    def sync(self) -> None: ...

    def metrics(self, row: Mapping[str, float]) -> None: ...

    def evaluation(
        self, row: Mapping[str, float], summary: str, episodes: Sequence[Mapping[str, float]] = ()
    ) -> None: ...


def _scalars(prefix: str, row: Mapping[str, float]) -> tuple[int, dict[str, float]]:
    """The env steps of a row, and its other numbers by their names in TensorBoard."""
    return int(row["env_steps"]), {f"{prefix}/{name}": value for name, value in row.items() if name != "env_steps"}


class MessageFile(RunFile[str]):
    """Lines of text, which a resumed run continues; it repeats those of steps that it repeats."""

    def _write(self, items: list[str]) -> None:
        files.append(self.path, "".join(items).encode())


class EventFile(RunFile[bytes]):
    """A TensorBoard file of scalars, which replace those of earlier files after `env_steps`.

    Unlike PyTorch's SummaryWriter it has no thread, and no error of the file ends the run.
    """

    def __init__(self, folder: Folder, env_steps: int):
        from tensorboard.compat.proto.event_pb2 import SessionLog

        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        super().__init__(folder, f"{TENSORBOARD}/{name}")
        start = SessionLog(status=SessionLog.START)
        self._header = _event(env_steps + 1, file_version="brain.Event:2") + _event(env_steps + 1, session_log=start)
        self.append(b"")

    def append_scalars(self, env_steps: int, scalars: Mapping[str, float]) -> None:
        """Write scalars by name."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self.append(_event(env_steps, summary=Summary(value=values)))

    def _write(self, items: list[bytes]) -> None:
        self.path.parent.mkdir(exist_ok=True)
        header = [] if self.path.exists() else [self._header]
        files.append(self.path, b"".join([*header, *items]))


def _event(step: int, **content: Any) -> bytes:
    """A record of a TensorBoard file."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    record = io.BytesIO()
    RecordWriter(record).write(Event(wall_time=time.time(), step=step, **content).SerializeToString())
    return record.getvalue()


def _open_events(folder: Folder, env_steps: int) -> EventFile | None:
    try:
        return EventFile(folder, env_steps)
    except Exception as error:  # a tensorboard or protobuf that does not work
        warnings.warn(f"TensorBoard does not work: {error}. The run continues without it", stacklevel=2)
        return None


def require_packages(config: Config) -> None:
    """Raise SaltusError if an optional package that the configuration needs is missing."""
    if config.wandb:
        try:
            import wandb  # noqa: F401
        except ImportError:
            raise SaltusError("--wandb needs the wandb package: pip install -c constraints.txt -e '.[wandb]'") from None


def _wandb_run(run_dir: Path, config: Config) -> Any:
    import wandb

    name = run_dir.resolve().name
    try:
        return wandb.init(project="saltus", dir=run_dir, id=name, name=name, config=config.to_dict(), resume="allow")
    except Exception as error:  # wandb's errors have no common type
        raise SaltusError(
            f"Weights & Biases could not be started: {error}. Log in with `wandb login`, or set WANDB_MODE=offline"
        ) from error

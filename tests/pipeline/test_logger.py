"""The logger: no file, summary or service that fails ends a run."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.figure
import pytest
from pipeline_helpers import read_csv, small_config
from rich.console import Console
from run_helpers import quiet_console, train_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.logger import Logger
from pipeline.plot import learning_curve
from pipeline.stored_run import open_run
from pipeline.train import train
from saltus import SaltusError


@pytest.fixture(autouse=True, scope="module")
def blank_learning_curves() -> None:
    """Learning curves are drawn here."""


def row(env_steps: int) -> dict[str, float]:
    return {"env_steps": env_steps, "return_mean": env_steps / 2, "seconds": 1.0}


def events(run_dir: Path) -> list[tuple[int, float]]:
    found = EventAccumulator(str(run_dir / "tensorboard"))
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars("evaluation/return_mean")]


def logger(run_dir: Path, env_steps: int = 0, **settings: Any) -> Logger:
    return Logger(run_dir, small_config(**settings), env_steps, quiet_console())


LOSSES: dict[str, Callable[[Path], object]] = {
    "TensorBoard's folder": lambda run_dir: shutil.rmtree(run_dir / "tensorboard"),
    "TensorBoard's files": lambda run_dir: [path.unlink() for path in (run_dir / "tensorboard").iterdir()],
    "a table": lambda run_dir: (run_dir / "evaluations.csv").unlink(),
}


@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)
def test_lost_files_are_written_again(lose: Callable[[Path], object], tmp_path: Path) -> None:
    with warnings.catch_warnings(), logger(tmp_path) as log:
        warnings.simplefilter("error")
        log.evaluation(row(10), "")
        lose(tmp_path)
        log.evaluation(row(20), "")
    assert events(tmp_path)[-1] == (20, 10.0)
    assert read_csv(tmp_path / "evaluations.csv")[-1]["env_steps"] == "20"


def test_log_keeps_what_was_said(tmp_path: Path) -> None:
    for number in (1, 2):
        with logger(tmp_path) as log:
            log.say(f"session {number}")
            log.evaluation(row(10), "good")
    lines = (tmp_path / "messages.txt").read_text().splitlines()
    datetime.strptime(lines[0][:19], "%Y-%m-%d %H:%M:%S")
    evaluation = "evaluation at 10 env steps, 1 s: good"
    assert [line[20:] for line in lines] == ["session 1", evaluation, "session 2", evaluation]


@pytest.mark.parametrize("moved", [True, False], ids=["renamed", "removed"])
def test_run_whose_directory_is_renamed_or_removed_is_saved(moved: bool, tmp_path: Path) -> None:
    config, run_dir, other = small_config(), tmp_path / "run", tmp_path / "other"
    run = train_run(config, run_dir, until=0)

    def stopping() -> bool:
        if run.env_steps == 152 and run_dir.exists():
            os.replace(run_dir, other) if moved else shutil.rmtree(run_dir)
        return run.env_steps == 252

    with warnings.catch_warnings(record=True) as caught, logger(run_dir) as log:
        warnings.simplefilter("always")
        train(run, log, stopping)
    messages = [str(warning.message) for warning in caught]
    if moved:
        assert messages == [f"the run's directory {run_dir} is now {other}: the run continues there"]
        assert not run_dir.exists()
        assert run.run_dir == other
        assert open_run(other)[1]["state"]["env_steps"] == 252
        assert [row["env_steps"] for row in read_csv(other / "metrics.csv")] == ["100", "200"]
    else:
        assert messages[0].startswith(
            f"{run_dir / 'metrics.csv'} cannot be written: No such file or directory. The run"
        )
        assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"000000000200.pt", "000000000252.pt"}
        assert [row["env_steps"] for row in read_csv(run_dir / "metrics.csv")] == ["200"]


def test_full_disk_delays_the_rows_of_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with logger(tmp_path) as log:
        log.evaluation(row(5), "")
        with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            patch.setattr(os, "write", full)
            log.evaluation(row(10), "")
        names = [str(one.message).partition(" cannot be written: No space left on device.")[0] for one in caught]
        assert names[0] == str(tmp_path / "evaluations.csv")
        assert names[1].startswith(str(tmp_path / "tensorboard" / "events.out.tfevents."))
        log.evaluation(row(20), "")
    assert events(tmp_path) == [(5, 2.5), (10, 5.0), (20, 10.0)]
    assert [one["env_steps"] for one in read_csv(tmp_path / "evaluations.csv")] == ["5", "10", "20"]


def test_tables_are_synced_for_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    with logger(tmp_path) as log:
        log.evaluation(row(10), "")
        monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}")))
        log.sync()
    assert str(tmp_path / "evaluations.csv") in synced


def test_tensorboard_that_does_not_work_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.warns(UserWarning, match=r"TensorBoard does not work: .*The run continues without it"):
        log = logger(tmp_path)
    with log:
        log.evaluation(row(10), "")
    assert len(read_csv(tmp_path / "evaluations.csv")) == 1


class BrokenWandb(SimpleNamespace):
    """Fails in one method."""

    def __init__(self, fails: str):
        self.calls: list[str] = []
        self._fails = fails

    def _call(self, name: str) -> BrokenWandb:
        self.calls.append(name)
        if name == self._fails:
            raise ConnectionError("no network")
        return self

    def init(self, **_: Any) -> BrokenWandb:
        return self._call("init")

    def log(self, *_: Any, **__: Any) -> BrokenWandb:
        return self._call("log")

    def finish(self) -> BrokenWandb:
        return self._call("finish")


@pytest.mark.parametrize(("fails", "calls"), [("log", ["init", "log"]), ("finish", ["init", "log", "log", "finish"])])
def test_failing_wandb_is_left_out(
    fails: str, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = BrokenWandb(fails)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with warnings.catch_warnings(record=True) as caught, logger(tmp_path, wandb=True) as log:
        warnings.simplefilter("always")
        log.evaluation(row(10), "")
        log.evaluation(row(20), "")
    messages = [str(warning.message) for warning in caught]
    assert messages == ["Weights & Biases failed: no network. The run continues without it"]
    assert wandb.calls == calls
    assert len(read_csv(tmp_path / "evaluations.csv")) == 2


def test_wandb_that_does_not_start_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", BrokenWandb("init"))
    with pytest.raises(SaltusError, match=r"could not be started: no network\. .*`wandb login`.*WANDB_MODE=offline"):
        logger(tmp_path, wandb=True)


def test_progress_line_shows_values_since_the_last_row_alone(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    values = {"env_steps": 50, "utd_ratio": 0.1, "env_steps_per_second": 100.0, "gradient_steps_per_second": 25.0}
    with Logger(tmp_path, small_config(), 0, console) as log:
        log.metrics(values)
    assert console.file.getvalue() == "50 of 400 env steps: env steps/s 100, gradient steps/s 25\n"


@pytest.mark.parametrize(
    ("target", "name", "error"),
    [
        (matplotlib.figure.Figure, "savefig", OSError(errno.ENOSPC, "No space left on device")),
        (os, "replace", PermissionError(errno.EACCES, "Permission denied")),
        (matplotlib.figure.Figure, "suptitle", RuntimeError("no font")),
    ],
)
def test_learning_curve_that_cannot_be_drawn_is_a_warning(
    target: Any, name: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {**row(10), "return_low": 4.0, "return_high": 6.0}
    with logger(tmp_path) as log:
        log.evaluation(values, "")

    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(target, name, fail)
        with pytest.warns(UserWarning, match=r"learning_curve.png cannot be written: "):
            assert learning_curve(tmp_path, "title") is None
    assert not (tmp_path / "learning_curve.png").exists()
    assert learning_curve(tmp_path, "title") == tmp_path / "learning_curve.png"


def test_a_single_evaluation_shows_in_the_learning_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[matplotlib.figure.Figure] = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    with logger(tmp_path) as log:
        log.evaluation({**row(10), "return_low": 4.0, "return_high": 6.0}, "")
    learning_curve(tmp_path, "title")
    for axes in figures[0].axes:
        assert [line.get_marker() for line in axes.lines] == ["."]
        assert axes.get_xlim()[0] == 0
        assert axes.get_xlim()[1] > axes.lines[0].get_xdata()[0]

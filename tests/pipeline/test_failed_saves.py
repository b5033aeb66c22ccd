"""A checkpoint that cannot be written does not end a run, unless it is the first or the last one."""

from __future__ import annotations

import errno
import io
import os
import re
from pathlib import Path
from typing import Any

import pytest
from pipeline_helpers import differing, small_config
from rich.console import Console

from pipeline import checkpoint, session
from pipeline.checkpoint import CheckpointError
from pipeline.policy import load_policy

CONFIG = small_config(total_env_steps=160, checkpoint_every=40, eval_every=80, log_every=40)
FULL = os.strerror(errno.ENOSPC)


def fill_disk(monkeypatch: pytest.MonkeyPatch, *env_steps: int) -> None:
    """Let the writing of checkpoints at these env steps fail."""
    plain = checkpoint.write_file

    def write_file(path: Path, config: dict[str, Any], state: dict[str, Any]) -> None:
        if path.stem.isdigit() and int(path.stem) in env_steps:
            raise OSError(errno.ENOSPC, FULL)
        plain(path, config, state)

    monkeypatch.setattr(checkpoint, "write_file", write_file)


def saved(run_dir: Path) -> list[int]:
    return [int(path.stem) for path in checkpoint.find(run_dir / "checkpoints")]


def last_state(run_dir: Path) -> dict[str, Any]:
    state = checkpoint.load_last(run_dir / "checkpoints")["state"]
    return {name: value for name, value in state.items() if name not in ("seconds", "logged")}


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=400)


def test_the_run_continues_warns_once_and_says_so_at_the_end(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.train_run(CONFIG, tmp_path / "expected", Console(file=io.StringIO()))
    fill_disk(monkeypatch, 40, 80)
    session.train_run(CONFIG, tmp_path / "run", console)
    lines = console.file.getvalue().splitlines()
    (warning,) = [line for line in lines if "could not write" in line]
    folder = tmp_path / "run" / "checkpoints"
    assert warning == (
        f"warning: could not write checkpoint {folder}/000000000040.pt: {FULL}. The last good checkpoint is "
        f"{folder}/000000000000.pt. Make room on the disk. The run continues, and writes its next checkpoint if it can"
    )
    assert warning in (tmp_path / "run" / "messages.txt").read_text()
    assert "2 checkpoints of this session could not be written; the last checkpoint was" in lines
    assert saved(tmp_path / "run") == [120, 160]
    assert differing(last_state(tmp_path / "run"), last_state(tmp_path / "expected")) == []


def test_each_outage_is_warned_of(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(monkeypatch, 40, 120)
    session.train_run(CONFIG, tmp_path / "run", console)
    warnings = re.findall(
        r"^warning: could not write checkpoint \S*/0*(\d+)\.pt", console.file.getvalue(), re.MULTILINE
    )
    assert warnings == ["40", "120"]


def test_the_last_one_is_an_error_from_which_the_run_resumes(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.train_run(CONFIG, tmp_path / "expected", Console(file=io.StringIO()))
    message = rf"000000000160\.pt: {FULL}\. The last good checkpoint is .*80\.pt\. Make room on the disk, then resume"
    with monkeypatch.context() as patch:
        fill_disk(patch, 120, 160)
        with pytest.raises(CheckpointError, match=f"^could not write checkpoint .*{message} the run$"):
            session.train_run(CONFIG, tmp_path / "run", console)
    text = console.file.getvalue()
    assert re.search(r"\nended after \d+ s, because a checkpoint could not be written; learning curve: ", text)
    assert saved(tmp_path / "run") == [40, 80]
    assert load_policy(tmp_path / "run").env_steps in (80, 160), "the best evaluation's"
    session.resume_run(tmp_path / "run", None, False, console, restarted=False)
    assert differing(last_state(tmp_path / "run"), last_state(tmp_path / "expected")) == []


def test_the_first_one_ends_the_run(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(monkeypatch, 0)
    with pytest.raises(
        CheckpointError, match=r"There is no earlier one\. Make room on the disk, then start the run ag"
    ):
        session.train_run(CONFIG, tmp_path / "run", console)
    assert saved(tmp_path / "run") == []


def test_a_folder_that_cannot_be_read_either_is_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(checkpoint, "write_file", refuse)
    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(CheckpointError, match=r"Permission denied\. There is no earlier one\. Remove the cause$"):
        checkpoint.save(tmp_path, 1, {}, {})

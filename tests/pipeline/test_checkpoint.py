"""Checkpoints: atomic writes, refusal of damage, no execution of pickled code."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_helpers import CONFIG, names, state
from pipeline_helpers import differing

from pipeline import checkpoint
from pipeline.checkpoint import CheckpointError
from saltus.versions import versions


def test_loaded_equals_saved(tmp_path: Path) -> None:
    saved = state()
    path = checkpoint.save(tmp_path, 123, CONFIG, saved)
    content = checkpoint.load(path, CONFIG)
    assert differing(content["state"], saved) == []
    assert content["config"] == CONFIG
    assert content["versions"] == versions()
    assert {"saltus", "torch", "mujoco"} <= content["versions"].keys()


def test_last_two_are_kept_in_order_of_env_steps(tmp_path: Path) -> None:
    folder = tmp_path / "created" / "on" / "demand"
    for env_steps in (0, 999, 10_000, 2_000_000):
        path = checkpoint.save(folder, env_steps, CONFIG, state())
        assert checkpoint.find(folder)[-1] == path
    assert names(folder) == ["000000010000.pt", "000002000000.pt"]
    checkpoint.load(path)


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    for seed in (0, 1):
        path = checkpoint.save(tmp_path, 5, CONFIG, state(seed))
    assert names(tmp_path) == [path.name]
    assert differing(checkpoint.load(path)["state"], state(1)) == []


def test_checkpoint_that_a_run_in_progress_deletes_is_replaced_by_its_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, 1, CONFIG, state())
    plain, steps = torch.load, iter([2, 3])

    def load(path: Path, **options: Any) -> Any:
        for env_steps in steps:
            checkpoint.save(tmp_path, env_steps, CONFIG, state())
        return plain(path, **options)

    monkeypatch.setattr(torch, "load", load)
    assert checkpoint.load_last(tmp_path)["file"] == tmp_path / "000000000003.pt"


FOREIGN = [
    "keep_a.pt", "keep.partial", "best.pt", "1.pt", "000000000002.pt.bak", "000000000002 (copy).pt", "last.pt",
    "x000000000009.pt", "notes.txt",
]  # fmt: skip


def test_only_own_names_are_found_and_pruned(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, CONFIG, state())
    for name in FOREIGN:
        (tmp_path / name).write_bytes((tmp_path / "000000000001.pt").read_bytes())
    (tmp_path / "000000000900.pt").mkdir()
    for env_steps in (2, 3, 4):
        (tmp_path / "000000000003.partial").touch()
        path = checkpoint.save(tmp_path, env_steps, CONFIG, state())
        assert checkpoint.find(tmp_path)[-1] == path
    assert names(tmp_path) == sorted([*FOREIGN, "000000000003.pt", "000000000004.pt", "000000000900.pt"])


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.EBUSY], ids=os.strerror)
def test_old_checkpoint_that_cannot_be_deleted_is_a_warning(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name == "000000000001.pt":
            raise OSError(error, os.strerror(error))
        plain(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for env_steps in (1, 2, 3, 4):
            checkpoint.save(tmp_path, env_steps, CONFIG, state())
    message = f"old checkpoints in {tmp_path} cannot be deleted: {os.strerror(error)}. The run continues"
    assert [str(one.message)[: len(message)] for one in caught] == [message]
    assert names(tmp_path) == ["000000000001.pt", "000000000003.pt", "000000000004.pt"]


@pytest.mark.parametrize("vanished", ["the saved one", "an old one", "the folder"])
def test_files_that_vanish_meanwhile_do_not_matter(
    vanished: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    for env_steps in (1, 2):
        checkpoint.save(folder, env_steps, CONFIG, state())
    plain = checkpoint.find

    def find(folder: Path) -> list[Path]:
        found = plain(folder)
        if vanished == "the folder":
            shutil.rmtree(folder)
            return found
        gone = found[-1] if vanished == "the saved one" else found[0]
        gone.unlink()
        return [path for path in found if path != gone] if vanished == "the saved one" else found

    monkeypatch.setattr(checkpoint, "find", find)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert checkpoint.save(folder, 3, CONFIG, state()) == folder / "000000000003.pt"
    assert len(caught) == (vanished == "the folder")
    left = {"the saved one": ["000000000002.pt"], "an old one": ["000000000002.pt", "000000000003.pt"]}
    assert vanished == "the folder" or names(folder) == left[vanished]


def test_checkpoints_are_ordered_by_number(tmp_path: Path) -> None:
    for env_steps in (999_999_999_999, 1_000_000_000_000):
        path = checkpoint.save(tmp_path, env_steps, CONFIG, state())
    assert checkpoint.find(tmp_path)[-1] == path


def test_writing_follows_no_symbolic_link(tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "checkpoints"
    victim.write_text("precious")
    folder.mkdir()
    for name in ("000000000001.pt", "000000000001.partial", "000000000000.partial"):
        (folder / name).symlink_to(victim)
    path = checkpoint.save(folder, 1, CONFIG, state())
    assert victim.read_text() == "precious"
    assert not path.is_symlink()
    assert names(folder) == [path.name]


def test_nan_in_the_configuration_is_equal_to_itself(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, CONFIG | {"task_options": {"x": float("nan")}}, state())
    checkpoint.load(path, CONFIG | {"task_options": {"x": float("nan")}})
    with pytest.raises(CheckpointError, match="task_options"):
        checkpoint.load(path, CONFIG | {"task_options": {"x": 1.0}})


def test_a_setting_that_an_earlier_version_lacked_had_its_value(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"seed": 0}, {})
    checkpoint.load_last(tmp_path, {"seed": 0, "alpha_loss": "log"})
    with pytest.raises(CheckpointError, match="written with alpha_loss 'log' instead of 'exp'"):
        checkpoint.load_last(tmp_path, {"seed": 0, "alpha_loss": "exp"})


def test_path_of_the_tasks_file_may_differ(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, CONFIG | {"task": "/a/plain.py:Swing"}, state())
    checkpoint.load(path, CONFIG | {"task": "/b/plain.py:Swing"})


@pytest.mark.parametrize("error", [OSError("no space left"), RuntimeError("unexpected pos")])
def test_failed_write_keeps_earlier_checkpoints_and_names_the_last(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    for env_steps in (1, 2):
        checkpoint.save(tmp_path, env_steps, CONFIG, state(env_steps))

    def write_half(_content: object, file: Any) -> None:
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(CheckpointError, match=f"could not write .*000000000003.*{error}") as refusal:
        checkpoint.save(tmp_path, 3, CONFIG, state())
    assert f"The last good checkpoint is {tmp_path / '000000000002.pt'}" in str(refusal.value)
    assert names(tmp_path) == ["000000000001.pt", "000000000002.pt"]
    assert differing(checkpoint.load(checkpoint.find(tmp_path)[-1])["state"], state(2)) == []


def test_interrupt_while_writing_is_no_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch raises a RuntimeError when a write to the file is interrupted."""
    checkpoint.save(tmp_path, 1, CONFIG, state())

    def interrupted(_content: object, _file: Any) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RuntimeError("unexpected pos")  # noqa: B904 - the context is what torch leaves

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, 2, CONFIG, state())
    assert names(tmp_path) == ["000000000001.pt"]


def test_failed_first_write_says_that_there_is_no_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("read-only")))
    with pytest.raises(CheckpointError, match=r"read-only.*no earlier one\. Remove the cause$"):
        checkpoint.save(tmp_path, 3, CONFIG, state())
    assert names(tmp_path) == []


class Killed(BaseException):
    """Simulates a kill: no code catches it to clean up."""


@pytest.mark.parametrize("moment", ["writing", "syncing", "renaming"])
def test_kill_during_a_write_keeps_earlier_checkpoints(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for env_steps in (1, 2):
        checkpoint.save(tmp_path, env_steps, CONFIG, state(env_steps))

    def killed(_first: object, file: Any = None, *_rest: object) -> None:
        if moment == "writing":
            file.write(b"half of it")
            file.flush()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(
            *{"writing": (torch, "save"), "syncing": (os, "fsync"), "renaming": (os, "replace")}[moment], killed
        )
        with pytest.raises(Killed):
            checkpoint.save(tmp_path, 3, CONFIG, state(3))
    assert "000000000003.partial" in names(tmp_path)
    assert [path.name for path in checkpoint.find(tmp_path)] == ["000000000001.pt", "000000000002.pt"]
    assert differing(checkpoint.load(checkpoint.find(tmp_path)[-1])["state"], state(2)) == []
    checkpoint.save(tmp_path, 3, CONFIG, state(3))
    assert names(tmp_path) == ["000000000002.pt", "000000000003.pt"]


def test_full_disk_is_reported_and_the_last_good_checkpoint_kept(tmp_path: Path) -> None:
    """A limit on file sizes simulates the full disk; Python ignores its signal, SIGXFSZ."""
    checkpoint.save(tmp_path, 1, CONFIG, {"weights": torch.zeros(1000)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"File too large.*Make room on the disk") as refusal:
            checkpoint.save(tmp_path, 2, CONFIG, {"weights": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"The last good checkpoint is {tmp_path / '000000000001.pt'}" in str(refusal.value)
    assert names(tmp_path) == ["000000000001.pt"]
    checkpoint.load(tmp_path / "000000000001.pt", CONFIG)

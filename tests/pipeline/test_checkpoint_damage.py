"""Damaged and foreign checkpoints: refused, and their code not executed."""

from __future__ import annotations

import errno
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_helpers import CONFIG, names, state
from pipeline_helpers import differing, small_config

from pipeline import checkpoint
from pipeline.checkpoint import CheckpointError, DamagedCheckpointError


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_checkpoint_is_refused_and_the_previous_used(tmp_path: Path, fraction: float) -> None:
    checkpoint.save(tmp_path, 1, CONFIG, state())
    path = checkpoint.save(tmp_path, 2, CONFIG, state())
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(CheckpointError, match=r"000000000002\.pt is truncated or corrupted") as refusal:
        checkpoint.load(path, CONFIG)
    assert isinstance(refusal.value, DamagedCheckpointError)
    with pytest.warns(UserWarning, match=r"corrupted.*The one before is used instead: 000000000001\.pt"):
        assert checkpoint.load_last(tmp_path, CONFIG)["file"] == tmp_path / "000000000001.pt"


def test_without_an_intact_checkpoint_a_new_run_is_advised(tmp_path: Path) -> None:
    for env_steps in (1, 2):
        checkpoint.save(tmp_path, env_steps, CONFIG, state()).write_bytes(b"damaged")
    with (
        pytest.warns(UserWarning, match=r"000000000002\.pt is truncated"),
        pytest.raises(DamagedCheckpointError, match=r"000000000001\.pt is truncated.*no other checkpoint: start"),
    ):
        checkpoint.load_last(tmp_path, CONFIG)


UNREADABLE = {
    "permission": PermissionError(errno.EACCES, "Permission denied"),
    "disk": OSError(errno.EIO, "Input/output error"),
    "network": OSError(errno.ESTALE, "Stale file handle"),
    "open files": OSError(errno.EMFILE, "Too many open files"),
    "removed": FileNotFoundError(errno.ENOENT, "No such file or directory"),
    "memory": MemoryError(),
    "memory map": RuntimeError("unable to mmap 123 bytes from file <x.pt>: Cannot allocate memory (12)"),
}


@pytest.mark.parametrize("reader", ["open", "torch.load"])
@pytest.mark.parametrize("error", UNREADABLE.values(), ids=UNREADABLE)
def test_checkpoint_that_cannot_be_read_is_not_called_damaged(
    tmp_path: Path, reader: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    for env_steps in (1, 2):
        path = checkpoint.save(tmp_path, env_steps, CONFIG, state())

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(*{"open": (zipfile, "ZipFile"), "torch.load": (torch, "load")}[reader], fail)
        with pytest.raises(CheckpointError) as refusal:
            checkpoint.load_last(tmp_path, CONFIG)
    text = str(refusal.value)
    assert not isinstance(refusal.value, DamagedCheckpointError)
    assert f"{path} could not be read: {str(error) or 'MemoryError'}" in text
    assert "keep the file" in text
    assert "corrupted" not in text
    assert "elete" not in text
    assert checkpoint.load_last(tmp_path, CONFIG)["file"] == path


def test_unreadable_folder_is_not_taken_for_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, 1, CONFIG, state())
    monkeypatch.setattr(os, "listdir", lambda _: (_ for _ in ()).throw(PermissionError(errno.EACCES, "denied")))
    with pytest.raises(PermissionError):
        checkpoint.find(tmp_path)


@pytest.mark.parametrize("resumed_at", [2, 3, 4])
def test_damaged_newer_checkpoints_do_not_displace_new_ones(tmp_path: Path, resumed_at: int) -> None:
    checkpoint.save(tmp_path, 1, CONFIG, state())
    checkpoint.save(tmp_path, 5, CONFIG, state()).write_bytes(b"damaged")
    path = checkpoint.save(tmp_path, resumed_at, CONFIG, state())
    assert checkpoint.load_last(tmp_path)["file"] == path
    assert names(tmp_path) == ["000000000001.pt", path.name]


def data_offsets(path: Path) -> list[int]:
    """An offset in the middle of every entry of the archive."""
    with zipfile.ZipFile(path) as archive:
        content = path.read_bytes()
        parts = [(archive.read(part), part.filename) for part in archive.infolist()]
    return [content.index(data) + len(data) // 2 for data, _ in parts if data]


def test_flipped_bit_in_any_entry_is_detected(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, CONFIG, state())
    content = path.read_bytes()
    offsets = data_offsets(path)
    assert len(offsets) >= 8
    for offset in offsets:
        damaged = bytearray(content)
        damaged[offset] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(DamagedCheckpointError, match=r"000000000001\.pt is (truncated or )?corrupted"):
            checkpoint.load(path, CONFIG)


@pytest.mark.parametrize("seed", range(3))
def test_random_damage_is_refused_or_harmless(tmp_path: Path, seed: int) -> None:
    saved = state()
    path = checkpoint.save(tmp_path, 1, CONFIG, saved)
    content, generator = path.read_bytes(), random.Random(seed)
    for _ in range(60):
        damaged, start = bytearray(content), generator.randrange(len(content))
        for offset in range(start, min(start + generator.choice([1, 1, 4, 64]), len(content))):
            damaged[offset] ^= generator.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            loaded = checkpoint.load(path, CONFIG)
        except CheckpointError:
            continue
        assert differing(loaded["state"], saved) == [], f"damage at {start} went unnoticed"


def test_checkpoint_of_another_format_names_the_version_to_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 77)
        patch.setattr(checkpoint, "versions", lambda: {"saltus": "9.1"})
        path = checkpoint.save(tmp_path, 1, CONFIG, state())
    with pytest.raises(CheckpointError, match=r"by saltus 9\.1 in format 77.* reads format \d+: use saltus 9\.1"):
        checkpoint.load(path, CONFIG)


@pytest.mark.parametrize(
    "content",
    [
        {"weights": torch.zeros(3)},
        torch.zeros(3),
        [1, 2],
        {"format": checkpoint.FORMAT},
        {"format": checkpoint.FORMAT, "versions": {}, "config": [], "state": {}},
    ],
)
def test_other_file_of_torch_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "000000000001.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"000000000001\.pt is not a checkpoint of saltus: give a file"):
        checkpoint.load(path, CONFIG)


def test_checkpoint_of_another_config_is_refused_with_the_differences_alone(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, CONFIG, state())
    with pytest.raises(CheckpointError, match="belongs to another run") as refusal:
        checkpoint.load(path, {**CONFIG, "seed": 1, "actor_hidden": [16]})
    text = str(refusal.value)
    assert "seed 0 instead of 1" in text
    assert "actor_hidden [16, 16] instead of [16]" in text
    assert "gamma" not in text


@pytest.mark.parametrize(
    ("overrides", "differences"),
    [
        ({"n_step": 3}, "n_step 1 instead of 3"),
        ({"reward_scaling": "bounded"}, "reward_scaling 'none' instead of 'bounded'"),
        ({"normalize_observations": True}, "normalize_observations False instead of True"),
        ({"dropout": 0.1, "critic_norm": "layer"}, "critic_norm 'none' instead of 'layer', dropout 0.0 instead of 0.1"),
    ],
)
def test_checkpoint_of_another_recipe_is_refused_with_the_differences(
    tmp_path: Path, overrides: dict[str, Any], differences: str
) -> None:
    path = checkpoint.save(tmp_path, 1, small_config(preset="sac").to_dict(), state())
    with pytest.raises(CheckpointError, match="belongs to another run") as refusal:
        checkpoint.load(path, small_config(preset="sac", **overrides).to_dict())
    assert str(refusal.value).endswith(f"it was written with {differences}")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + b"\0" * 100, os.urandom(1000)])
def test_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "000000000001.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"000000000001\.pt is truncated or corrupted"):
        checkpoint.load(path)


class Payload:
    """Creates a file when unpickled."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


@pytest.mark.parametrize("how", ["torch", "legacy torch", "pickle"])
def test_pickled_code_is_not_executed(tmp_path: Path, how: str) -> None:
    path, mark = tmp_path / "000000000001.pt", tmp_path / "executed"
    content = {"format": checkpoint.FORMAT, "versions": {}, "config": CONFIG, "state": Payload(mark)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(CheckpointError):
        checkpoint.load(path, CONFIG)
    assert not mark.exists()

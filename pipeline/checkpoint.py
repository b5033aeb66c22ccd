"""Checkpoints: the whole state of a run in one file, written atomically, read without executing pickled code."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from saltus.errors import SaltusError
from saltus.versions import versions

FORMAT = 4
KEEP = 2


class CheckpointError(SaltusError):
    """A checkpoint that cannot be written or read."""


def save(folder: Path, env_steps: int, config: dict[str, Any], state: dict[str, Any]) -> Path:
    """Write a checkpoint to `folder` atomically, then delete all but the last two.

    A kill or a full disk at any moment leaves the earlier checkpoints unchanged.

    Args:
        folder: created if it does not exist.
        env_steps: names the file.
        config: the run's configuration.
        state: tensors, numbers, strings and containers of them.

    Returns:
        The file.

    Raises:
        CheckpointError: the file could not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{env_steps:012d}.pt"
    partial = path.with_suffix(".partial")
    content = {"format": FORMAT, "versions": versions(), "config": config, "state": state}
    try:
        with open(partial, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync(folder)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        kept = find(folder)
        last = f"The last good checkpoint is {kept[-1]}" if kept else "There is no earlier one"
        cause = error.__context__ if isinstance(error.__context__, OSError) else error  # torch hides a full disk
        raise CheckpointError(
            f"could not write checkpoint {path}: {cause}. {last}. Make room on the disk, then resume the run"
        ) from error
    for old in [*find(folder)[:-KEEP], *folder.glob("*.partial")]:
        old.unlink()
    return path


def find(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    return sorted(folder.glob("*.pt"))


def load(path: Path, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read a checkpoint.

    Args:
        path: the file.
        config: the run's configuration, which must equal the checkpoint's.

    Returns:
        The content by name: ``"state"``, ``"config"``, ``"versions"``, ``"format"``. Tensors are memory-mapped.

    Raises:
        CheckpointError: a truncated or corrupted file, or one of another format or configuration.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # checks CRC-32s, which torch.load does not
        if damaged is not None:
            raise CheckpointError(f"checkpoint {path} is corrupted (in {damaged}). {_remedy(path)}")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"checkpoint {path} is truncated or corrupted: {error}. {_remedy(path)}") from error
    if not isinstance(content, dict) or "format" not in content:
        raise CheckpointError(f"{path} is not a checkpoint of saltus")
    if content["format"] != FORMAT:
        version = content.get("versions", {}).get("saltus", "another version")
        raise CheckpointError(
            f"checkpoint {path} was written by saltus {version} in format {content['format']}, and this version reads "
            f"format {FORMAT}: use saltus {version} for this run"
        )
    if config is not None and content["config"] != config:
        different = sorted(key for key in config if content["config"].get(key) != config[key])
        pairs = ", ".join(f"{key} {content['config'].get(key)!r} instead of {config[key]!r}" for key in different)
        raise CheckpointError(f"checkpoint {path} belongs to another run: it was written with {pairs}")
    return content


def _remedy(path: Path) -> str:
    others = [other for other in find(path.parent) if other != path]
    if not others:
        return "There is no other checkpoint: start the run again"
    return f"Delete it to resume from the previous one, {others[-1].name}"


def _sync(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

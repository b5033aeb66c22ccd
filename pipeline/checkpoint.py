"""Checkpoints: the whole state of a run in one file, written atomically, read without executing pickled code."""

from __future__ import annotations

import errno
import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from pipeline.config import LATER_SETTINGS
from pipeline.files import replacing
from saltus.errors import SaltusError, warn_once
from saltus.versions import versions

FORMAT = 4
KEEP = 2

_NAME = re.compile(r"\d{12,}\.pt")
_PART = re.compile(r"(\d{12,})\.rank\d+(?:\.([0-9a-f]+))?\.pt")
_PARTIAL = re.compile(r"\d{12,}(\.rank\d+(\.[0-9a-f]+)?)?\.partial")
_FOREIGN = (
    "{} is not a checkpoint of saltus: give a file that saltus wrote to a run's checkpoints/, and move other files out "
    "of that folder"
)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CheckpointError(SaltusError):
    """A checkpoint that cannot be written or read."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose content is truncated or fails its checksums."""


def save(folder: Path, env_steps: int, config: dict[str, Any], state: dict[str, Any]) -> Path:
    """Write a checkpoint to `folder` atomically, then delete all but it and the one before.

    A kill or a full disk at any moment leaves the earlier checkpoints unchanged. Files with other names are left alone.

    Args:
        folder: created if it does not exist.
        env_steps: names the file.
        config: the run's configuration.
        state: tensors, numbers, strings and containers of them; ``"save"``: the name of a save with parts.

    Returns:
        The file.

    Raises:
        CheckpointError: the file could not be written.
    """
    path = folder / f"{env_steps:012d}.pt"
    _write(path, config, state)
    _prune(folder, path, state.get("save"))
    return path


def save_part(folder: Path, env_steps: int, rank: int, config: dict[str, Any], state: dict[str, Any]) -> None:
    """Write the part of a checkpoint that is a rank's own, atomically. The checkpoint's file must follow.

    The file's name contains that of the save, so an earlier checkpoint of the same step stays valid until this one is
    complete.

    Raises:
        CheckpointError: the file could not be written.
    """
    _write(_part(folder / f"{env_steps:012d}.pt", rank, state["save"]), config, state)


def _part(path: Path, rank: int, save_name: str | None = None) -> Path:
    """The file of a rank's part of the checkpoint `path`; up to version 0.5 it had no name of a save."""
    return path.with_name(".".join([path.stem, f"rank{rank}", *([save_name] if save_name else []), "pt"]))


def _write(path: Path, config: dict[str, Any], state: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, config, state)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"could not write checkpoint {path}: {reason}. {_advice(path.parent, error)}") from error


def write_file(path: Path, config: dict[str, Any], state: dict[str, Any]) -> None:
    """Write a file that `load` reads, atomically.

    Raises:
        OSError: the file could not be written.
    """
    content = {"format": FORMAT, "versions": versions(), "config": config, "state": state}
    try:
        with replacing(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        if isinstance(error.__context__, OSError | KeyboardInterrupt):  # torch hides them
            raise error.__context__ from None
        if isinstance(error, OSError):
            raise
        raise OSError(str(error)) from error


def _advice(folder: Path, error: OSError) -> str:
    """Advice after a failed write."""
    kept: list[Path] = []
    with suppress(OSError):  # a folder that cannot be read either
        kept = find(folder)
    remedy = "Make room on the disk" if error.errno in _NO_SPACE else "Remove the cause"
    return f"{f'The last good checkpoint is {kept[-1]}' if kept else 'There is no earlier one'}. {remedy}"


def _prune(folder: Path, saved: Path, save_name: str | None) -> None:
    """Delete all checkpoints but `saved` and those before it that are kept, and partial files. Warn if that fails."""
    outdated: list[Path] = []
    with _warning_of_errors(folder):
        outdated = _outdated(folder, saved, save_name)
    for path in outdated:
        with _warning_of_errors(folder):
            path.unlink(missing_ok=True)


def _outdated(folder: Path, saved: Path, save_name: str | None) -> list[Path]:
    """The files that are not needed after `saved`, which may have been removed meanwhile.

    A checkpoint of a later step is one that could not be read: the run resumed from an earlier one.
    """
    found, env_steps = find(folder), int(saved.stem)
    earlier = [path for path in found if int(path.stem) < env_steps]
    later = [path for path in found if int(path.stem) > env_steps]
    outdated = earlier[: max(len(earlier) + 1 - KEEP, 0)] + later
    kept = {path.stem for path in found if path not in outdated} - {saved.stem}
    names = os.listdir(folder)
    partial = [folder / name for name in names if _PARTIAL.fullmatch(name)]
    parts = [match for name in names if (match := _PART.fullmatch(name))]
    unused = [part for part in parts if part[1] not in kept and part.groups() != (saved.stem, save_name)]
    return outdated + partial + [folder / part[0] for part in unused]


@contextmanager
def _warning_of_errors(folder: Path) -> Iterator[None]:
    """Turn an error into a warning: the checkpoint is saved, and the run need not end."""
    try:
        yield
    except OSError as error:
        warn_once(
            f"old checkpoints in {folder} cannot be deleted: {error.strerror}. The run continues, but they take up room"
        )


def find(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, in the order of their env steps; files with other names do not count.

    Raises:
        OSError: the folder cannot be read.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    paths = [folder / name for name in names if _NAME.fullmatch(name)]
    return sorted((path for path in paths if path.is_file()), key=lambda path: int(path.stem))


def load_last(folder: Path, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read the last checkpoint in `folder`; warn and read the one before if it is damaged.

    Args:
        folder: holds at least one checkpoint.
        config: see `load`.

    Raises:
        CheckpointError: see `load`; damage is raised only if no checkpoint is intact.
    """
    *earlier, path = find(folder)
    while True:
        try:
            return load(path, config)
        except DamagedCheckpointError as error:
            if not earlier:
                raise DamagedCheckpointError(f"{error}. There is no other checkpoint: start the run again") from error
            path = earlier.pop()
            warnings.warn(f"{error}. The one before is used instead: {path.name}", stacklevel=2)
        except CheckpointError:
            if path.exists() or not (found := find(folder)):
                raise
            *earlier, path = found  # a run in progress has deleted it, after writing others


def load_part(path: Path, rank: int, save_name: str | None) -> dict[str, Any]:
    """Read the state of a rank's part of the checkpoint `path`, which holds the name of its save.

    Raises:
        DamagedCheckpointError: a missing, truncated or corrupted file.
        CheckpointError: a file that cannot be read.
    """
    part = _part(path, rank, save_name)
    if not part.exists() and (unnamed := _part(path, rank)).exists():
        part = unnamed
    if not part.exists():
        raise DamagedCheckpointError(f"{part}, rank {rank}'s part of the checkpoint, is missing")
    return load(part)["state"]


def load(path: Path, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read a checkpoint.

    Args:
        path: the file.
        config: the run's configuration, which must equal the checkpoint's in all settings but the task's file.

    Returns:
        The content by name: ``"state"``, ``"config"``, ``"versions"``, ``"format"``; ``"file"``: `path`. Tensors are
        memory-mapped.

    Raises:
        DamagedCheckpointError: a truncated or corrupted file.
        CheckpointError: a file that cannot be read, or one of another format or configuration.
    """
    content = _read(path)
    if not isinstance(content, dict) or "format" not in content:
        raise CheckpointError(_FOREIGN.format(path))
    if content["format"] != FORMAT:
        version = content.get("versions", {}).get("saltus", "another version")
        raise CheckpointError(
            f"checkpoint {path} was written by saltus {version} in format {content['format']}, and this version reads "
            f"format {FORMAT}: use saltus {version} for this run"
        )
    if not {"versions", "config", "state"} <= content.keys() or not isinstance(content["config"], dict):
        raise CheckpointError(_FOREIGN.format(path))
    content["file"] = path
    if config is not None:
        require_same(content, config)
    return content


def _read(path: Path) -> Any:
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()  # checks CRC-32s, which torch.load does not
        if damaged is not None:
            raise DamagedCheckpointError(f"checkpoint {path} is corrupted (in {damaged})")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except DamagedCheckpointError:
        raise
    except Exception as error:
        if _is_environmental(error):
            raise CheckpointError(
                f"checkpoint {path} could not be read: {str(error) or type(error).__name__}. This is no sign of "
                "damage: keep the file, check its permissions, the disk and the free memory, and try again"
            ) from error
        raise DamagedCheckpointError(f"checkpoint {path} is truncated or corrupted: {error}") from error


def _is_environmental(error: Exception) -> bool:
    """Whether the machine, not the file's content, is the reason that it could not be read."""
    if isinstance(error, OSError):
        return error.errno not in (None, errno.EINVAL)  # EINVAL: an offset in the file points out of it
    messages = ("unable to mmap", "unable to open", "allocate memory", "not enough memory")  # RuntimeErrors of torch
    return isinstance(error, MemoryError) or any(message in str(error) for message in messages)


def require_same(content: dict[str, Any], config: dict[str, Any]) -> None:
    """Check that a checkpoint is of a run with this configuration, in all settings but the task's file.

    Raises:
        CheckpointError: it is another run's; the message names the settings that differ.
    """
    written = {**LATER_SETTINGS, **content["config"]}
    different = sorted(
        key for key in config.keys() - {"task"} if json.dumps(written.get(key)) != json.dumps(config[key])
    )  # as JSON: NaN is equal to itself
    if different:
        pairs = ", ".join(f"{key} {written.get(key)!r} instead of {config[key]!r}" for key in different)
        raise CheckpointError(f"checkpoint {content['file']} belongs to another run: it was written with {pairs}")

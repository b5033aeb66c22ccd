"""A run's directory: its name, its creation, its lock."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import mujoco

from pipeline import checkpoint, files, stored_task
from pipeline.config import Config
from pipeline.file_names import CHECKPOINTS, CONFIG, LOCK, OWN_NAMES
from saltus.errors import SaltusError
from saltus.versions import versions

_OWN_STEMS = frozenset(Path(name).stem for name in OWN_NAMES)
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)  # a file system without flock


def default_path(config: Config) -> Path:
    """``runs/<task>-s<seed>-<time>``."""
    return Path("runs") / f"{config.task_name.replace('/', '-')}-s{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def require_unused(run_dir: Path) -> None:
    """Check that a new run may use a directory: it may hold other files, or a run that never saved a checkpoint.

    Raises:
        SaltusError: a file, a directory with a run in it, or one with other files under the names of a run's files.
    """
    if not run_dir.exists():
        return
    if not run_dir.is_dir():
        raise SaltusError(f"{run_dir} is a file, not a directory: choose another --run-dir")
    if checkpoint.find(run_dir / CHECKPOINTS):
        raise SaltusError(
            f"{run_dir} exists: `saltus resume {run_dir}` continues the run in it; a new run needs another --run-dir"
        )
    taken = _own_entries(run_dir)
    # A run makes its lock first. Runs of earlier versions made config.json first.
    if taken and LOCK not in taken and not holds_config(run_dir / CONFIG):
        raise SaltusError(
            f"{run_dir} holds no run, but {', '.join(taken)}, which a run would overwrite: choose another --run-dir"
        )


def _own_entries(run_dir: Path) -> list[str]:
    """Names in a directory that are those of a run's files, whole or partial."""
    return sorted(
        name
        for name in os.listdir(run_dir)
        if name in OWN_NAMES or (name.endswith(".partial") and Path(name).stem in _OWN_STEMS)
    )


def holds_config(file: Path) -> bool:
    """Whether a file is a config.json."""
    try:
        return {"config", "versions"} <= json.loads(file.read_text()).keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


@contextmanager
def new_run(config: Config, run_dir: Path | None, model: mujoco.MjModel | None) -> Iterator[Path]:
    """Make and lock the directory of a new run; yield its path.

    Args:
        config: the run's configuration.
        run_dir: the directory; None: `default_path`, with a number appended if it exists.
        model: the task's compiled model, if there is one.

    Raises:
        SaltusError: the directory is in use (see `require_unused` and `locked`).
    """
    if run_dir is None:
        run_dir = _make_default(config)
    else:
        _make(run_dir)
    with locked(run_dir):
        require_unused(run_dir)  # again: another process may have trained in it meanwhile
        create(config, run_dir, model)
        yield run_dir


def _make(run_dir: Path) -> None:
    """Make a directory; of two processes that do so at once, the second is refused, also without locks."""
    require_unused(run_dir)
    existed = run_dir.exists()
    try:
        run_dir.mkdir(parents=True, exist_ok=existed)
    except FileExistsError:
        raise SaltusError(f"another process has just made {run_dir}: choose another --run-dir") from None
    except OSError as error:
        raise _cannot_make(run_dir, error) from error


def _cannot_make(run_dir: Path, error: OSError) -> SaltusError:
    return SaltusError(f"could not make the run's directory {run_dir}: {error.strerror}. Choose another --run-dir")


def _make_default(config: Config) -> Path:
    """Make a directory that no other run has: mkdir decides between runs started in the same second."""
    path = default_path(config)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            candidate = path if number == 1 else path.with_name(f"{path.name}-{number}")
            with suppress(FileExistsError):
                candidate.mkdir()
                return candidate
    except OSError as error:
        raise _cannot_make(path, error) from error
    raise AssertionError


def create(config: Config, run_dir: Path, model: mujoco.MjModel | None) -> None:
    """Write the task's files and config.json to a run's directory, which is made if it does not exist."""
    run_dir.mkdir(parents=True, exist_ok=True)
    record = stored_task.store(run_dir, config.task, model)
    write_config(run_dir, {"config": config.to_dict(), "versions": versions(), "task": record})


def write_config(run_dir: Path, content: dict[str, Any]) -> None:
    """Write a run's config.json."""
    files.write(run_dir / CONFIG, json.dumps(content, indent=2) + "\n")


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Lock a run's directory against other processes; the lock ends with the process.

    Warns and continues on a file system without locks.

    Raises:
        SaltusError: another process holds the lock, or a file of the run is a symbolic link.
    """
    refuse_links(run_dir)
    descriptor = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        _lock(descriptor, run_dir)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, run_dir: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise SaltusError(f"another process is training in {run_dir}: wait for it to end, or stop it") from None
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"the file system of {run_dir} has no locks ({error.strerror}): make sure that no other process trains in "
            "it, because saltus cannot",
            stacklevel=2,
        )


def refuse_links(run_dir: Path) -> None:
    """Check that no file of a run is a symbolic link, through which saltus would write to another file, or a device.

    The run's directory itself may be a link.

    Raises:
        SaltusError: a link, a named pipe or the like; the message names it.
    """
    for path in (run_dir / name for name in _own_entries(run_dir)):
        if path.is_symlink():
            raise SaltusError(
                f"{path} is a symbolic link, and saltus writes through none: delete it, or put the file or folder "
                "itself there (the run's directory may be a link)"
            )
        if not (path.is_file() or path.is_dir()):
            raise SaltusError(f"{path} is neither a file nor a folder, and saltus would wait for it: delete it")

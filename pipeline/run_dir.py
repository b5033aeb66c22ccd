"""A run's directory: its name, its lock, its configuration, its last checkpoint."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import checkpoint
from pipeline.config import Config
from saltus.errors import SaltusError
from saltus.versions import versions


def default_path(config: Config) -> Path:
    """``runs/<task>-s<seed>-<time>``."""
    return Path("runs") / f"{config.task_name}-s{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def require_unused(run_dir: Path) -> None:
    """Check that a new run may use a directory.

    Raises:
        SaltusError: the directory holds files, other than those of a run that never saved a checkpoint.
    """
    empty = not run_dir.exists() or (run_dir.is_dir() and not any(run_dir.iterdir()))
    never_saved = (run_dir / "config.json").is_file() and not checkpoint.find(run_dir / "checkpoints")
    if not (empty or never_saved):
        raise SaltusError(
            f"{run_dir} exists: `saltus resume {run_dir}` continues the run in it; a new run needs another --run-dir"
        )


def create(config: Config, run_dir: Path) -> None:
    """Make a run's directory with its config.json."""
    run_dir.mkdir(parents=True, exist_ok=True)
    content = {"config": config.to_dict(), "versions": versions()}
    partial = run_dir / "config.json.partial"
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(run_dir / "config.json")


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Lock a run's directory against other processes; the lock ends with the process.

    Raises:
        SaltusError: another process holds the lock.
    """
    with open(run_dir / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SaltusError(f"another process is training in {run_dir}: wait for it to end, or stop it") from None
        yield


def open_run(run_dir: Path) -> tuple[Config, dict[str, Any]]:
    """Read a run's configuration and the content of its last checkpoint (see `checkpoint.load`).

    Raises:
        SaltusError: not a run's directory, or a run of another version.
        CheckpointError: no checkpoint, or one that cannot be used.
    """
    config = _read_config(run_dir)
    found = checkpoint.find(run_dir / "checkpoints")
    if not found:
        raise checkpoint.CheckpointError(f"{run_dir} has no checkpoint: start the run again")
    return config, checkpoint.load(found[-1], config.to_dict())


def _read_config(run_dir: Path) -> Config:
    file = run_dir / "config.json"
    if not file.is_file():
        raise SaltusError(f"{run_dir} is not a run's directory: it has no config.json")
    try:
        content = dict(json.loads(file.read_text()))
        values, version = dict(content["config"]), str(dict(content["versions"])["saltus"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(file, error) from None
    try:
        return Config.from_dict(values)
    except (TypeError, AttributeError) as error:  # values of other types than the settings'
        raise _damaged(file, error) from None
    except SaltusError as error:
        current = versions()["saltus"]
        if version == current:
            raise SaltusError(f"{file}: {error}") from None
        raise SaltusError(
            f"{run_dir} was written by saltus {version}, and saltus {current} cannot read it: use saltus {version} for "
            f"it. Reason: {error}"
        ) from None


def _damaged(file: Path, error: Exception) -> SaltusError:
    return SaltusError(f"{file} is damaged ({error}); each checkpoint of the run holds the same configuration")

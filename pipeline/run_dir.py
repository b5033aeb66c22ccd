"""A run's directory: its files, its lock, its configuration."""

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
    return Path("runs") / f"{config.task.rpartition(':')[2]}-s{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def require_unused(run_dir: Path) -> None:
    """Raise SaltusError if a directory holds files, unless they are those of a run that never saved a checkpoint."""
    empty = not run_dir.exists() or (run_dir.is_dir() and not any(run_dir.iterdir()))
    never_saved = (run_dir / "config.json").is_file() and not checkpoint.find(run_dir / "checkpoints")
    if not (empty or never_saved):
        raise SaltusError(
            f"{run_dir} exists: `saltus resume {run_dir}` continues the run in it; a new run takes another --run-dir"
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
    """Hold a run's directory, so that no second process writes into it; the lock ends with the process.

    Raises:
        SaltusError: another process holds it.
    """
    with open(run_dir / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SaltusError(f"another process is training in {run_dir}: wait for it to end, or stop it") from None
        yield


def open_run(run_dir: Path) -> tuple[Config, dict[str, Any]]:
    """A run's configuration, and the content of its last checkpoint.

    Raises:
        SaltusError: not a run's directory, or a run of another version.
        CheckpointError: a checkpoint that cannot be used.
    """
    file = run_dir / "config.json"
    if not file.is_file():
        raise SaltusError(f"{run_dir} is not the directory of a run: it has no config.json")
    try:
        content = dict(json.loads(file.read_text()))
        values, written_by = content["config"], content["versions"]
        config = Config.from_dict(dict(values), written_by.get("saltus", "an unknown version"))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise SaltusError(
            f"{file} is damaged ({error}); a checkpoint of the run holds the same configuration"
        ) from None
    found = checkpoint.find(run_dir / "checkpoints")
    if not found:
        raise checkpoint.CheckpointError(f"{run_dir} has no checkpoint: start the run again")
    return config, checkpoint.load(found[-1], config.to_dict())

"""Paths of runs' directories, as users name them."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline import checkpoint
from pipeline.file_names import CHECKPOINTS, CONFIG
from saltus.errors import SaltusError, did_you_mean


def to_path(run_dir: Path | str) -> Path:
    """The path of a run's directory, with ``~`` expanded, which a shell leaves in ``--run-dir=~/run``.

    Raises:
        SaltusError: not a path, or an empty one.
    """
    if not isinstance(run_dir, str | os.PathLike):
        raise SaltusError(f"run_dir is {run_dir!r}; it must be a path, such as 'runs/hopper'")
    if run_dir == "":
        raise SaltusError("run_dir is empty: name a run's directory")
    return Path(os.path.expanduser(run_dir))  # Path.expanduser fails for ~ and a name that is no user's


def require_run(run_dir: Path) -> None:
    """Raise SaltusError if a directory does not exist or holds no run: neither a config.json nor a checkpoint."""
    if not run_dir.exists():
        near = did_you_mean(run_dir.name, _runs_in(run_dir.parent))
        raise SaltusError(f"{run_dir} does not exist{near or ': name the directory of a run, such as runs/hopper'}")
    if not (run_dir / CONFIG).is_file() and not checkpoint.find(run_dir / CHECKPOINTS):
        around = [folder for folder in [*run_dir.absolute().parents][:2] if (folder / CONFIG).is_file()]
        runs = " or ".join(map(str, around or [run_dir / name for name in _runs_in(run_dir)[-3:]]))
        hint = f"; did you mean {runs}?" if runs else ""
        raise SaltusError(f"{run_dir} is not a run's directory: it has no {CONFIG}{hint}")


def _runs_in(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))

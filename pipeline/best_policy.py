"""The best policy of a run between two checkpoints: a file that survives a divergence and a kill.

A checkpoint holds the best policy of its step. A run that finds a better one writes it to a file, which the next
checkpoint replaces. A run that resumes does not read the file: it continues from the checkpoint, and evaluates again.
"""

from __future__ import annotations

import math
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline import checkpoint
from pipeline.config import Config
from pipeline.file_names import BEST_POLICY


def save(run_dir: Path, config: Config, best: dict[str, Any]) -> None:
    """Write `Run.best` atomically; warn if that fails."""
    path = run_dir / BEST_POLICY
    try:
        checkpoint.write_file(path, config.to_dict(), best)
    except OSError as error:
        warnings.warn(
            f"{path} cannot be written: {error.strerror or error}. The run continues; the next checkpoint holds the "
            "best policy",
            stacklevel=2,
        )


def read(run_dir: Path) -> dict[str, Any] | None:
    """The content of the file; None if there is none, or with a warning if it cannot be read.

    A run in progress removes the file once a checkpoint holds its policy: read it before the checkpoint.
    """
    path = run_dir / BEST_POLICY
    try:
        return checkpoint.load(path) if path.exists() else None
    except checkpoint.CheckpointError as error:
        if path.exists():
            _warn_of(error)
        return None


def choose(found: dict[str, Any] | None, config: Config, saved: dict[str, Any]) -> dict[str, Any]:
    """The better one of the file's policy and the last checkpoint's; empty if there is none.

    Args:
        found: what `read` returned.
        config: the run's configuration.
        saved: `Run.best` in the last checkpoint.
    """
    if found is None:
        return saved
    try:
        checkpoint.require_same(found, config.to_dict())
    except checkpoint.CheckpointError as error:
        _warn_of(error)
        return saved
    return max(found["state"], saved, key=lambda best: best.get("return_mean", -math.inf))


def _warn_of(error: checkpoint.CheckpointError) -> None:
    warnings.warn(f"{error}. The best policy of the last checkpoint is used instead", stacklevel=3)


def remove(run_dir: Path) -> None:
    """Remove the file, because a checkpoint holds the best policy. An error does not matter: `choose` compares them."""
    with suppress(OSError):
        for path in (run_dir / BEST_POLICY, (run_dir / BEST_POLICY).with_suffix(".partial")):
            path.unlink(missing_ok=True)

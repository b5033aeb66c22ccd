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


def load(run_dir: Path, config: Config, saved: dict[str, Any]) -> dict[str, Any]:
    """The better one of the file's policy and the last checkpoint's; empty if there is none.

    Args:
        run_dir: the run's directory.
        config: the run's configuration.
        saved: `Run.best` in the last checkpoint.
    """
    path = run_dir / BEST_POLICY
    if not path.exists():
        return saved
    try:
        found = checkpoint.load(path, config.to_dict())["state"]
    except checkpoint.CheckpointError as error:
        if path.exists():  # a run in progress removes it
            warnings.warn(f"{error}. The best policy of the last checkpoint is used instead", stacklevel=2)
        return saved
    return max(found, saved, key=lambda best: best.get("return_mean", -math.inf))


def remove(run_dir: Path) -> None:
    """Remove the file, because a checkpoint holds the best policy. An error does not matter: `load` compares them."""
    with suppress(OSError):
        for path in (run_dir / BEST_POLICY, (run_dir / BEST_POLICY).with_suffix(".partial")):
            path.unlink(missing_ok=True)

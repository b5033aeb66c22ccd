"""The state of an interrupted training of many members, in a folder next to its result file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import result
from benchmarks.hardware import hardware, machine
from benchmarks.population.evaluation import EvaluationPool
from benchmarks.population.trainer import Trainer
from pipeline import checkpoint
from saltus.errors import SaltusError


class SavedState:
    """Checkpoints from which the same command continues; none is left once the training has ended.

    Args:
        path: the result file. The folder has its name, with the ending ``.state``.
        settings: the command's settings, which a checkpoint must share, as it must share the machine.

    Raises:
        SystemExit: the folder cannot be read.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.folder = path.with_suffix(".state")
        self._saved = -1  # env steps of the last save
        self._settings = result.plain({**settings, "machine": machine(hardware())})
        try:
            self._files = checkpoint.find(self.folder)
        except OSError as error:
            raise SystemExit(f"{self.folder} cannot be read: {error.strerror}") from error

    def __bool__(self) -> bool:
        """Whether there was a state to continue from."""
        return bool(self._files)

    def save(self, trainer: Trainer, pool: EvaluationPool) -> None:
        """Wait for all evaluations, and write a checkpoint, unless the last save was of the same env steps.

        Raises:
            CheckpointError: it could not be written.
        """
        if trainer.env_steps == self._saved:
            return
        pool.collect(wait=True)
        state = {"trainer": trainer.state_dict(), "curves": pool.curves, "best": pool.best, "diverged": pool.diverged}
        checkpoint.save(self.folder, trainer.env_steps, self._settings, state)
        self._saved = trainer.env_steps

    def restore(self, trainer: Trainer, pool: EvaluationPool) -> None:
        """Continue from the last checkpoint.

        Raises:
            SystemExit: it is damaged or an earlier version's, or belongs to other settings or another machine.
        """
        try:
            content = checkpoint.load_last(self.folder, self._settings)
        except checkpoint.CheckpointError as error:
            raise SystemExit(
                f"{error}. To train anew, delete {self.folder} or name another file with --output"
            ) from error
        state = content["state"]
        try:
            trainer.load_state_dict(state["trainer"])
            pool.curves[:], pool.best[:] = state["curves"], state["best"]
            pool.diverged[:] = state.get("diverged", pool.diverged)
        except (KeyError, SaltusError) as error:
            raise SystemExit(
                f"{self.folder} is the state of saltus {content['versions']['saltus']}, which this version cannot "
                "continue: delete it to train anew, or continue with that version"
            ) from error

    def remove(self) -> None:
        """Delete the checkpoints, and the folder if nothing else is in it."""
        for file in checkpoint.find(self.folder):
            file.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

"""The command of a sweep: what all of its trials share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from envs.environment_ref import resolve_environment
from pipeline.config import Config
from pipeline.search_ranges import Range
from pipeline.tune.options import TuneOptions
from pipeline.tune.search import flag, words
from saltus.versions import PACKAGES, versions

ROOT = Path(__file__).resolve().parents[2]
OF_A_WORKER = ("task", "device", "num_threads", "compile", "wandb", "log_every", "checkpoint_every")


@dataclass(frozen=True)
class Plan:
    """Settings that all trials of a sweep share.

    Attributes:
        task: the task as the user named it.
        preset: the preset's name.
        config: the configuration of the options that are fixed.
        fixed: the words of those options.
        space: the ranges of the others.
        options: those of the sweep.
        folder: holds the runs.
    """

    task: str
    preset: str
    config: Config
    fixed: list[str]
    space: dict[str, Range]
    options: TuneOptions
    folder: Path

    @property
    def seeds(self) -> list[int]:
        """The seeds of each trial's runs."""
        return [self.config.seed + index for index in range(self.options.seeds_per_trial)]

    @property
    def pruner(self) -> str:
        """The pruner's name."""
        return self.options.chosen_pruner(self.config)

    def config_of(self, options: Mapping[str, Any]) -> Config:
        """The configuration of a trial, apart from its seed.

        Raises:
            SaltusError: its options do not work together.
        """
        return replace(self.config, **options)

    def train_words(self, options: Mapping[str, Any], seed: int) -> list[str]:
        """The arguments of ``saltus train`` for a trial, without the run's directory."""
        return [self.task, "--preset", self.preset, *self.fixed, *words(options), "--seed", str(seed)]

    def identity(self, model_hash: str | None) -> dict[str, Any]:
        """Settings that workers on one sweep must share, as plain JSON data.

        Args:
            model_hash: of the task's compiled model, if it has one; its MJCF may include other files.
        """
        settings = {name: value for name, value in self.config.to_dict().items() if name not in OF_A_WORKER}
        searched = {f"--search {flag(name)}": str(values) for name, values in self.space.items()}
        return {
            "task": self.config.task_name,
            "preset": self.preset,
            **searched,
            "seeds-per-trial": self.options.seeds_per_trial,
            "sampler": self.options.sampler,
            "pruner": self.pruner,
            **{flag(name): value for name, value in settings.items() if name not in self.space},
            **{f"version of {name}": found for name, found in versions().items() if name in PACKAGES},
            "code": self._code(),
            "hash of the model": model_hash,
        }

    def _code(self) -> str:
        """A hash of saltus's sources and of the task's file."""
        digest = hashlib.sha256((resolve_environment(self.config.task).text or "").encode())
        for package in ("saltus", "envs", "pipeline"):
            for file in sorted((ROOT / package).rglob("*.py")):
                digest.update(file.read_bytes())
        return digest.hexdigest()[:12]

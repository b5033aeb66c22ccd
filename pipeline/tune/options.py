"""Options of ``saltus tune``, checked before a trial begins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.config import Config
from pipeline.train_options import split_words
from saltus.errors import SaltusError

MOST_TRIALS, MOST_SEEDS = 10**6, 1_000
SHORTEST_LEASE = 3  # seconds; a third of it passes between renewals
FEWEST_EVALUATIONS = 3  # before the end of a run, to prune trials; in its last third, for a score


@dataclass(frozen=True)
class TuneOptions:
    """Options of the sweep itself; all others are those of `saltus train`, and fixed in every trial."""

    trials: int = 50
    """Number of trials, pruned and failed ones included. A larger number continues a sweep."""
    search: tuple[str, ...] = ()
    """Options to search, instead of those of the preset: actor-lr (with the preset's range), actor-lr=1e-4..1e-2,
    gamma=0.99,0.995. Learning rates and the like have a log scale; :linear or :log after a range sets another."""
    seeds_per_trial: int = 1
    """Runs of each trial, with the seeds --seed, --seed + 1, ...; the trial's score is their mean."""
    sampler: Literal["tpe", "random"] = "tpe"
    """tpe: Optuna's tree-structured Parzen estimator, after 10 random trials. random: independent of the results."""
    pruner: Literal["auto", "median", "hyperband", "none"] = "auto"
    """median: stop a trial whose best evaluation is below the median of earlier trials at the same env steps.
    hyperband: stop the worse two thirds of trials again and again. auto: median, if evaluations allow it."""
    storage: str | None = None
    """URL of the database that workers share, such as postgresql://host/tune. None: tune.db in --run-dir."""
    lease: int = 180
    """Seconds after which the trial of a worker that no longer answers is done by another."""

    def check(self, config: Config) -> None:
        """Raise SaltusError for values and combinations that do not work."""
        for name, value, low, high in (
            ("trials", self.trials, 1, MOST_TRIALS),
            ("seeds-per-trial", self.seeds_per_trial, 1, MOST_SEEDS),
            ("lease", self.lease, SHORTEST_LEASE, 10**7),
        ):
            if not low <= value <= high:
                raise SaltusError(f"--{name} is {value}; it must be at least {low} and at most {high:,}")
        if self.storage == "":
            raise SaltusError("--storage is empty: give a database's URL (is a shell variable unset?)")
        if self.pruner in ("auto", "none"):
            return
        if config.minutes is not None:
            raise SaltusError(
                f"--pruner {self.pruner} compares trials at the same env steps, and --minutes gives them different "
                "ones: set --total-env-steps, or --pruner none"
            )
        if evaluations(config) < FEWEST_EVALUATIONS:
            raise SaltusError(
                f"--pruner {self.pruner} needs {FEWEST_EVALUATIONS} evaluations before the end of a trial, and "
                f"--eval-every {config.eval_every} with --total-env-steps {config.total_env_steps} gives "
                f"{evaluations(config)}: lower --eval-every"
            )

    def chosen_pruner(self, config: Config) -> str:
        """The pruner, also if it is ``"auto"``."""
        if self.pruner != "auto":
            return self.pruner
        return "none" if config.minutes is not None or evaluations(config) < FEWEST_EVALUATIONS else "median"


def evaluations(config: Config) -> int:
    """Number of evaluations before the end of a run that env steps limit."""
    return (config.total_env_steps - 1) // config.eval_every


def scored_evaluations(config: Config) -> int:
    """Number of evaluations in the last third of a run that env steps limit, with that of its end."""
    return evaluations(config) - config.total_env_steps * 2 // 3 // config.eval_every + 1


def fixed_words(arguments: Iterable[str]) -> list[str]:
    """The arguments that every trial gets: without the task, the preset, the seed and the options of the sweep.

    Each option and value is a word, and names have dashes: ``--minutes=10`` and ``--total_env_steps 9`` are four words.
    """
    own = {name.replace("_", "-") for name in TuneOptions.__dataclass_fields__} | {"preset", "seed", "run-dir"}
    kept: list[str] = []
    skipping = True  # the task comes first
    for word in split_words([*arguments]):
        if word.startswith("--"):
            word = word.replace("_", "-")
            skipping = word.removeprefix("--") in own
        if not skipping:
            kept.append(word)
    return kept


def fixed_settings(arguments: Iterable[str]) -> set[str]:
    """The names of the settings that arguments from `fixed_words` fix."""
    options = [word for word in arguments if word.startswith("--")]
    return {word.removeprefix("--").removeprefix("no-").replace("-", "_") for word in options}


def default_folder(config: Config, preset: str) -> Path:
    """``runs/<task>-<preset>-tune``."""
    return Path("runs") / f"{config.task_name.replace('/', '-')}-{preset}-tune"

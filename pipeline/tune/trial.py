"""One trial of a sweep: its runs, watched for pruning, and its score."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import optuna
from optuna.trial import TrialState

from pipeline.config import Config
from pipeline.divergence import DIVERGED
from pipeline.file_names import EVALUATIONS
from pipeline.tables import read_table
from pipeline.tune import process
from pipeline.tune.plan import Plan
from pipeline.tune.score import is_complete, score, steps_of_evaluations
from pipeline.tune.sweep import ERROR, RUNS, SECONDS, Claimed
from saltus.errors import SaltusError


@dataclasses.dataclass
class Outcome:
    """The result of a trial.

    Attributes:
        state: complete, pruned, or failed.
        value: the score; that of the last evaluation if it was pruned; None if it failed.
        attributes: further results for the database.
        broken: it failed before a first evaluation, and learning did not diverge: the machine may be the reason.
    """

    state: TrialState
    value: float | None
    attributes: dict[str, Any]
    broken: bool = False


class TrialRuns:
    """The runs of one trial, one after another.

    Args:
        plan: the command.
        claimed: the trial, which gets the evaluations.
        options: the options of the trial.
        say: gets a line of text about each evaluation.
    """

    def __init__(self, plan: Plan, claimed: Claimed, options: Mapping[str, Any], say: Callable[[str], None]):
        self._plan, self._claimed, self._options, self._say = plan, claimed, options, say
        self._trial = claimed.trial
        self._runs: dict[str, str] = {**self._trial.user_attrs.get(RUNS, {})}  # by seed; those of a former worker
        self._scores: list[float] = []
        self._reported: dict[int, float] = {}
        self._pruned = False

    def run(self) -> Outcome:
        """Train with each seed.

        Raises:
            optuna.exceptions.UpdateFinishedTrialError: another worker has taken the trial up.
        """
        started = time.monotonic()
        try:
            for seed in self._plan.seeds:
                self._train(seed)
                if self._pruned:
                    break
        except (process.RunError, SaltusError) as error:
            broken = not (self._reported or self._scores or DIVERGED in str(error))
            results = {ERROR: str(error), SECONDS: time.monotonic() - started}
            return Outcome(TrialState.FAIL, None, results, broken)
        seconds = {SECONDS: time.monotonic() - started}
        if self._pruned:
            return Outcome(TrialState.PRUNED, self._reported[max(self._reported)], seconds)
        return Outcome(TrialState.COMPLETE, mean(self._scores), seconds)

    def _train(self, seed: int) -> None:
        plan = self._plan
        config = dataclasses.replace(plan.config_of(self._options), seed=seed)
        run_dir = self._resume(seed, config)
        if run_dir is None:
            run_dir = process.unused_directory(plan.folder, self._name(seed))
            self._runs[str(seed)] = str(run_dir.absolute())
            self._trial.set_user_attr(RUNS, self._runs)
            words = plan.train_words(self._options, seed)
            self._run(["train", *words, "--run-dir", str(run_dir)], run_dir, config)
        if self._pruned:
            return
        self._report(run_dir, config, to_the_end=True)
        rows = read_table(run_dir / EVALUATIONS)
        if not is_complete(rows, config):
            raise process.RunError(f"{run_dir} was stopped before its end")
        value = score(rows, config)
        if not math.isfinite(value):
            raise process.RunError(f"the mean return of {run_dir} is {value}")
        self._scores.append(value)

    def _resume(self, seed: int, config: Config) -> Path | None:
        """Resume the run of a former worker; return its directory, or None if there is none that can be resumed."""
        left = Path(self._runs.get(str(seed), ""))
        if str(seed) not in self._runs or not process.can_resume(left, config):
            return None
        evaluations = len(read_table(left / EVALUATIONS))
        try:
            self._run(["resume", str(left)], left, config)
        except process.RunError as error:
            if len(read_table(left / EVALUATIONS)) > evaluations or DIVERGED in str(error):
                raise  # it trained
            warnings.warn(f"{left} cannot be resumed, and its run begins anew: {error}", stacklevel=2)
            return None
        return left

    def _run(self, command: list[str], run_dir: Path, config: Config) -> None:
        process.run(command, lambda: self._report(run_dir, config))

    def _name(self, seed: int) -> str:
        name = f"trial-{self._claimed.first_number:04d}"
        return name if len(self._plan.seeds) == 1 else f"{name}-s{seed}"

    def _report(self, run_dir: Path, config: Config, to_the_end: bool = False) -> bool:
        """Store new evaluations; return False if the trial is to be pruned, unless it has come `to_the_end`."""
        before = len(self._scores) * config.total_env_steps
        for step, value in steps_of_evaluations(read_table(run_dir / EVALUATIONS), config).items():
            if before + step in self._reported:
                continue
            average = mean([*self._scores, value])
            try:
                self._trial.report(average, before + step)
                self._pruned = not to_the_end and self._trial.should_prune()
            except optuna.exceptions.StorageInternalError as error:
                reason = error.__cause__ or error
                warnings.warn(f"an evaluation was not stored, the next attempt may do it: {reason}", stacklevel=2)
                return True
            self._reported[before + step] = average
            run = f", run {len(self._scores) + 1} of {len(self._plan.seeds)}" if len(self._plan.seeds) > 1 else ""
            self._say(f"  trial {self._claimed.first_number}{run}: return {value:,.4g} at {step:,} env steps")
            if self._pruned:
                return False
        return True

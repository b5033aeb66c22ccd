"""The trials of a sweep: which one comes next, its options, and which are done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from pipeline.config import Config
from pipeline.search_ranges import Choices, Range
from pipeline.seeding import derive_seed
from pipeline.shared_study import SharedStudy
from pipeline.tune.search import flag, show_value

ERROR, RUNS, SECONDS, OWN = "error", "runs", "seconds", "preset's own"  # attributes of a trial
RESULTS = (ERROR, SECONDS)  # those that a trial gets at its end
SIGNIFICANT = 6  # digits of numbers that are drawn from an interval


class Claimed(NamedTuple):
    """A trial to do, and the number that it had when it was first begun."""

    trial: Trial
    first_number: int


class Sweep:
    """The trials of one command, of which each is done once, whichever worker does it.

    Args:
        shared: the study in the database.
        space: the ranges, by the names of settings.
        own: the values of the preset itself, which the first trial has; empty: no such trial.
        number: the number of trials.
    """

    def __init__(self, shared: SharedStudy, space: Mapping[str, Range], own: Mapping[str, Any], number: int):
        self.shared, self._space, self._number = shared, space, number
        if own and not shared.trials():
            values = {flag(name): _stored(space[name], value) for name, value in own.items()}
            shared.study.enqueue_trial(values, user_attrs={OWN: True})

    def claim(self) -> Claimed | None:
        """Claim a trial; None if no more are to begin."""
        while True:
            for trial in self._first():
                if trial.state == TrialState.WAITING and self._take(trial):
                    return Claimed(Trial(self.shared.study, trial._trial_id), original_number(trial))
            if len(self.counted()) >= self._number:
                return None
            self.shared.enqueue()

    def _take(self, trial: FrozenTrial) -> bool:
        """Claim a trial that waits, unless it is the preset's own a second time: two workers may add it at once."""
        if not self.shared.claim(trial):
            return False
        own = [one for one in self.counted() if OWN in one.user_attrs]
        if trial.number in [one.number for one in own[1:]]:
            self.shared.drop(trial)
            return False
        return True

    def _first(self) -> list[FrozenTrial]:
        """The trials to do. Others are one too many, because two workers added the last one, or a larger sweep's."""
        return self.counted()[: self._number]

    @property
    def unfinished(self) -> int:
        """The number of trials to do that wait, or on which a worker works."""
        self.shared.retry_stale()
        return sum(not trial.state.is_finished() for trial in self._first())

    def counted(self) -> list[FrozenTrial]:
        """All trials but those that were given back or begun anew, in the order in which they were first begun."""
        trials = self.shared.trials()
        anew = {number for trial in trials for number in trial.system_attrs.get("retry_history", ())}
        counted = [
            trial
            for trial in trials
            if trial.number not in anew and (trial.state != TrialState.FAIL or ERROR in trial.user_attrs)
        ]
        return sorted(counted, key=original_number)

    def done(self) -> list[FrozenTrial]:
        """The trials that have ended: complete, pruned or failed."""
        return [trial for trial in self.counted() if trial.state.is_finished()]

    def options(self, trial: Trial) -> dict[str, Any]:
        """The options of a trial, drawn if they are not yet."""
        own = OWN in trial.user_attrs
        return {name: self._value(name, _draw(trial, flag(name), one), own) for name, one in self._space.items()}

    def options_of(self, trial: FrozenTrial) -> dict[str, Any]:
        """The options of a trial that has begun."""
        own = OWN in trial.user_attrs
        names = [name for name in self._space if flag(name) in trial.params]
        return {name: self._value(name, trial.params[flag(name)], own) for name in names}

    def _value(self, name: str, stored: Any, own: bool) -> Any:
        """The value of a setting that Optuna stores: short enough to be read, unless it is the preset's `own`."""
        values = self._space[name]
        if isinstance(values, Choices):
            return next(value for value in values.values if _stored(values, value) == stored)
        if own or not isinstance(stored, float):
            return stored
        return min(max(float(f"{stored:.{SIGNIFICANT}g}"), values.low), values.high)


def original_number(trial: FrozenTrial) -> int:
    """The number of a trial when it was first begun, which its runs are named after."""
    return trial.system_attrs.get("failed_trial", trial.number)


def _stored(values: Range, value: Any) -> Any:
    """A value as Optuna stores it: widths of layers as text."""
    return show_value(value) if isinstance(values, Choices) and isinstance(value, tuple) else value


def _draw(trial: Trial, name: str, values: Range) -> Any:
    if isinstance(values, Choices):
        return trial.suggest_categorical(name, [_stored(values, value) for value in values.values])
    if isinstance(values.low, int) and isinstance(values.high, int):
        return trial.suggest_int(name, values.low, values.high, log=values.log)
    return trial.suggest_float(name, values.low, values.high, log=values.log)


class SeededSampler(BaseSampler):
    """A sampler whose random numbers depend on a seed and the trial's number alone.

    Two workers draw different options, and one worker draws the same ones when its sweep is interrupted.

    Args:
        name: ``tpe`` or ``random``.
        seed: of the sweep.
    """

    def __init__(self, name: str, seed: int):
        self._name, self._seed = name, seed
        self._sampler = self._make(0)

    def _make(self, number: int) -> BaseSampler:
        seed = derive_seed(self._seed, "sampler", number) % 2**32
        if self._name == "random":
            return RandomSampler(seed)
        # Trials of other workers that still run count as bad ones, so that no worker repeats them.
        return TPESampler(multivariate=True, constant_liar=True, seed=seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._sampler = self._make(trial.number)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._sampler.after_trial(study, trial, state, values)


def make_pruner(name: str, config: Config, seeds: int) -> BasePruner:
    """A pruner whose steps are the env steps of a trial, over all of its runs."""
    if name == "median":
        return MedianPruner(n_startup_trials=5, n_warmup_steps=config.total_env_steps // 3)
    if name == "hyperband":
        return HyperbandPruner(min_resource=config.eval_every, max_resource=seeds * config.total_env_steps)
    return NopPruner()

"""Health: says when training does not hold, from the rows of a run's tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.health.detector import Detector, Failures, Row
from pipeline.health.evaluations import EarlyEnds, Fall, StandingStill, describe_evaluation
from pipeline.health.updates import ClippedTargets, Critics, Temperature

if TYPE_CHECKING:
    from pipeline.config import Config

LAST_BELOW_BEST = 0.1  # evaluations of ten episodes differ by less, for one steady policy


class Health:
    """Watches a run's rows; returns a message for each state that begins.

    A state that ends and begins again gives another message. Everything depends on the rows alone: the rows of a run's
    tables, in their order, restore it.

    Args:
        config: the run's configuration.
        time_limit: the task's `max_episode_steps`.
        target_entropy: target entropy of the policy.
        alpha_init: initial temperature.

    Attributes:
        last: the last row of evaluation results; empty before the first.
        nothing_learned: every world-step so far failed.
    """

    def __init__(self, config: Config, time_limit: int, target_entropy: float, alpha_init: float):
        self._failures = Failures()
        scaled = config.reward_scaling != "none"
        self._detectors: list[Detector] = [
            self._failures,
            Fall(config.progress),
            EarlyEnds(time_limit, config.progress),
            StandingStill(time_limit),
        ]
        if config.critic_loss == "mse":  # the error of categorical critics is bounded
            self._detectors.append(Critics(scaled))
        else:
            self._detectors.append(ClippedTargets(config.value_range, config.reward_scaling == "bounded"))
        if config.learns_temperature:
            self._detectors.append(Temperature(target_entropy, alpha_init, scaled))
        self.last: Row = {}

    @property
    def nothing_learned(self) -> bool:
        return self._failures.state.holds

    def metrics(self, row: Row) -> list[str]:
        """Messages after a row of training metrics."""
        return [message for detector in self._detectors if (message := detector.metrics(row))]

    def evaluation(self, row: Row) -> list[str]:
        """Messages after a row of evaluation results."""
        self.last = row
        return [message for detector in self._detectors if (message := detector.evaluation(row))]


def describe_policies(best: Row, last: Row, run_dir: object, last_is_saved: bool = True) -> str:
    """Returns of the best and the last evaluation, and the commands that play these policies.

    Args:
        best: ``return_mean`` and ``env_steps`` of the best policy.
        last: those of the last evaluation.
        run_dir: the run's directory.
        last_is_saved: whether the last checkpoint holds the policy of the last evaluation.
    """
    line = f"best evaluation: {describe_evaluation(best)}"
    if best["env_steps"] == last["env_steps"]:
        return f"{line}, the last one; `saltus evaluate {run_dir}` plays more episodes with that policy"
    line += f"; last: {describe_evaluation(last)}; `saltus evaluate {run_dir}` plays "
    fell = last["return_mean"] < best["return_mean"] - LAST_BELOW_BEST * abs(best["return_mean"])
    if fell and last_is_saved:
        return f"{line}the best policy, with `--policy last` the last one"
    return f"{line}more episodes with the best policy"

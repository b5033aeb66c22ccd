"""EpisodeStatistics: totals over all worlds, counted on the physics device."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from envs.physics import Physics
from saltus.errors import SaltusError

REWARD_TERM = "reward_terms/"
_STEP = ("steps", "reward", "episodes", "episode_return", "episode_length")
_FAILURES = ("unstable", "nonfinite", "overflowed")


def check_terms(task_name: str, terms: Mapping[str, Tensor], expected: Sequence[str]) -> None:
    """Raise SaltusError unless a reward's terms have the names that they had when the environment was made."""
    if terms.keys() != set(expected):
        raise SaltusError(
            f"{task_name}.reward returned the terms {sorted(terms)}, and {sorted(expected)} when the environment was "
            "made: return the same terms in every step"
        )


class EpisodeStatistics:
    """Running totals in float64, updated in place without synchronisation.

    Args:
        task_name: for warnings.
        device: where steps are counted.
        reward_terms: names of the reward's terms.
        physics: the engine, which gives advice on failures; None: another library simulates.

    Attributes:
        totals: the totals by name, 0-dimensional views of one tensor.
    """

    def __init__(
        self, task_name: str, device: torch.device, reward_terms: Sequence[str], physics: Physics | None = None
    ):
        self._task_name, self._physics, self._reward_terms = task_name, physics, reward_terms
        self._warned: set[str] = set()
        names = (*_STEP, *(f"{REWARD_TERM}{term}" for term in reward_terms), *_FAILURES)
        self._values = torch.zeros(len(names), dtype=torch.float64, device=device)
        self._step_values, self._failure_values = self._values.tensor_split([-len(_FAILURES)])
        self.totals = dict(zip(names, self._values.unbind(), strict=True))

    def with_terms(self, names: Sequence[str]) -> EpisodeStatistics:
        """Statistics of other reward terms, which continue the totals and repeat no warning."""
        other = EpisodeStatistics(self._task_name, self._values.device, names, self._physics)
        other._warned = self._warned
        for name in self.totals.keys() & other.totals.keys():
            other.totals[name].copy_(self.totals[name])
        return other

    def add_step(
        self,
        reward: Tensor,
        episode_return: Tensor,
        episode_length: Tensor,
        done: Tensor,
        failed: Tensor,
        terms: Mapping[str, Tensor],
    ) -> None:
        """Count a step of N worlds, (N,) each; `terms` are the reward's terms by name.

        Returns and lengths count where `done`. Terms do not count where `failed`, nor where they are not finite.

        Raises:
            SaltusError: other terms, or terms of another shape, than when the environment was made.
        """
        check_terms(self._task_name, terms, self._reward_terms)
        step = [torch.ones_like(done), reward, done, episode_return * done, episode_length * done]
        try:
            rows = torch.stack([*step, *(terms[name] for name in self._reward_terms)])  # float64, by promotion
        except (RuntimeError, TypeError) as error:
            shapes = ", ".join(f"{name} {tuple(getattr(term, 'shape', ()))}" for name, term in terms.items())
            raise SaltusError(
                f"{self._task_name}.reward returned terms of shapes {shapes}; expected tensors of shape "
                f"({len(reward)},), as when the environment was made"
            ) from error
        term_rows = rows[len(step) :]
        term_rows.masked_fill_(failed | ~torch.isfinite(term_rows), 0.0)
        self._step_values += rows.sum(dim=1)

    def add_failures(self, diverged: Tensor, failed: Tensor, overflowed: Tensor) -> None:
        """Count failed worlds, (N,) bool each.

        Args:
            diverged: the physics failed; counted as unstable.
            failed: physics, action, observation or reward failed; counted as nonfinite unless `diverged`.
            overflowed: contacts or constraints were dropped.
        """
        self._failure_values += torch.stack([diverged, failed & ~diverged, overflowed]).sum(dim=1)

    def read(self) -> dict[str, float]:
        """The totals, in one synchronisation; warns once about each kind of failure and each reason of physics."""
        totals = dict(zip(self.totals, self._values.tolist(), strict=True))
        physics = self._physics
        if physics is not None and totals["unstable"]:
            advice = physics.failure_advice
            self._warn_once(advice, totals["unstable"], f"physics failed: {advice}")
        if totals["nonfinite"]:
            what = "the environment" if physics is None else "the task's functions"
            reason = f"action, control, observation or reward was not finite: check {what}"
            self._warn_once("nonfinite", totals["nonfinite"], reason)
        # Reading the advice synchronises.
        if physics is not None and totals["overflowed"] and "overflowed" not in self._warned:
            reason = f"contacts or constraints did not fit: {physics.overflow_advice}"
            self._warn_once("overflowed", totals["overflowed"], reason)
        return totals

    def _warn_once(self, kind: str, count: float, reason: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(f"{self._task_name}: {int(count)} world-steps whose {reason}", stacklevel=4)

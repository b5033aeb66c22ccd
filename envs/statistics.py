"""EpisodeStatistics: totals over all worlds, counted on the physics device."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from envs.physics import Physics
from saltus.device.cuda_graph import to_floats

REWARD_TERM = "reward_terms/"
_TOTALS = (
    "steps", "reward", "episodes", "episode_return", "episode_length", "unstable", "nonfinite", "overflowed",
)  # fmt: skip


class EpisodeStatistics:
    """Running totals, float64 scalars on the physics device, updated without synchronization.

    Args:
        task_name: for warnings.
        physics: the engine; gives the device and the advice on overflows.
        reward_terms: names of the reward's terms.
    """

    def __init__(self, task_name: str, physics: Physics, reward_terms: Sequence[str]):
        self._task_name, self._physics = task_name, physics
        self._warned: set[str] = set()
        names = (*_TOTALS, *(f"{REWARD_TERM}{term}" for term in reward_terms))
        self.totals = {name: torch.zeros((), dtype=torch.float64, device=physics.device) for name in names}

    def add(self, name: str, values: Tensor) -> None:
        """Add the sum of `values` (N,) to a total."""
        self.totals[name].add_(values.sum(dtype=torch.float64))

    def add_failures(self, diverged: Tensor, failed: Tensor, overflowed: Tensor) -> None:
        """Count worlds, (N,) bool each: physics diverged; observation, reward or physics failed; memory overflowed."""
        self.add("unstable", diverged)
        self.add("nonfinite", failed & ~diverged)
        self.add("overflowed", overflowed)

    def add_step(self, reward: Tensor, episode_return: Tensor, episode_length: Tensor, done: Tensor) -> None:
        """Count a step of N worlds, (N,) each; returns and lengths count where the episode is `done`."""
        self.add("steps", torch.ones_like(done))
        self.add("reward", reward)
        self.add("episodes", done)
        self.add("episode_return", torch.where(done, episode_return, 0.0))
        self.add("episode_length", torch.where(done, episode_length, 0))

    def add_reward_terms(self, terms: Mapping[str, Tensor], failed: Tensor) -> None:
        """Add the reward's terms (N,), except of failed worlds."""
        for name, term in terms.items():
            self.add(name, torch.where(failed | ~torch.isfinite(term), 0.0, term))

    def read(self) -> dict[str, float]:
        """The totals, in one synchronization; warns once about each kind of failure."""
        totals = to_floats(self.totals)
        self._warn_once(totals, "unstable", "physics diverged: a smaller timestep, or less extreme actions, may help")
        self._warn_once(totals, "nonfinite", "observation or reward was not finite: check the task's functions")
        if totals["overflowed"] and "overflowed" not in self._warned:  # reading the advice synchronizes
            self._warn_once(
                totals, "overflowed", f"contacts or constraints did not fit: {self._physics.overflow_advice}"
            )
        return totals

    def _warn_once(self, totals: Mapping[str, float], name: str, reason: str) -> None:
        if totals[name] and name not in self._warned:
            self._warned.add(name)
            warnings.warn(f"{self._task_name}: {int(totals[name])} world-steps whose {reason}", stacklevel=4)

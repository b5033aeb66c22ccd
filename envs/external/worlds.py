"""Worlds: what ExternalEnv needs of another library's environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from envs.external.spaces import Actions

FALLBACK_DT = 0.02
"""Seconds per control step of an environment that does not say."""
FALLBACK_STEPS = 1000
"""Longest episode of an environment that does not say."""


@dataclass(frozen=True)
class Outcome:
    """A step of N worlds, before those whose episode ended begin another. No tensor is the library's own memory.

    Attributes:
        successor: (N, obs_dim) float32, the true successors, also where an episode ended.
        reward: (N,) float32.
        terminated, truncated: (N,) bool.
        missing: (N,) bool, the worlds whose successor the library withholds.
        terms: the reward's terms that the library gives, (N,) float32 by name; NaN where it does not.
    """

    successor: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    missing: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


class Worlds(Protocol):
    """N worlds of another library. Tensors are on `device`.

    Attributes:
        num_envs: number of worlds.
        observation_names: the name of each entry of the observation.
        actions: bounds of actions on the CPU, and the choices of discrete ones.
        device: where the worlds are.
        dt: seconds per control step.
        max_episode_steps: control steps of the longest episode.
        missing_advice: what to do about missing successors.
    """

    num_envs: int
    observation_names: list[str]
    actions: Actions
    device: torch.device
    dt: float
    max_episode_steps: int
    missing_advice: str

    def reset(self, seed: int | None) -> Tensor:
        """Start an episode in every world, (N, obs_dim) float32. None: the random streams continue."""
        ...

    def step(self, control: Tensor) -> Outcome:
        """Take one step with actions in the environment's units, (N, action_dim) float32; discrete ones are whole."""
        ...

    def begin(self, ended: Tensor, failed: Tensor) -> tuple[Tensor, Tensor]:
        """Begin episodes after a step.

        Args:
            ended: (N,) bool, the worlds whose episode ended.
            failed: (N,) bool, the worlds to be given up.

        Returns:
            The observation to act on next, (N, obs_dim) float32, and the worlds that could not be given up, (N,) bool:
            they are in the middle of a failed episode until it ends by itself.
        """
        ...

    def render(self) -> np.ndarray:
        """A frame of world 0, (height, width, 3) uint8."""
        ...

    def close(self) -> None:
        """Release what the library holds, such as processes."""
        ...


def first_number(holders: list[Any], names: tuple[str, ...], otherwise: float) -> float:
    """The first attribute of these names that is a number above 0; `otherwise` if there is none."""
    for holder in holders:
        for name in names:
            value = getattr(holder, name, None)
            if isinstance(value, int | float | np.number) and value > 0:
                return float(value)
    return otherwise

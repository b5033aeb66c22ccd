"""Noise of the stochastic policy while it collects transitions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RepeatedNoise:
    """Standard normal noise, each sample repeated for a random number of steps.

    A sample lasts k steps, 1 <= k <= `max_repeat`, with probability proportional to 1 / k^2, the same k for all worlds
    (FlashSAC, arXiv 2604.04539). Correlated noise explores further (Eberhard et al. 2023). With a `max_repeat` of 1
    every step has a new sample.

    Args:
        num_envs: number of worlds.
        action_dim: width of the noise.
        max_repeat: largest number of steps that a sample lasts.
        device: where the noise is sampled.
    """

    def __init__(self, num_envs: int, action_dim: int, max_repeat: int, device: torch.device | str = "cpu"):
        self.max_repeat = max_repeat
        self._noise = torch.zeros(num_envs, action_dim, device=device)
        self._steps_left = 0

    def __call__(self) -> Tensor:
        """The noise of the next step, (num_envs, action_dim). The same tensor at every call, changed in place."""
        if self._steps_left == 0:
            self._noise.normal_()
            self._steps_left = self._sample_duration()
        self._steps_left -= 1
        return self._noise

    def _sample_duration(self) -> int:
        if self.max_repeat == 1:
            return 1
        weights = torch.arange(1, self.max_repeat + 1, dtype=torch.float64) ** -2
        return int(torch.multinomial(weights, 1)) + 1

    def state_dict(self) -> dict[str, Any]:
        """The current sample and the number of steps that it still lasts."""
        return {"noise": self._noise, "steps_left": self._steps_left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self._noise.copy_(state["noise"])
        self._steps_left = state["steps_left"]

"""The policy's noise while it acts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RepeatedNoise:
    """Standard normal noise that is held for some steps, which takes a policy further than fresh noise at each.

    Held for k steps, k from 1 to `longest` with a probability proportional to 1 / k^2, the same for all worlds
    (FlashSAC, arXiv 2604.04539; Eberhard et al. 2023 on why). With `longest` 1 it is fresh at each step.

    Args:
        num_envs, action_dim: its shape.
        longest: most steps.
        device: where it is drawn.
    """

    def __init__(self, num_envs: int, action_dim: int, longest: int, device: torch.device | str = "cpu"):
        self.longest = longest
        self._noise = torch.zeros(num_envs, action_dim, device=device)
        self._left = 0

    def __call__(self) -> Tensor:
        """The noise of the next step, (num_envs, action_dim)."""
        if self._left == 0:
            self._noise.normal_()
            self._left = self._duration()
        self._left -= 1
        return self._noise

    def _duration(self) -> int:
        if self.longest == 1:
            return 1
        weights = torch.arange(1, self.longest + 1, dtype=torch.float64) ** -2
        return int(torch.multinomial(weights, 1)) + 1

    def state_dict(self) -> dict[str, Any]:
        """The noise, and for how many more steps it is held."""
        return {"noise": self._noise, "left": self._left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self._noise.copy_(state["noise"])
        self._left = state["left"]

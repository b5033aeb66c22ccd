"""Running statistics on the training device: of observations, and of returns, by which rewards are scaled."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-8


class Moments:
    """Mean and variance of all rows seen so far, per column, in float64.

    Batches are joined by Chan, Golub and LeVeque's update (1979), which loses no digits to large means.

    Args:
        columns: how many.
        device: where the statistics live.

    Attributes:
        mean, variance: (columns,); 0 and 1 before the first row.
    """

    def __init__(self, columns: int, device: torch.device | str = "cpu"):
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.mean = torch.zeros(columns, dtype=torch.float64, device=device)
        self.variance = torch.ones(columns, dtype=torch.float64, device=device)

    def update(self, rows: Tensor) -> None:
        """Take in (N, columns)."""
        rows = rows.double()
        count = self.count + len(rows)
        difference = rows.mean(0) - self.mean
        squares = self.variance * self.count + rows.var(0, correction=0) * len(rows)
        self.variance.copy_((squares + difference**2 * self.count * len(rows) / count) / count)
        self.mean.add_(difference * len(rows) / count)
        self.count.copy_(count)

    def tensors(self) -> dict[str, Tensor]:
        """The statistics by name, themselves and not copies."""
        return {"count": self.count, "mean": self.mean, "variance": self.variance}


class ObservationNormalizer:
    """Observations less their running mean, over their running deviation (SimbaV2, Lee et al. 2025).

    Statistics move at `update` alone: calling it leaves them as they are.
    """

    def __init__(self, observation_dim: int, device: torch.device | str = "cpu"):
        self.moments = Moments(observation_dim, device)

    def update(self, observation: Tensor) -> None:
        """Take in observations, (N, obs_dim)."""
        self.moments.update(observation)

    def __call__(self, observation: Tensor) -> Tensor:
        """Normalise (B, obs_dim)."""
        mean, variance = self.moments.mean.float(), self.moments.variance.float()
        return (observation - mean) * torch.rsqrt(variance + EPSILON)

    def state_dict(self) -> dict[str, Tensor]:
        """The statistics by name."""
        return self.moments.tensors()


class RewardScaler:
    """Rewards over the running deviation of discounted returns (FlashSAC, XQC; the idea is Engstrom et al.'s, 2020).

    In every world ``G <- r + gamma (1 - done) G``; the deviation is that of G over time and worlds.

    Args:
        num_envs: worlds.
        gamma: discount.
        value_range: where given, rewards are also divided by the largest ``|G|`` over it, so that scaled returns stay
            within a categorical critic's atoms.
        device: where the statistics live.
    """

    def __init__(
        self, num_envs: int, gamma: float, value_range: float | None = None, device: torch.device | str = "cpu"
    ):
        self.gamma, self.value_range = gamma, value_range
        self.moments = Moments(1, device)
        self.returns = torch.zeros(num_envs, 1, dtype=torch.float64, device=device)
        self.largest = torch.zeros((), dtype=torch.float64, device=device)

    def update(self, reward: Tensor, done: Tensor) -> None:
        """Take in a step's rewards and ends of episodes, (num_envs, 1) each."""
        self.returns.copy_(reward + self.gamma * (~done).double() * self.returns)
        self.moments.update(self.returns)
        self.largest.copy_(torch.maximum(self.largest, self.returns.abs().max()))

    def __call__(self, reward: Tensor) -> Tensor:
        """Scale (B, 1)."""
        divisor = (self.moments.variance + EPSILON).sqrt().squeeze()
        if self.value_range is not None:
            divisor = torch.maximum(divisor, self.largest / self.value_range)
        return reward / divisor.float()

    def state_dict(self) -> dict[str, Tensor]:
        """The statistics by name."""
        return {**self.moments.tensors(), "returns": self.returns, "largest": self.largest}

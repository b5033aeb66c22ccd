"""Actor and critics."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

LOG_STD_RANGE = (-20.0, 2.0)


class BatchNorm(nn.Module):
    """Batch normalisation with running statistics (Ioffe and Szegedy 2015), (B, features) -> (B, features).

    In training mode a batch is normalised by its own statistics, and the running ones move by `momentum` towards
    them; in evaluation mode the running ones serve. Unlike torch's it is made of plain tensor operations, so that
    it works under vmap over an ensemble of critics and fuses into the compiled update.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int, momentum: float = 0.01, eps: float = 1e-3):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            mean, var = x.mean(0), x.var(0, correction=0)
            unbiased = var.detach() * (x.shape[0] / (x.shape[0] - 1))
            # lerp_ has no batching rule: under vmap it would loop over the critics.
            self.running_mean.mul_(1 - self.momentum).add_(mean.detach() * self.momentum)
            self.running_var.mul_(1 - self.momentum).add_(unbiased * self.momentum)
        else:
            mean, var = self.running_mean, self.running_var
        return (x - mean) * torch.rsqrt(var + self.eps) * self.weight + self.bias


class Actor(nn.Module):
    """Gaussian policy before the tanh: observation (B, obs_dim) -> loc and scale, (B, action_dim) each."""

    def __init__(self, observation_dim: int, action_dim: int, hidden: Sequence[int]):
        super().__init__()
        self.body = mlp([observation_dim, *hidden, 2 * action_dim])

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_std = self.body(observation).chunk(2, dim=-1)
        return loc, log_std.clamp(*LOG_STD_RANGE).exp()

    @torch.no_grad()
    def sample(self, observation: Tensor) -> Tensor:
        """Actions drawn from the policy, (B, action_dim) in [-1, 1]."""
        loc, scale = self(observation)
        return torch.tanh(loc + scale * torch.randn_like(loc))

    @torch.no_grad()
    def mode(self, observation: Tensor) -> Tensor:
        """The deterministic policy, (B, action_dim) in [-1, 1]."""
        return torch.tanh(self(observation)[0])


class Critic(nn.Module):
    """Value of observation (B, obs_dim) and action (B, action_dim) in [-1, 1]: (B, 1).

    With `batch_norm`, on the input and after each ReLU, as in CrossQ (Bhatt et al. 2024).
    """

    def __init__(self, observation_dim: int, action_dim: int, hidden: Sequence[int], batch_norm: bool):
        super().__init__()
        self.body = mlp([observation_dim + action_dim, *hidden, 1], batch_norm)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.body(torch.cat([observation, action], dim=-1))


def mlp(widths: Sequence[int], batch_norm: bool = False) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them, and batch norm before each of them if asked for."""
    layers: list[nn.Module] = []
    for i, (width, following) in enumerate(pairwise(widths)):
        if i > 0:
            layers.append(nn.ReLU())
        if batch_norm:
            layers.append(BatchNorm(width))
        layers.append(nn.Linear(width, following))
    return nn.Sequential(*layers)

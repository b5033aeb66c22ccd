"""Random transitions for replay buffers."""

from __future__ import annotations

import torch
from tensordict import TensorDict

from envs import transition as transitions


def random_transitions(count: int, observation_dim: int, action_dim: int) -> TensorDict:
    """`count` transitions of normal observations and rewards and uniform actions; one in a hundred terminates."""
    return transitions.make(
        torch.randn(count, observation_dim),
        2 * torch.rand(count, action_dim) - 1,
        torch.randn(count, observation_dim),
        torch.randn(count),
        torch.rand(count) < 0.01,
        torch.zeros(count, dtype=torch.bool),
    )

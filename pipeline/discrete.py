"""Discrete actions: levels per actuator, their categorical policies, and critics that value all of them.

An actuator's levels are evenly spaced from -1 to 1. A policy chooses by one or more independent categorical
distributions, its heads. ``joint``: one head over all combinations of the actuators' levels. ``factored``: one head for
each actuator, so that the log-probability of an action is a sum over actuators (Tang and Agrawal 2020, arXiv
1901.10500). Transitions hold actions as continuous policies do, as numbers in [-1, 1].
"""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn

from saltus.errors import SaltusError

MAX_JOINT_ACTIONS = 1024


class ActionLevels(nn.Module):
    """The actions that a discrete policy chooses from.

    Args:
        action_dim: number of actuators.
        levels: levels per actuator, at least 2.
        policy: ``"joint"`` or ``"factored"``.

    Attributes:
        heads: number of categorical distributions.
        choices: number of choices of each.

    Raises:
        SaltusError: fewer than 2 levels, or more joint actions than `MAX_JOINT_ACTIONS`.
    """

    table: Tensor

    def __init__(self, action_dim: int, levels: int, policy: Literal["joint", "factored"]):
        super().__init__()
        _check(action_dim, levels, policy)
        self.action_dim, self.levels, self.joint = action_dim, levels, policy == "joint"
        values = torch.linspace(-1, 1, levels)
        if self.joint:
            self.heads, self.choices = 1, levels**action_dim
            values = torch.cartesian_prod(*[values] * action_dim).reshape(self.choices, action_dim)
        else:
            self.heads, self.choices = action_dim, levels
        self.register_buffer("table", values, persistent=False)

    def actions(self, index: Tensor) -> Tensor:
        """The actions of choices: (..., heads) int64 -> (..., action_dim) in [-1, 1]."""
        return self.table[index.squeeze(-1) if self.joint else index]

    def index(self, action: Tensor) -> Tensor:
        """Inverse of `actions`: (..., action_dim) -> (..., heads) int64; the nearest level of each actuator."""
        position = ((action + 1) * ((self.levels - 1) / 2)).round()
        index = position.nan_to_num(0).clamp(0, self.levels - 1).long()
        if not self.joint:
            return index
        total = index[..., 0]
        for actuator in range(1, self.action_dim):  # the last actuator changes fastest, as in `cartesian_prod`
            total = total * self.levels + index[..., actuator]
        return total.unsqueeze(-1)


def _check(action_dim: int, levels: int, policy: str) -> None:
    if levels < 2:
        raise SaltusError(
            f"--policy {policy} (as of --preset sac-discrete) needs discrete actions, and the task has {action_dim} "
            "continuous ones: give --action-levels 5, or another number of levels per actuator, at least 2"
        )
    if policy == "joint" and action_dim * math.log(levels) > math.log(MAX_JOINT_ACTIONS) + 1e-9:
        raise SaltusError(
            f"{action_dim} actuators with --action-levels {levels} have {levels**action_dim:,} joint actions, and at "
            f"most {MAX_JOINT_ACTIONS:,} work: use --policy factored, which chooses each actuator's level on its own "
            f"({action_dim} x {levels} outputs), or fewer levels"
        )


class CategoricalActor(nn.Module):
    """A policy over discrete actions: observation (B, obs_dim) -> logits (B, heads, choices).

    Args:
        body: observation (B, obs_dim) -> (B, heads * choices).
        levels: the actions.
    """

    def __init__(self, body: nn.Module, levels: ActionLevels):
        super().__init__()
        self.body, self.levels = body, levels

    def forward(self, observation: Tensor) -> Tensor:
        return self.body(observation).unflatten(-1, (self.levels.heads, self.levels.choices))

    @torch.no_grad()
    def sample(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Actions of the stochastic policy, (B, action_dim), for standard normal `noise` (B, action_dim).

        The noise's cumulative probability chooses from each head's cumulative distribution, so that repeated noise
        repeats the choice's quantile.
        """
        uniform = torch.special.ndtr(noise[:, : self.levels.heads])
        return self.levels.actions(quantile_index(self(observation).softmax(-1), uniform))

    @torch.no_grad()
    def mode(self, observation: Tensor) -> Tensor:
        """The most probable actions, (B, action_dim) in [-1, 1]."""
        return self.deterministic(observation)

    def deterministic(self, observation: Tensor) -> Tensor:
        """`mode`, as a program to export."""
        return self.levels.actions(self(observation).argmax(-1))

    def standalone(self) -> CategoricalActor:
        """A copy with the same `mode`, as a module that can be traced."""
        return deepcopy(self)

    def random(self, uniform: Tensor) -> Tensor:
        """Uniformly random levels, (N, action_dim), for numbers that are uniform in [0, 1), (N, action_dim)."""
        last = self.levels.levels - 1
        return (uniform * (last + 1)).floor().clamp(max=last) * (2 / last) - 1


def quantile_index(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Sample from categorical distributions by inverting their cumulative distribution functions.

    Unlike torch.multinomial it reads no value on the host and draws nothing.

    Args:
        probabilities: (..., choices).
        uniform: in [0, 1], (...).

    Returns:
        Indices, (...) int64. A choice of probability 0 is never drawn, unless all later ones are 0, too.
    """
    reached = probabilities.cumsum(-1) <= uniform.unsqueeze(-1)
    return reached.sum(-1).clamp(max=probabilities.shape[-1] - 1)


class LevelCritic(nn.Module):
    """Values of all levels: observation (B, obs_dim), and a privileged one if there is one, -> (B, heads, choices).

    The value of an action is the sum of its levels' values over the heads. With one head this is any function of the
    joint action. With a head for each actuator it is an additive one (Seyde et al. 2023, arXiv 2210.12566).
    """

    def __init__(self, body: nn.Module, levels: ActionLevels):
        super().__init__()
        self.body, self.heads, self.choices = body, levels.heads, levels.choices

    def forward(self, *observations: Tensor) -> Tensor:
        return self.body(torch.cat(observations, dim=-1)).unflatten(-1, (self.heads, self.choices))

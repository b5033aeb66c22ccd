"""Discrete actions: levels per actuator, and their categorical policies.

A continuous actuator's levels are evenly spaced from -1 to 1. An actuator of an environment with discrete actions has
its choices as levels, spaced in the same way. A policy chooses by one or more independent categorical distributions,
its heads. ``joint``: one head over all combinations of the actuators' levels. ``factored``: one head for each actuator,
so that the log-probability of an action is a sum over actuators (Tang and Agrawal 2020, arXiv 1901.10500). Transitions
hold actions as continuous policies do, as numbers in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.dimensions import Dimensions
from saltus.errors import SaltusError

MAX_JOINT_ACTIONS = 1024
AUTO_LEVELS = 5
"""Levels per continuous actuator with ``action_levels`` auto."""
_NEVER = -1e9
"""Logit, or value, of a choice that a head does not have. Finite, so that its product with probability 0 is 0."""


class ActionLevels(nn.Module):
    """The actions that a discrete policy chooses from.

    Args:
        counts: levels of each actuator, at least 2.
        policy: ``"joint"`` or ``"factored"``.

    Attributes:
        heads: number of categorical distributions.
        choices: number of choices of each; where they differ, the largest number.
        outputs: number of choices of all heads together, which a network values.
        largest_entropy: that of the uniform policy.
    """

    table: Tensor
    head: Tensor
    half_steps: Tensor
    skipped: Tensor
    missing: Tensor
    output: Tensor

    def __init__(self, counts: Sequence[int], policy: Literal["joint", "factored"]):
        super().__init__()
        self.counts, self.joint = tuple(counts), policy == "joint"
        self.largest_entropy = sum(math.log(count) for count in counts)
        values = [torch.linspace(-1, 1, count) for count in counts]
        most = max(counts)
        if self.joint:
            self.heads, self.choices = 1, math.prod(counts)
            self.outputs = self.choices
            table = torch.cartesian_prod(*values).reshape(self.choices, len(counts))
        else:
            self.heads, self.choices, self.outputs = len(counts), most, sum(counts)
            # Heads of fewer choices skip the first ones: the sampling by cumulative probabilities, which ends at the
            # last one in spite of rounding, then never draws a missing one.
            table = torch.stack([torch.cat([one[:1].expand(most - len(one)), one]) for one in values])
        skipped = torch.tensor([0] if self.joint else [most - count for count in counts])
        ends = torch.tensor(counts).cumsum(0).unsqueeze(-1)
        for name, value in {
            "table": table,
            "head": torch.arange(len(counts)),
            "half_steps": (torch.tensor(counts) - 1) / 2,
            "skipped": skipped,
            "missing": torch.arange(self.choices) < skipped.unsqueeze(-1),
            "output": (ends - most + torch.arange(most)).clamp(min=0),
        }.items():
            self.register_buffer(name, value, persistent=False)

    def split(self, outputs: Tensor) -> Tensor:
        """Logits or values per head: (..., outputs) -> (..., heads, choices)."""
        if self.heads * self.choices == self.outputs:
            return outputs.unflatten(-1, (self.heads, self.choices))
        return torch.where(self.missing, _NEVER, outputs[..., self.output])

    def boltzmann(self, values: Tensor, temperature: Tensor) -> Tensor:
        """Logits of the policy proportional to exp(values / temperature), (..., heads, choices).

        The best choice of a head has logit 0. All logits are finite, and missing choices have probability 0, at any
        temperature above 0.

        Args:
            values: a result of `split`.
            temperature: of the policy, ().
        """
        logits = ((values - values.amax(-1, keepdim=True)) / temperature).clamp(min=_NEVER)
        return torch.where(self.missing, _NEVER, logits)

    def actions(self, index: Tensor) -> Tensor:
        """The actions of choices: (..., heads) int64 -> (..., action_dim) in [-1, 1]."""
        return self.table[index.squeeze(-1)] if self.joint else self.table[self.head, index]

    def index(self, action: Tensor) -> Tensor:
        """Inverse of `actions`: (..., action_dim) -> (..., heads) int64; the nearest level of each actuator."""
        position = ((action + 1) * self.half_steps).round().nan_to_num(0)
        index = torch.minimum(position.clamp(min=0), 2 * self.half_steps).long()
        if not self.joint:
            return index + self.skipped
        total = index[..., 0]
        for actuator in range(1, len(self.counts)):  # the last actuator changes fastest, as in `cartesian_prod`
            total = total * self.counts[actuator] + index[..., actuator]
        return total.unsqueeze(-1)

    def random(self, uniform: Tensor) -> Tensor:
        """Uniformly random levels, (N, action_dim), for numbers that are uniform in [0, 1), (N, action_dim)."""
        last = 2 * self.half_steps
        return torch.minimum((uniform * (last + 1)).floor(), last) * (2 / last) - 1


def make_levels(config: Config, dimensions: Dimensions) -> ActionLevels:
    """The levels of a configuration with a joint or factored policy.

    Args:
        config: the configuration of the run.
        dimensions: number of actuators, and the choices of each if the environment has discrete actions.

    Raises:
        SaltusError: no levels, other levels than the environment has, or more joint actions than `MAX_JOINT_ACTIONS`.
    """
    policy, levels = config.policy, config.action_levels
    action_dim, choices = dimensions.action_dim, dimensions.action_choices
    assert policy != "gaussian"
    if choices and levels not in ("auto", 0) and any(count != levels for count in choices):
        raise SaltusError(
            f"--action-levels {levels} contradicts the environment, whose actions are discrete: "
            f"{describe_choices(choices)}. Leave the option out"
        )
    counts = list(choices) or [AUTO_LEVELS if levels == "auto" else levels] * action_dim
    if min(counts) < 2:
        raise SaltusError(
            f"--policy {policy} (as of --preset sac-discrete) needs discrete actions, and the task has {action_dim} "
            "continuous ones: give --action-levels 5, or another number of levels per actuator, at least 2"
        )
    if policy == "joint" and math.prod(counts) > MAX_JOINT_ACTIONS:
        given = describe_choices(choices) if choices else f"{action_dim} actuators with --action-levels {counts[0]}"
        outputs = f"{sum(counts)}" if choices else f"{action_dim} x {counts[0]}"
        raise SaltusError(
            f"{given} have {math.prod(counts):,} joint actions, and at most {MAX_JOINT_ACTIONS:,} work: use --policy "
            f"factored, which chooses each actuator's level on its own ({outputs} outputs)"
            + ("" if choices else ", or fewer levels")
        )
    return ActionLevels(counts, policy)


def describe_choices(choices: Sequence[int]) -> str:
    """The choices of an environment with discrete actions, for messages."""
    if len(choices) == 1:
        return f"{choices[0]:,} choices"
    return f"{len(choices)} actuators of {', '.join(f'{count:,}' for count in choices)} choices"


class CategoricalActor(nn.Module):
    """A policy over discrete actions: observation (B, obs_dim) -> logits (B, heads, choices).

    Args:
        body: observation (B, obs_dim) -> (B, levels.outputs).
        levels: the actions.
    """

    def __init__(self, body: nn.Module, levels: ActionLevels):
        super().__init__()
        self.body, self.levels = body, levels

    def forward(self, observation: Tensor) -> Tensor:
        return self.levels.split(self.body(observation))

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
        """`ActionLevels.random`."""
        return self.levels.random(uniform)


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

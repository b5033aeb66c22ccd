"""The project's losses over tabular actors and critics, and what the laws share.

Observations are one-hot states, so that an actor or a critic is a table, and the laws can be solved exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.special import ndtri
from tensordict import TensorDict
from torch import Tensor, nn

from pipeline import losses
from pipeline.agent import Agent
from pipeline.config import Config
from pipeline.dimensions import Dimensions
from pipeline.networks import Actor
from pipeline.presets import preset as preset_config
from pipeline.torchrl_adapter import Loss


class Table(nn.Module):
    """Rows of a table, by one-hot states: (B, states) -> (B, columns)."""

    def __init__(self, rows: Tensor):
        super().__init__()
        self.rows = nn.Parameter(rows.float().clone())

    def forward(self, observation: Tensor) -> Tensor:
        return observation @ self.rows


class FunctionCritic(nn.Module):
    """A critic that is a function: (observation (B, states), action (B, actions)) -> (B,). Nothing is learned."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.function = function
        self.unused = nn.Parameter(torch.zeros(1))  # the losses expect a parameter

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.function(observation, action).unsqueeze(-1) + 0 * self.unused


def settings(preset: str, **overrides: Any) -> Config:
    """A preset on the CPU, eager."""
    return replace(preset_config(preset, "InvertedPendulum-v5"), **{"device": "cpu", "compile": False, **overrides})


@contextmanager
def networks(
    policy: Tensor, make_critic: Callable[[], nn.Module], make_value_network: Callable[[], nn.Module] | None = None
) -> Iterator[None]:
    """Let losses have a tabular actor, and critics of one's own.

    Args:
        policy: loc and log scale of each state, (states, 2 actions).
        make_critic: makes a critic.
        make_value_network: makes a state-value network. None: the configuration has none.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "_make_actor", lambda *_: Actor(Table(policy)))
        patch.setattr(losses, "_make_critic", lambda *_: make_critic())
        if make_value_network is not None:
            patch.setattr(losses, "_make_value_network", lambda *_: make_value_network())
        yield


def tabular_loss(
    config: Config,
    policy: Tensor,
    make_critic: Callable[[], nn.Module],
    make_value_network: Callable[[], nn.Module] | None = None,
) -> Loss:
    """The loss module of a configuration over `networks`."""
    with networks(policy, make_critic, make_value_network):
        return losses.make_loss(config, Dimensions(len(policy), policy.shape[1] // 2), torch.device("cpu"))[0]


def tabular_agent(
    config: Config,
    policy: Tensor,
    make_critic: Callable[[], nn.Module],
    make_value_network: Callable[[], nn.Module] | None = None,
) -> Agent:
    """The agent of a configuration over `networks`."""
    with networks(policy, make_critic, make_value_network):
        return Agent(config, Dimensions(len(policy), policy.shape[1] // 2))


@contextmanager
def given_noise(noise: Tensor) -> Iterator[None]:
    """Let the losses draw this noise, (B, actions), instead of standard normal numbers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributions.normal, "_standard_normal", lambda shape, **_: noise.float().expand(shape))
        yield


def one_hot(states: Tensor, count: int) -> Tensor:
    return nn.functional.one_hot(states, count).float()


def states_batch(states: Tensor, count: int) -> TensorDict:
    """A batch for the actor's loss."""
    return TensorDict({"observation": one_hot(states, count)}, batch_size=[len(states)])


def equal_nodes(count: int) -> Tensor:
    """Equally likely values in place of a standard normal variable, of variance 1, (count,) float64."""
    nodes = torch.from_numpy(ndtri((torch.arange(count).double().numpy() + 0.5) / count))
    return nodes / nodes.square().mean().sqrt()


def critic_rows(loss: Loss) -> Tensor:
    """The only parameter of tabular critics, (critics, ...)."""
    (rows,) = loss.qvalue_network_params.flatten_keys(".").values()
    return rows


def target_rows(loss: Loss) -> Tensor:
    """The only parameter of tabular target critics, (critics, ...)."""
    (rows,) = loss.target_qvalue_network_params.flatten_keys(".").values()
    return rows


def value_rows(loss: Loss) -> Tensor:
    """The only parameter of a tabular state-value network, (states, 1)."""
    (rows,) = loss.value_network_params.flatten_keys(".").values()
    return rows


def value_target_rows(loss: Loss) -> Tensor:
    """The only parameter of its copy, (states, 1)."""
    (rows,) = loss.target_value_network_params.flatten_keys(".").values()
    return rows


def policy_rows(loss: Loss) -> Tensor:
    """The only parameter of a tabular actor, (states, 2 actions)."""
    (rows,) = loss.actor_network_params.flatten_keys(".").values()
    return rows


def assert_mean(draws: Tensor, exact: Tensor, power: float = 10.0) -> None:
    """Check that independent draws (N, ...) have this mean, (...), within 4.5 standard errors.

    The largest entry must be at least `power` standard errors from 0, so that a wrong sign or factor would show.
    """
    error = draws.std(0) / len(draws) ** 0.5
    distance = (draws.mean(0) - exact).abs()
    assert (distance <= 4.5 * error + 1e-6).all(), f"{draws.mean(0)} +- {error}, expected {exact}"
    if power:
        largest = exact.abs().argmax()
        assert exact.flatten()[largest].abs() > power * error.flatten()[largest], "too few draws"

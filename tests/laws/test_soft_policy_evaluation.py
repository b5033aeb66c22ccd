"""Law 1, soft policy evaluation (Haarnoja et al. 2018, lemma 1), on random finite MDPs, of both forms of SAC.

The actor is a table over four states. Critics are tables over states and three intervals of the action. The policy's
noise takes six equally likely values. So every expectation is a finite sum, and the soft Q solves a linear system.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from law_helpers import (
    Table,
    critic_rows,
    equal_nodes,
    given_noise,
    one_hot,
    settings,
    tabular_agent,
    tabular_loss,
    target_rows,
    value_rows,
    value_target_rows,
)
from scipy.stats import norm
from tensordict import TensorDict
from torch import Tensor, nn

from envs import transition as transitions
from pipeline.ranks import Ranks
from pipeline.torchrl_adapter import Loss, critic_loss, target_parameters, value_loss, value_parameters

STATES, INTERVALS, SUCCESSORS, NOISES = 4, 3, 2, 6
EDGES = torch.tensor([-1 / 3, 1 / 3])
GAMMA, ALPHA, UPDATES = 0.7, 0.3, 200
SETTINGS: dict[str, dict[str, Any]] = {
    "sac": {},
    "sac-v1": {},
    "redq": {"num_critics": 3},
    "droq": {"dropout": 0.0},
    "crossq": {"critic_norm": "batch"},
}
pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
every_loss = pytest.mark.parametrize("preset", SETTINGS)


class IntervalCritic(nn.Module):
    """A table over states and intervals of the action: (B, states), (B, 1) -> (B, outputs)."""

    def __init__(self, outputs: int = 1):
        super().__init__()
        self.table = nn.Parameter(torch.randn(STATES, INTERVALS, outputs))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        rows = torch.einsum("bs,sko->bko", observation, self.table)
        return (rows * one_hot(torch.bucketize(action.detach()[:, 0], EDGES), INTERVALS).unsqueeze(-1)).sum(1)


@dataclass
class FiniteMDP:
    """Rewards (states, intervals), successors and terminations (states, intervals, SUCCESSORS), and a policy."""

    reward: Tensor
    successor: Tensor
    terminated: Tensor
    policy: Tensor

    @classmethod
    def random(cls, seed: int) -> FiniteMDP:
        generator = torch.Generator().manual_seed(seed)
        shape = STATES, INTERVALS, SUCCESSORS
        reward = torch.randn(shape[:2], generator=generator)
        successor = torch.randint(STATES, shape, generator=generator)
        terminated = torch.rand(shape, generator=generator) < 0.25
        loc = torch.randn(STATES, 1, generator=generator)
        log_scale = torch.rand(STATES, 1, generator=generator) - 0.7
        return cls(reward, successor, terminated, torch.cat([loc, log_scale], 1))

    def batch(self) -> tuple[TensorDict, Tensor]:
        """Every state, interval, successor and value of the noise once, and the noise at the successors."""
        ranges = (STATES, INTERVALS, SUCCESSORS, NOISES)
        s, k, c, m = torch.meshgrid(*(torch.arange(size) for size in ranges), indexing="ij")
        s, k, c, m = (part.flatten() for part in (s, k, c, m))
        action = (2 * k.float() / (INTERVALS - 1) - 1).unsqueeze(-1) * 0.9
        terminated = self.terminated[s, k, c]
        truncated = (c == 0) & ~terminated  # a time limit, which must change nothing
        batch = transitions.make(
            one_hot(s, STATES),
            action,
            one_hot(self.successor[s, k, c], STATES),
            self.reward[s, k],
            terminated,
            truncated,
        )
        return batch, equal_nodes(NOISES)[m].unsqueeze(-1)

    def soft_value(self, q: Tensor, alpha: float) -> Tensor:
        """V(s) = E[Q(s, a) - alpha log pi(a|s)], (states,), from the definition, in float64."""
        loc, scale = self.policy[:, :1].double().numpy(), self.policy[:, 1:].double().exp().numpy()
        u = loc + scale * equal_nodes(NOISES).numpy()
        log_prob = norm.logpdf(u, loc, scale) - np.log(1 - np.tanh(u) ** 2)
        interval = np.digitize(np.tanh(u), EDGES.numpy())
        chosen = np.take_along_axis(q.double().numpy(), interval, 1)
        return torch.from_numpy((chosen - alpha * log_prob).mean(1))

    def backup(self, q: Tensor, alpha: float = ALPHA) -> Tensor:
        """The soft Bellman backup (eq. 2 and 3), (states, intervals) float64."""
        value = self.soft_value(q, alpha)[self.successor] * ~self.terminated
        return self.reward.double() + GAMMA * value.mean(-1)

    def soft_q(self, alpha: float = ALPHA) -> Tensor:
        """The fixed point of `backup`, by a linear system, (states, intervals) float64."""
        size = STATES * INTERVALS
        offset = self.backup(torch.zeros(STATES, INTERVALS), alpha).flatten()
        units = torch.eye(size).view(size, STATES, INTERVALS)
        matrix = torch.stack([self.backup(unit, alpha).flatten() - offset for unit in units], 1)
        return torch.linalg.solve(torch.eye(size).double() - matrix, offset).view(STATES, INTERVALS)


def make_value_network() -> nn.Module:
    return Table(torch.randn(STATES, 1))


def make_loss(preset: str, mdp: FiniteMDP, alpha: float = ALPHA) -> Loss:
    config = settings(preset, gamma=GAMMA, alpha_init=alpha, n_step=1, **SETTINGS[preset])
    return tabular_loss(config, mdp.policy, IntervalCritic, make_value_network)


def minimizer(loss: Loss, mdp: FiniteMDP, bootstrap: Tensor) -> Tensor:
    """The tables at which the critics' loss is smallest, (critics, states, intervals), given those it bootstraps from.

    The loss is a parabola in each entry, of curvature 2 / (pairs of state and interval): one Newton step ends in its
    minimum. A state-value network takes such a step first, from the critics to bootstrap from, and is copied.
    """
    batch, noise = mdp.batch()
    rows = critic_rows(loss)
    with torch.no_grad():
        rows.copy_(bootstrap.unsqueeze(-1))
    if value_parameters(loss):
        with torch.no_grad():
            value_target_rows(loss).copy_(value_minimizer(loss, mdp))
            value_rows(loss).add_(torch.randn(STATES, 1))  # the network itself must not make the target
            rows.add_(torch.randn_like(rows))
    elif target_parameters(loss):
        with torch.no_grad():
            target_rows(loss).copy_(bootstrap.unsqueeze(-1))
            rows.add_(torch.randn_like(rows))  # the critics themselves must not make the target
    with given_noise(noise):
        (gradient,) = torch.autograd.grad(critic_loss(loss, batch)[0], [rows])
    return (rows - gradient * STATES * INTERVALS / 2).detach().squeeze(-1).double()


def value_minimizer(loss: Loss, mdp: FiniteMDP) -> Tensor:
    """The state values at which J_V is smallest, (states, 1), given the critics."""
    batch, noise = mdp.batch()
    rows = value_rows(loss)
    with given_noise(noise), torch.enable_grad():
        (gradient,) = torch.autograd.grad(value_loss(loss, batch), [rows])
    return (rows - gradient * STATES / 2).detach()


def tables(count: int, seed: int) -> Tensor:
    return torch.randn(count, STATES, INTERVALS, generator=torch.Generator().manual_seed(seed)) * 3


@every_loss
@pytest.mark.parametrize("seed", range(3))
def test_the_critic_loss_is_smallest_at_the_soft_bellman_backup(preset: str, seed: int) -> None:
    mdp = FiniteMDP.random(seed)
    loss = make_loss(preset, mdp)
    q = tables(1, seed)[0]
    found = minimizer(loss, mdp, q.expand(loss.num_qvalue_nets, -1, -1))
    for table in found:
        torch.testing.assert_close(table, mdp.backup(q), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("preset", ["sac", "sac-v1", "crossq"])
@pytest.mark.parametrize("seed", range(3))
def test_different_critics_bootstrap_from_the_smaller_value(preset: str, seed: int) -> None:
    mdp, pair = FiniteMDP.random(seed), tables(2, seed)
    for table in minimizer(make_loss(preset, mdp), mdp, pair):
        torch.testing.assert_close(table, mdp.backup(pair.amin(0)), rtol=1e-4, atol=1e-4)


@every_loss
def test_the_backup_contracts_by_gamma_in_the_maximum_norm(preset: str) -> None:
    mdp = FiniteMDP.random(5)
    loss = make_loss(preset, mdp)

    def backup(q: Tensor) -> Tensor:
        return minimizer(loss, mdp, q.expand(loss.num_qvalue_nets, -1, -1))[0]

    for seed in range(10):
        one, two = tables(2, seed)
        before, after = (one - two).abs().max(), (backup(one) - backup(two)).abs().max()
        assert after <= GAMMA * before + 1e-4
    # Gamma is the smallest such factor: a constant passes through wherever an episode goes on.
    shift = backup(tables(1, 0)[0] + 10) - backup(tables(1, 0)[0])
    torch.testing.assert_close(shift, 10 * GAMMA * (~mdp.terminated).double().mean(-1), rtol=1e-4, atol=1e-4)
    assert (~mdp.terminated).all(-1).any()


@every_loss
@pytest.mark.parametrize("alpha", [ALPHA, 1e-7])
def test_repeated_minimization_reaches_the_exact_soft_q(preset: str, alpha: float) -> None:
    """A temperature of almost zero gives the ordinary Q, without entropy."""
    mdp = FiniteMDP.random(7)
    loss, q = make_loss(preset, mdp, alpha), torch.zeros(STATES, INTERVALS)
    for _ in range(40):
        q = minimizer(loss, mdp, q.float().expand(loss.num_qvalue_nets, -1, -1))[0]
    exact = mdp.soft_q(alpha if alpha == ALPHA else 0.0)
    torch.testing.assert_close(q, exact, rtol=1e-4, atol=1e-4)
    assert (mdp.soft_q(ALPHA) - mdp.soft_q(0.0)).abs().max() > 0.1


@pytest.mark.parametrize("seed", range(2))
def test_the_state_value_is_smallest_at_the_soft_value_of_the_smaller_critic(seed: int) -> None:
    """J_V (eq. 5 of the first form), from critics that differ."""
    mdp, pair = FiniteMDP.random(seed), tables(2, seed)
    loss = make_loss("sac-v1", mdp)
    with torch.no_grad():
        critic_rows(loss).copy_(pair.unsqueeze(-1))
    expected = mdp.soft_value(pair.amin(0), ALPHA)
    torch.testing.assert_close(value_minimizer(loss, mdp)[:, 0].double(), expected, rtol=1e-4, atol=1e-4)


def test_the_agents_updates_reach_the_exact_soft_q() -> None:
    """Adam on the critics, and target networks that follow, from initial tables that differ between critics."""
    torch.manual_seed(0)
    mdp = FiniteMDP.random(3)
    schedule = {"critic_lr": 0.3, "lr_final_fraction": 0.01, "tau": 0.3}
    config = settings("sac", gamma=GAMMA, alpha_init=ALPHA, n_step=1, **schedule)
    agent = tabular_agent(config, mdp.policy, IntervalCritic)
    batch, noise = mdp.batch()
    with given_noise(noise):
        for update in range(UPDATES):
            agent.apply_schedules(min(1.0, update / (0.8 * UPDATES)), 0, 0.008)
            agent.update_critic(batch)
    for table in critic_rows(agent.loss).detach().squeeze(-1).double():
        torch.testing.assert_close(table, mdp.soft_q(), rtol=0, atol=0.02)


class Descent:
    """Gradient descent whose rate makes a step on a squared error, averaged over equally frequent entries, exact."""

    def __init__(self, parameter: Tensor, entries: int):
        self.parameter, self.rate = parameter, entries / 2

    def minimize(self, loss: Tensor, _ranks: Ranks) -> None:
        self.parameter.data -= self.rate * torch.autograd.grad(loss, self.parameter)[0]


@pytest.mark.parametrize("preset", ["sac", "sac-v1"])
def test_the_updates_of_both_forms_reach_the_same_exact_soft_values(preset: str) -> None:
    torch.manual_seed(0)
    mdp = FiniteMDP.random(4)
    config = settings(preset, gamma=GAMMA, alpha_init=ALPHA, alpha_lr=0.0, n_step=1, tau=1.0)
    agent = tabular_agent(config, mdp.policy, IntervalCritic, make_value_network)
    agent.optimizers["critic"] = Descent(critic_rows(agent.loss), STATES * INTERVALS)  # type: ignore[assignment]
    if preset == "sac-v1":
        agent.optimizers["value"] = Descent(value_rows(agent.loss), STATES)  # type: ignore[assignment]
    batch, noise = mdp.batch()
    with given_noise(noise):
        for _ in range(40):
            agent.update_critic(batch)
    for table in critic_rows(agent.loss).detach().squeeze(-1).double():
        torch.testing.assert_close(table, mdp.soft_q(), rtol=1e-4, atol=1e-4)
    if preset == "sac-v1":
        exact = mdp.soft_value(mdp.soft_q(), ALPHA)
        for rows in (value_rows(agent.loss), value_target_rows(agent.loss)):
            torch.testing.assert_close(rows.detach()[:, 0].double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target_network", [True, False])
def test_categorical_critics_have_the_soft_q_as_their_mean(target_network: bool) -> None:
    """The cross-entropy is smallest at the mean target distribution, which its gradient for the logits shows."""
    mdp = FiniteMDP.random(11)
    config = settings(
        "xqc", gamma=GAMMA, alpha_init=ALPHA, n_step=1, num_atoms=41, value_range=12.0, target_network=target_network
    )
    loss = tabular_loss(config, mdp.policy, lambda: IntervalCritic(41))
    batch, noise = mdp.batch()
    rows, atoms = critic_rows(loss), torch.linspace(-12, 12, 41)
    with torch.no_grad():
        rows.copy_(-atoms.square().expand_as(rows))
    for _ in range(40):
        if target_network:
            target_rows(loss).copy_(rows.detach())
        with given_noise(noise):
            (gradient,) = torch.autograd.grad(critic_loss(loss, batch)[0], [rows])
        distribution = rows.detach().softmax(-1) - gradient * STATES * INTERVALS
        with torch.no_grad():
            rows.copy_(distribution.clamp(min=1e-12).log())
    for table in rows.detach().softmax(-1) @ atoms:
        torch.testing.assert_close(table.double(), mdp.soft_q(), rtol=1e-3, atol=1e-3)

"""Law 2, soft policy improvement and soft policy iteration (Haarnoja et al. 2018, lemma 2 and theorem 1).

States are finite and the action is a number in [-1, 1]. Rewards are made from a tanh-Gaussian policy and state values
that become the optimum: r(s, a) = alpha log pi*(a|s) + V*(s) - gamma E[V*(s')|s, a]. So the optimum lies in the actor's
family, and soft value iteration finds it. The critic is the exact soft Q of a policy, a function of its state values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from law_helpers import FunctionCritic, equal_nodes, given_noise, policy_rows, settings, states_batch, tabular_loss
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor

from pipeline.torchrl_adapter import Loss, actor_loss

STATES, NODES, GAMMA, ALPHA = 3, 64, 0.8, 0.4
Array = NDArray[np.float64]
pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


@dataclass
class ShapedMDP:
    """The optimum, and the successors' probabilities at the actions -1 and 1, between which they are linear.

    Attributes:
        loc, scale: of the optimal policy before the tanh, (STATES,).
        value: optimal soft values, (STATES,).
        ends: (2, STATES, STATES).
    """

    loc: Array
    scale: Array
    value: Array
    ends: Array

    @classmethod
    def random(cls, seed: int) -> ShapedMDP:
        rng = np.random.default_rng(seed)
        ends = rng.dirichlet(np.ones(STATES), size=(2, STATES))
        return cls(rng.normal(size=STATES) * 0.4, rng.uniform(0.4, 0.7, STATES), rng.normal(size=STATES) * 2, ends)

    def expect(self, value: Array, action: Array) -> Array:
        """E[value(s')|s, a] for actions (STATES, N), (STATES, N)."""
        low, high = (self.ends @ value)[..., None]
        return low + (high - low) * (1 + action) / 2

    def q(self, value: Array, u: Array) -> Array:
        """r(s, a) + gamma E[value(s')|s, a] for preimages u = atanh(a), (STATES, N)."""
        log_prob = norm.logpdf(u, self.loc[:, None], self.scale[:, None]) - np.log(1 - np.tanh(u) ** 2)
        return ALPHA * log_prob + self.value[:, None] + GAMMA * self.expect(value - self.value, np.tanh(u))

    def evaluate(self, policy: Tensor) -> Array:
        """The exact soft values of a policy whose noise takes NODES equally likely values, (STATES,)."""
        loc, scale = policy.detach().double().numpy()[:, :1], policy.detach().double().exp().numpy()[:, 1:]
        u = loc + scale * equal_nodes(NODES).numpy()
        log_prob = norm.logpdf(u, loc, scale) - np.log(1 - np.tanh(u) ** 2)
        offset = (self.q(np.zeros(STATES), u) - ALPHA * log_prob).mean(1)
        columns = [self.expect(unit, np.tanh(u)).mean(1) for unit in np.eye(STATES)]
        return np.linalg.solve(np.eye(STATES) - GAMMA * np.stack(columns, 1), offset)

    def soft_value_iteration(self) -> Array:
        """V <- alpha log integral of exp(Q / alpha), from zero, (STATES,)."""
        u = np.tile(np.linspace(-8, 8, 2001), (STATES, 1))
        width = (1 - np.tanh(u) ** 2) * (u[0, 1] - u[0, 0])
        value = np.zeros(STATES)
        for _ in range(150):
            value = ALPHA * np.log((np.exp(self.q(value, u) / ALPHA) * width).sum(1))
        return value

    def critic(self, value: Array) -> FunctionCritic:
        """The soft Q of a policy with these state values."""
        loc, scale, optimum, ends, given = (
            torch.from_numpy(part).float() for part in (self.loc, self.scale, self.value, self.ends, value)
        )

        def q(observation: Tensor, action: Tensor) -> Tensor:
            action, state = action[:, 0], observation.argmax(-1)
            u = action.atanh()
            log_prob = torch.distributions.Normal(loc[state], scale[state]).log_prob(u) - torch.log1p(-action.square())
            low, high = (ends @ (given - optimum))[:, state]
            return ALPHA * log_prob + optimum[state] + GAMMA * (low + (high - low) * (1 + action) / 2)

        return FunctionCritic(q)


def improve(mdp: ShapedMDP, policy: Tensor) -> Tensor:
    """The policy at which the actor's loss is smallest, given the exact soft Q of `policy`, (STATES, 2)."""
    value = mdp.evaluate(policy)
    loss: Loss = tabular_loss(settings("sac", alpha_init=ALPHA), policy, lambda: mdp.critic(value))
    state, node = torch.meshgrid(torch.arange(STATES), torch.arange(NODES), indexing="ij")
    batch, noise = states_batch(state.flatten(), STATES), equal_nodes(NODES)[node.flatten()].unsqueeze(-1)
    rows = policy_rows(loss)
    optimizer = torch.optim.LBFGS([rows], max_iter=30, tolerance_change=1e-9, line_search_fn="strong_wolfe")

    def closure() -> float:
        with given_noise(noise):
            cost = actor_loss(loss, batch.copy())[0]
        (rows.grad,) = torch.autograd.grad(cost, [rows])
        return float(cost.detach())

    optimizer.step(closure)
    return rows.detach().clone()


def random_policy(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.cat(
        [torch.randn(STATES, 1, generator=generator) * 0.5, -torch.rand(STATES, 1, generator=generator)], 1
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_projection_never_lowers_the_soft_value_of_a_state(seed: int) -> None:
    mdp, policy = ShapedMDP.random(seed), random_policy(seed)
    before, after = mdp.evaluate(policy), mdp.evaluate(improve(mdp, policy))
    assert (after >= before - 1e-4).all()
    assert (after > before + 0.01).any()


@pytest.mark.parametrize("seed", range(2))
def test_soft_policy_iteration_reaches_the_optimum_of_soft_value_iteration(seed: int) -> None:
    mdp, policy = ShapedMDP.random(seed + 10), random_policy(seed)
    optimum = mdp.soft_value_iteration()
    np.testing.assert_allclose(optimum, mdp.value, atol=1e-6)
    assert np.abs(mdp.evaluate(policy) - optimum).max() > 0.1
    for _ in range(6):
        policy = improve(mdp, policy)
    np.testing.assert_allclose(mdp.evaluate(policy), optimum, atol=0.02)
    np.testing.assert_allclose(policy[:, 0], mdp.loc, atol=0.02)
    np.testing.assert_allclose(policy[:, 1].exp(), mdp.scale, rtol=0.05)

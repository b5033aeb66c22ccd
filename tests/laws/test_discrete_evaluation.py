"""Law 1 with discrete actions: the agent's critic updates reach the soft fixed point of a random finite MDP."""

from __future__ import annotations

import pytest
import torch
from law_helpers import one_hot, settings
from torch import Tensor

from envs import transition as transitions
from pipeline.agent import Agent
from pipeline.dimensions import Dimensions
from pipeline.torchrl_adapter import DiscreteVariant

STATES, LEVELS = 3, 3
GAMMA, ALPHA, UPDATES, REPEATS = 0.6, 0.4, 250, 16
pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def fixed_point(reward: Tensor, successor: Tensor, terminated: Tensor, probabilities: Tensor | None) -> Tensor:
    """The soft Q of a policy, or without one the optimal soft Q, (states, levels), by repeated backups in float64."""
    q = torch.zeros(STATES, LEVELS, dtype=torch.float64)
    for _ in range(100):
        value = ALPHA * (q / ALPHA).logsumexp(1)
        if probabilities is not None:
            value = (probabilities * (q - ALPHA * probabilities.log())).sum(1)
        q = reward.double() + GAMMA * value[successor] * ~terminated
    return q


@pytest.mark.parametrize("update", ["exact", "score", "soft-q"])
def test_the_updates_of_discrete_critics_reach_the_soft_fixed_point(update: str) -> None:
    """The policy of `exact` and `score` is fixed; that of `soft-q` is the critics' own."""
    torch.manual_seed(1)
    shape = STATES, LEVELS
    reward, successor = torch.randn(shape), torch.randint(STATES, shape)
    terminated = torch.tensor([[False, True, False], [False, False, True], [False, False, False]])
    config = settings(
        "sac-discrete", policy="joint", discrete_update=update, action_levels=LEVELS, gamma=GAMMA, alpha_init=ALPHA,
        critic_hidden=(32,), critic_lr=0.02, lr_final_fraction=0.01, tau=0.2,
    )  # fmt: skip
    agent = Agent(config, Dimensions(STATES, 1))
    assert isinstance(agent.loss, DiscreteVariant)
    s, level = (part.flatten().repeat(REPEATS) for part in torch.meshgrid(*map(torch.arange, shape), indexing="ij"))
    action = (level.float() - 1).unsqueeze(-1)
    ended = terminated[s, level]
    batch = transitions.make(
        one_hot(s, STATES), action, one_hot(successor[s, level], STATES), reward[s, level], ended, ~ended & (s == 0)
    )
    for step in range(UPDATES):
        agent.apply_schedules(min(1.0, step / (0.8 * UPDATES)), 0, 0.008)
        agent.update_critic(batch.copy())
    first = batch[: STATES * LEVELS]
    probabilities = agent.loss.log_probs(first, differentiable=False)[::LEVELS, 0].exp().double()
    exact = fixed_point(reward, successor, terminated, None if update == "soft-q" else probabilities)
    assert (exact - reward).abs().max() > 0.3, "the successors' values have a share"
    for values in agent.loss.chosen_values(first).detach().double():
        torch.testing.assert_close(values.view(shape), exact, rtol=0, atol=0.1 if update == "score" else 0.02)

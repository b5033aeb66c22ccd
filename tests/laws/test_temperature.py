"""The temperature: descent in its logarithm, as in TorchRL, ends where the paper's loss for alpha itself is flat."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from law_helpers import FunctionCritic, equal_nodes, given_noise, policy_rows, settings, states_batch, tabular_agent
from scipy.optimize import brentq, minimize
from torch import Tensor

from pipeline.agent import Agent
from pipeline.torchrl_adapter import alpha_loss

TARGET, NODES, UPDATES = -0.4, 16, 400
pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
Z = equal_nodes(NODES)


def q(action: Tensor) -> Tensor:
    return -2 * (action - 0.3).square()


def exact_entropy(alpha: float) -> float:
    """The entropy of the tanh-Gaussian at which E[alpha log pi - Q] is smallest."""

    def log_prob_and_action(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        action = np.tanh(parameters[0] + np.exp(parameters[1]) * Z.numpy())
        return -0.5 * Z.numpy() ** 2 - parameters[1] - 0.5 * np.log(2 * np.pi) - np.log(1 - action**2), action

    def cost(parameters: np.ndarray) -> float:
        log_prob, action = log_prob_and_action(parameters)
        return float((alpha * log_prob + 2 * (action - 0.3) ** 2).mean())

    return -float(log_prob_and_action(minimize(cost, [0.0, -0.5], tol=1e-10).x)[0].mean())


def exact_temperature() -> float:
    """The temperature whose optimal policy has the target entropy: the fixed point of dual descent on eq. 18."""
    return float(brentq(lambda alpha: exact_entropy(alpha) - TARGET, 1e-3, 5.0, xtol=1e-6))


def make_agent(alpha: float, lr: float = 0.05) -> Agent:
    config = settings("sac", alpha_init=alpha, target_entropy=TARGET, actor_lr=lr, alpha_lr=lr, lr_final_fraction=0.01)
    policy = torch.tensor([[0.0, -0.5]])
    return tabular_agent(config, policy, lambda: FunctionCritic(lambda observation, action: q(action[:, 0])))


def test_the_updates_end_at_the_temperature_whose_policy_has_the_target_entropy() -> None:
    agent, batch = make_agent(1.0), states_batch(torch.zeros(NODES, dtype=torch.int64), 1)
    with given_noise(Z.unsqueeze(-1)):
        for update in range(UPDATES):
            agent.apply_schedules(min(1.0, update / (0.8 * UPDATES)), 0, 0.008)
            metrics = agent.update_actor(batch.copy())
    assert float(metrics["entropy"]) == pytest.approx(TARGET, abs=0.01)
    assert float(metrics["alpha"]) == pytest.approx(exact_temperature(), rel=0.03)
    assert policy_rows(agent.loss).isfinite().all()


@pytest.mark.parametrize("alpha", [0.05, 1.0, 3.0])
@pytest.mark.parametrize("excess", [-0.7, 0.0, 0.7])
def test_both_losses_have_the_same_gradient_and_the_same_fixed_point(alpha: float, excess: float) -> None:
    """The paper's loss -alpha (log pi + target) has for alpha the gradient of TorchRL's loss for log alpha."""
    loss = make_agent(alpha).loss
    log_prob = -TARGET - excess + torch.tensor([-0.3, 0.1, 0.2])
    (found,) = torch.autograd.grad(alpha_loss(loss, log_prob), [loss.log_alpha])
    itself = torch.tensor(alpha, requires_grad=True)
    (expected,) = torch.autograd.grad(-(itself * (log_prob + TARGET)).mean(), [itself])
    torch.testing.assert_close(found, expected)
    assert float(found) == pytest.approx(excess, abs=1e-6), "positive: an entropy above the target lowers alpha"


@pytest.mark.parametrize("alpha", [0.05, 1.0, 3.0])
def test_the_exp_form_has_the_papers_loss_and_alpha_times_the_gradient(alpha: float) -> None:
    loss, log_prob = make_agent(alpha).loss, torch.tensor([-0.3, 0.1, 0.9])
    value = alpha_loss(loss, log_prob, "exp")
    (found,) = torch.autograd.grad(value, [loss.log_alpha])
    (by_log,) = torch.autograd.grad(alpha_loss(loss, log_prob), [loss.log_alpha])
    assert value.item() == pytest.approx(-alpha * float((log_prob + TARGET).mean()))
    torch.testing.assert_close(found, alpha * by_log)

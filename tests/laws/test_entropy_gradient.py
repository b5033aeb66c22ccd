"""Law 3, the gradient of the entropy: which estimates are unbiased.

The project's actor loss without a critic's preference is ``alpha E[log pi]``: its gradient is minus alpha times that
of the entropy. The exact entropy of a tanh-Gaussian is the Gaussian's plus the mean of the tanh's log slope.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from law_helpers import FunctionCritic, assert_mean, policy_rows, settings, states_batch, tabular_loss
from torch import Tensor

from pipeline.estimators import entropy_surrogate, score_function
from pipeline.torchrl_adapter import actor_loss

LOC, LOG_SCALE, ALPHA = [0.6, -0.2], [-0.5, -1.2], 0.3
DRAWS, BATCH = 60, 512
NORMAL = torch.distributions.Normal
pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def squashed_entropy_gradient() -> Tensor:
    """The gradient of the tanh-Gaussian's entropy for loc and log scale, (4,), by Gauss-Hermite quadrature."""
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(60))
    parameters = torch.tensor([*LOC, *LOG_SCALE], dtype=torch.float64, requires_grad=True)
    loc, log_scale = parameters.unsqueeze(-1).split(2)
    slope = torch.log(1 - torch.tanh(loc + log_scale.exp() * nodes) ** 2)
    entropy = (0.5 * math.log(2 * math.pi * math.e) + log_scale.squeeze(-1)).sum() + (
        slope * weights / weights.sum()
    ).sum()
    return torch.autograd.grad(entropy, parameters)[0]


def test_the_actor_loss_without_a_critic_has_minus_alpha_times_the_entropys_gradient() -> None:
    torch.manual_seed(0)
    policy = torch.tensor([[*LOC, *LOG_SCALE]])
    loss = tabular_loss(
        settings("sac", alpha_init=ALPHA), policy, lambda: FunctionCritic(lambda observation, action: 0 * action[:, 0])
    )
    batch = states_batch(torch.zeros(BATCH, dtype=torch.int64), 1)
    rows = policy_rows(loss)
    draws = [torch.autograd.grad(actor_loss(loss, batch.copy())[0], [rows])[0][0] for _ in range(DRAWS)]
    exact = -ALPHA * squashed_entropy_gradient()
    assert exact.abs().min() > 0.05
    assert_mean(torch.stack(draws).double(), exact, power=50)


def gaussian_draws(surrogate: str, constant: float) -> Tensor:
    """Estimates of the gradient of a Gaussian's entropy for loc and log scale, (DRAWS, 2)."""
    torch.manual_seed(1)
    parameters = torch.tensor([0.4, -0.3], dtype=torch.float64, requires_grad=True)
    found = []
    for _ in range(DRAWS):
        loc, scale = parameters[0], parameters[1].exp()
        action = loc + scale * torch.randn(BATCH, dtype=torch.float64)
        if surrogate != "reparameterised":
            action = action.detach()
        log_prob = NORMAL(loc, scale).log_prob(action)
        values = {
            "reparameterised": -log_prob,
            "score": constant * log_prob,
            "half square": entropy_surrogate(log_prob, constant),
            "score function": score_function(log_prob, -log_prob, constant),
        }[surrogate]
        found.append(torch.autograd.grad(values.mean(), parameters)[0])
    return torch.stack(found)


CLOSED_FORM = torch.tensor([0.0, 1.0], dtype=torch.float64)  # the entropy is log scale, plus a constant


def test_minus_log_pi_of_reparameterised_samples_is_unbiased() -> None:
    assert_mean(gaussian_draws("reparameterised", 0.0), CLOSED_FORM)


def test_the_average_score_is_zero() -> None:
    draws = gaussian_draws("score", 1.0)
    assert_mean(draws, torch.zeros(2), power=0)
    assert (draws.std(0) / DRAWS**0.5 < 0.02).all(), "a factor of the score would show"


@pytest.mark.parametrize("constant", [-3.0, 0.0, 1.0, 5.0])
@pytest.mark.parametrize("surrogate", ["half square", "score function"])
def test_minus_half_the_squared_log_probability_is_unbiased_with_any_constant(surrogate: str, constant: float) -> None:
    assert_mean(gaussian_draws(surrogate, constant), CLOSED_FORM)


@pytest.mark.parametrize("constant", [-3.0, 0.0, 5.0])
def test_it_is_the_score_function_with_the_constant_as_baseline(constant: float) -> None:
    torch.testing.assert_close(gaussian_draws("half square", constant), gaussian_draws("score function", constant))


def test_plain_log_pi_of_given_samples_is_no_estimate_of_the_entropys_gradient() -> None:
    """Differentiating minus log pi without reparameterisation gives zero, not the closed form."""
    with pytest.raises(AssertionError):
        assert_mean(gaussian_draws("score", -1.0), CLOSED_FORM)

"""Law 5: the log-probabilities of tanh-Gaussian actions are those of a density over the action box, in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from law_helpers import FunctionCritic, given_noise, settings, states_batch, tabular_loss
from numpy.typing import NDArray
from scipy.special import ndtr
from torch import Tensor

from pipeline.estimators import TanhGaussian
from pipeline.torchrl_adapter import ActionDistribution, actor_loss

Array = NDArray[np.float64]
POLICIES = [(0.0, 1.0), (0.8, 0.4), (-2.0, 1.5), (0.3, 3.0)]
every_policy = pytest.mark.parametrize(("loc", "scale"), POLICIES)
pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def loss_log_prob(u: Tensor, loc: list[float], scale: list[float]) -> Tensor:
    """log pi(tanh(u)), (B,), as the actor's loss reports it, for preimages u (B, actions)."""
    policy = torch.tensor([[*loc, *torch.tensor(scale).log().tolist()]])
    loss = tabular_loss(settings("sac"), policy, lambda: FunctionCritic(lambda observation, action: action.sum(-1)))
    noise = (u.double() - torch.tensor(loc).double()) / torch.tensor(scale).double()
    with given_noise(noise):
        return actor_loss(loss, states_batch(torch.zeros(len(u), dtype=torch.int64), 1))[1]


def numerical_log_density(action: Array, loc: float, scale: float) -> Array:
    """The log density of an action, from probabilities of small intervals around it, in float64."""
    step = 1e-5 * (1 - np.abs(action))
    low, high = ((np.arctanh(action + sign * step) - loc) / scale for sign in (-1, 1))
    upper = loc < np.arctanh(action)  # there the other tail has the digits
    probability = np.where(upper, ndtr(-low) - ndtr(-high), ndtr(high) - ndtr(low))
    return np.log(probability / (2 * step))


@every_policy
def test_the_density_integrates_to_one_over_the_actions(loc: float, scale: float) -> None:
    u = torch.linspace(-15, 15, 6001, dtype=torch.float64)
    edges = np.tanh(u.numpy())
    middle = ((u[1:] + u[:-1]) / 2).unsqueeze(-1)
    density = loss_log_prob(middle, [loc], [scale]).double().exp().numpy()
    assert np.sum(density * np.diff(edges)) == pytest.approx(1, abs=2e-4)


def test_the_density_of_two_actions_integrates_to_one_over_the_square() -> None:
    u = torch.linspace(-6, 6, 241, dtype=torch.float64)
    middle, width = (u[1:] + u[:-1]) / 2, np.diff(np.tanh(u.numpy()))
    pairs = torch.cartesian_prod(middle, middle)
    density = loss_log_prob(pairs, [0.5, -0.3], [0.7, 0.5]).double().exp().numpy().reshape(240, 240)
    assert (density * np.outer(width, width)).sum() == pytest.approx(1, abs=1e-3)


@every_policy
def test_log_probabilities_equal_a_numerical_change_of_variables_up_to_the_bounds(loc: float, scale: float) -> None:
    distance = np.logspace(-6, 0, 40)[:-1]
    action = np.concatenate([distance - 1, 1 - distance])
    expected = torch.from_numpy(numerical_log_density(action, loc, scale))
    u = torch.from_numpy(np.arctanh(action)).unsqueeze(-1)
    likely = torch.from_numpy(np.abs((np.arctanh(action) - loc) / scale) < 6)
    assert likely[[0, -1]].any() or scale < 1, "the bounds themselves are tested where an action can reach them"
    squashed = TanhGaussian(torch.tensor([[loc]]), torch.tensor([[scale]]))
    for log_prob in (loss_log_prob(u, [loc], [scale]), squashed.log_prob(u.float().unsqueeze(1))[:, 0]):
        assert log_prob.dtype == torch.float32
        torch.testing.assert_close(log_prob.double()[likely], expected[likely], rtol=1e-4, atol=2e-4)


@every_policy
def test_a_float32_action_has_the_log_probability_of_its_own_value(loc: float, scale: float) -> None:
    distance = torch.logspace(-6, 0, 40)[:-1]
    action = torch.cat([distance - 1, 1 - distance])
    expected = torch.from_numpy(numerical_log_density(action.double().numpy(), loc, scale))
    likely = ((action.double().atanh() - loc) / scale).abs() < 6
    bounds = {"low": -1.0, "high": 1.0, "tanh_loc": False, "safe_tanh": False}
    distribution = ActionDistribution(torch.tensor([loc]), torch.tensor([scale]), **bounds)
    found = distribution.log_prob(action.unsqueeze(-1)).double()
    torch.testing.assert_close(found[likely], expected[likely], rtol=1e-4, atol=1e-3)

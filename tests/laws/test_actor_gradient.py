"""Law 4, the actor's gradient: its estimators agree in mean, and differ in variance; its limits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from law_helpers import FunctionCritic, assert_mean, given_noise, policy_rows, settings, states_batch, tabular_loss
from tensordict import TensorDict
from torch import Tensor

from pipeline import estimators, presets
from pipeline.agent import Agent
from pipeline.dimensions import Dimensions
from pipeline.estimators import TanhGaussian
from pipeline.gradients.compare import ActorGradient
from pipeline.torchrl_adapter import actor_loss, actor_parameters, critic_parameters

LOC, LOG_SCALE, ALPHA = [0.6, -0.2], [-0.5, -1.0], 0.2
CENTRE, SLOPE = torch.tensor([0.3, -0.6]), torch.tensor([2.0, -1.0])
DRAWS, BATCH = 80, 512
PRESETS = [name for name in presets.names() if settings(name).policy == "gaussian"]
pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def q(action: Tensor) -> Tensor:
    """A smooth value of actions (..., 2), (...)."""
    return 3 + (SLOPE.to(action) * action - 1.5 * (action - CENTRE.to(action)).square()).sum(-1)


def loss_at(log_scale: list[float], alpha: float) -> tuple[Callable[[], Tensor], Tensor]:
    """A function that draws the gradient of the project's actor loss for loc and log scale, and these, (1, 4)."""
    policy = torch.tensor([[*LOC, *log_scale]])
    critic = FunctionCritic(lambda observation, action: q(action))
    loss = tabular_loss(settings("sac", alpha_init=alpha), policy, lambda: critic)
    batch, rows = states_batch(torch.zeros(BATCH, dtype=torch.int64), 1), policy_rows(loss)
    return lambda: torch.autograd.grad(actor_loss(loss, batch.copy())[0], [rows])[0][0], rows


def exact_gradient(alpha: float, log_scale: list[float]) -> Tensor:
    """The gradient of E[alpha log pi - Q] for loc and log scale, (4,), by Gauss-Hermite quadrature: Q is a sum."""
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(60))
    parameters = torch.tensor([*LOC, *log_scale], dtype=torch.float64, requires_grad=True)
    loc, log_scales = parameters.unsqueeze(-1).split(2)
    action = torch.tanh(loc + log_scales.exp() * nodes)
    log_prob = -log_scales - torch.log(1 - action**2)  # without a constant, whose gradient is 0
    value = SLOPE[:, None] * action - 1.5 * (action - CENTRE[:, None]) ** 2
    loss = ((alpha * log_prob - value) * weights / weights.sum()).sum()
    return torch.autograd.grad(loss, parameters)[0]


def estimator_draws(name: str, count: int = DRAWS, alpha: float = ALPHA) -> Tensor:
    """Estimates of the same gradient by `pipeline.estimators`, (count, 4)."""
    torch.manual_seed(2)
    parameters = torch.tensor([[*LOC, *LOG_SCALE]], dtype=torch.float64, requires_grad=True)
    policy = TanhGaussian(parameters[:, :2], parameters[:, 2:].exp())
    baseline = estimators.reparameterized(policy, q, alpha, torch.randn(5000, 1, 2).double()).mean(0)
    found = []
    for _ in range(count):
        policy = TanhGaussian(parameters[:, :2], parameters[:, 2:].exp())
        noise = torch.randn(BATCH, 1, 2, dtype=torch.float64)
        surrogate = {
            "reparameterised": lambda p, n: estimators.reparameterized(p, q, alpha, n),
            "implicit": lambda p, n: estimators.implicit(p, q, alpha, n),
            "score": lambda p, n: estimators.score(p, q, alpha, n),
            "score with baseline": lambda p, n: estimators.score(p, q, alpha, n, baseline),
        }[name](policy, noise)
        assert surrogate.shape == (BATCH, 1)
        found.append(torch.autograd.grad(surrogate.mean(), parameters)[0][0])
    return torch.stack(found)


def test_the_actor_loss_has_the_exact_gradient_in_its_mean() -> None:
    torch.manual_seed(0)
    draw, _ = loss_at(LOG_SCALE, ALPHA)
    exact = exact_gradient(ALPHA, LOG_SCALE)
    assert_mean(torch.stack([draw() for _ in range(DRAWS)]).double(), exact, power=50)
    assert (exact - exact_gradient(0.0, LOG_SCALE)).abs().max() > 0.1, "the entropy has a share"


@pytest.mark.parametrize("name", ["reparameterised", "implicit", "score", "score with baseline"])
def test_every_estimator_has_the_exact_gradient_as_its_mean(name: str) -> None:
    """Stein's identity: the gradient of the critic is not needed in the mean."""
    assert_mean(estimator_draws(name, 160), exact_gradient(ALPHA, LOG_SCALE))


def test_reparameterisation_has_the_lower_variance_and_a_baseline_helps() -> None:
    names = ["reparameterised", "score with baseline", "score"]
    variances = [float(estimator_draws(name).var(0).sum()) for name in names]
    assert variances == sorted(variances)
    assert variances[1] > 1.5 * variances[0]
    assert variances[2] > 1.1 * variances[1]


def test_the_implicit_gradient_of_a_gaussian_is_the_reparameterised_one() -> None:
    torch.testing.assert_close(estimator_draws("implicit", 3), estimator_draws("reparameterised", 3))


def test_at_the_soft_optimum_the_score_function_with_the_value_as_baseline_has_no_variance() -> None:
    """There alpha log pi - Q is the same number for all actions; reparameterisation keeps the score's variance."""
    loc, scale = torch.tensor([[0.3]]), torch.tensor([[0.6]], requires_grad=True)
    optimum = TanhGaussian(loc, scale.detach())

    def soft_q(action: Tensor) -> Tensor:
        return ALPHA * optimum.log_prob(action.atanh()) + 0.7

    noise, policy = torch.randn(200, 1, 1), TanhGaussian(loc, scale)
    for surrogate, silent in (
        (estimators.score(policy, soft_q, ALPHA, noise, -0.7), True),
        (estimators.score(policy, soft_q, ALPHA, noise), False),
        (estimators.reparameterized(policy, soft_q, ALPHA, noise), False),
    ):
        each = torch.stack([torch.autograd.grad(one, scale, retain_graph=True)[0] for one in surrogate.flatten()])
        assert (float(each.abs().max()) < 1e-4) == silent


def test_without_temperature_and_noise_the_actor_loss_has_ddpgs_gradient() -> None:
    torch.manual_seed(0)
    distances = []
    for log_scale in (-1.0, -3.0, -6.0):
        draw, rows = loss_at([log_scale] * 2, float(np.exp(2 * log_scale)))
        loc = rows.detach()[:, :2].requires_grad_()
        policy = TanhGaussian(loc, torch.zeros_like(loc))
        (ddpg,) = torch.autograd.grad(estimators.deterministic(policy, q).sum(), loc)
        manual = -(SLOPE - 3 * (loc.tanh() - CENTRE)) * (1 - loc.tanh() ** 2)
        torch.testing.assert_close(ddpg, manual.detach())
        distances.append(float((draw()[:2] - ddpg[0]).norm() / ddpg.norm()))
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.02
    assert distances[-1] < 1e-3


@pytest.mark.parametrize("preset", PRESETS)
def test_the_reparameterised_estimator_is_the_actor_loss_of_every_preset(preset: str) -> None:
    """With the preset's own networks, and the same noise: `saltus gradients` compares what training computes.

    The states are those of an environment: both normalise them, by statistics other than the batch's.
    """
    torch.manual_seed(0)
    sizes = {"actor_hidden": (8, 8), "critic_hidden": (8, 8), "num_critics": 3, "dropout": 0.0, "alpha_init": 0.3}
    agent = Agent(settings(preset, normalize_observations=True, **sizes), Dimensions(4, 2))
    agent.normalizers.observations.update(2 + 3 * torch.randn(32, 4))
    observation, noise = 2 + 3 * torch.randn(16, 4), torch.randn(16, 2)
    with torch.no_grad():
        for parameter in [*actor_parameters(agent.loss).values(), *critic_parameters(agent.loss).values()]:
            parameter.add_(0.3 * torch.randn_like(parameter))
    gradient = ActorGradient(agent, TensorDict({"observation": observation}, batch_size=[16]))
    surrogate = estimators.reparameterized(gradient.policy, gradient.value, gradient.alpha, noise.unsqueeze(0))
    found = gradient.for_parameters(gradient.for_outputs(surrogate))
    batch = states_batch(torch.zeros(16, dtype=torch.int64), 4)
    batch["observation"] = observation
    with given_noise(noise):
        cost = actor_loss(agent.loss, agent.normalizers.normalize_states(batch))[0]
    expected = torch.autograd.grad(cost, list(actor_parameters(agent.loss).values()))
    torch.testing.assert_close(surrogate.mean(), cost)
    expected_vector = torch.cat([each.flatten() for each in expected])
    assert (found - expected_vector).norm() < 1e-4 * expected_vector.norm()


def test_implicit_gradients_serve_a_mixture_whose_cdf_has_no_inverse() -> None:
    """E[x^3] of two Gaussians, for the logit of the first, the means and the log scales, against the moments."""
    torch.manual_seed(3)
    parameters = torch.tensor([0.4, -0.5, 1.0, -0.3, 0.1], dtype=torch.float64, requires_grad=True)

    def parts() -> tuple[Tensor, Tensor, Tensor]:
        first = parameters[0].sigmoid()
        return torch.stack([first, 1 - first]), parameters[1:3], parameters[3:].exp()

    weight, mean, scale = parts()
    exact = torch.autograd.grad((weight * (mean**3 + 3 * mean * scale**2)).sum(), parameters)[0]
    found = []
    for _ in range(DRAWS):
        weight, mean, scale = parts()
        with torch.no_grad():
            component = torch.multinomial(weight, BATCH, replacement=True)
            x = mean[component] + scale[component] * torch.randn(BATCH, dtype=torch.float64)
            density = (weight * torch.distributions.Normal(mean, scale).log_prob(x.unsqueeze(-1)).exp()).sum(-1)
        cdf = (weight * torch.special.ndtr((x.unsqueeze(-1) - mean) / scale)).sum(-1)
        sample = estimators.implicit_sample(x, cdf, density.log())
        assert torch.equal(sample, x)
        found.append(torch.autograd.grad(sample.pow(3).mean(), parameters)[0])
    assert_mean(torch.stack(found), exact)


LOGITS, VALUES = torch.tensor([0.3, -1.0, 0.8]).double(), torch.tensor([1.0, 2.0, -0.5]).double()


@pytest.mark.parametrize("baseline", [0.0, 5.0])
def test_the_discrete_score_function_averages_to_the_exact_gradient(baseline: float) -> None:
    """By enumeration: no draw is needed."""
    logits = LOGITS.clone().requires_grad_()
    probability, log_prob = logits.softmax(-1), logits.log_softmax(-1)
    exact = torch.autograd.grad((probability * (ALPHA * log_prob - VALUES)).sum(), logits)[0]
    total = torch.zeros(3).double()
    for action, share in enumerate(LOGITS.softmax(-1)):
        chosen = logits.log_softmax(-1)[action]
        surrogate = estimators.score_function(chosen, ALPHA * chosen - VALUES[action], baseline)
        total += share * torch.autograd.grad(surrogate, logits)[0]
    torch.testing.assert_close(total, exact)
    assert exact.abs().max() > 0.1

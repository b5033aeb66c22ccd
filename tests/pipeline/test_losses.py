"""The losses against the equations, in float64 and plain tensor code.

SAC: Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications", eq. 5, 6, 7, 9 and 18.
CrossQ: Bhatt et al. 2024: no target network, and one pass of (s, a) and (s', a') together through batch norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pipeline_helpers import ACTION_DIM, OBSERVATION_DIM, random_transition, small_config
from tensordict import TensorDict
from torch import Tensor

from pipeline import losses

ALGORITHMS = ["sac", "crossq"]
BATCH = 24
pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def randomized_loss(algorithm: str, seed: int = 0, **overrides: Any) -> losses.Loss:
    """A loss whose every number is random: weights, biases, targets, running statistics and the temperature."""
    torch.manual_seed(seed)
    overrides = {"actor_hidden": (8, 6), "critic_hidden": (7, 5), "gamma": 0.9, "batch_size": BATCH, **overrides}
    config = small_config(algorithm=algorithm, learning_starts=100, **overrides)
    loss, _ = losses.make_loss(config, OBSERVATION_DIM, ACTION_DIM, torch.device("cpu"))
    with torch.no_grad():
        for name, value in loss.state_dict().items():
            if name.endswith((".weight", ".bias")):
                value.copy_(torch.randn_like(value) * 0.5)
            elif name.endswith("running_mean"):
                value.copy_(torch.randn_like(value))
            elif name.endswith("running_var"):
                value.copy_(torch.rand_like(value) + 0.5)
        loss.log_alpha.fill_(-0.7)
    return loss


def leaf(value: Tensor) -> Tensor:
    return value.detach().double().clone().requires_grad_()


@dataclass
class Reference:
    """A loss's numbers in float64, and the equations."""

    actor: dict[str, Tensor]
    critic: dict[str, Tensor]
    target: dict[str, Tensor]
    running: dict[str, Tensor]
    log_alpha: Tensor
    num_critics: int
    gamma: float

    @classmethod
    def of(cls, loss: losses.Loss, gamma: float = 0.9) -> Reference:
        running = {name: value.double() for name, value in loss.state_dict().items() if ".running_" in name}
        critic = {name: leaf(value) for name, value in losses.critic_parameters(loss).items()}
        return cls(
            {name.rpartition("body.")[2]: leaf(value) for name, value in losses.actor_parameters(loss).items()},
            {name.rpartition("body.")[2]: value for name, value in critic.items()},
            {name.rpartition("body.")[2]: leaf(value) for name, value in losses.target_parameters(loss).items()},
            {name.rpartition("body.")[2]: value.clone() for name, value in running.items()},
            leaf(loss.log_alpha),
            len(next(iter(critic.values()))),
            gamma,
        )

    @property
    def alpha(self) -> Tensor:
        return self.log_alpha.detach().exp()

    def policy(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The action of this noise, and its log-probability: a Gaussian's, less the logarithm of tanh's slope."""
        x = observation
        for layer in (0, 2, 4):
            x = x @ self.actor[f"{layer}.weight"].T + self.actor[f"{layer}.bias"]
            x = x.clamp(min=0) if layer < 4 else x
        loc, log_std = x[:, :ACTION_DIM], x[:, ACTION_DIM:].clamp(-20, 2)
        u = loc + log_std.exp() * noise
        gaussian = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
        # log(1 - tanh(u)^2) = -2 log cosh(u), where cosh(u) does not overflow
        log_slope = -2 * (u.abs() + torch.log1p(torch.exp(-2 * u.abs())) - math.log(2))
        return torch.tanh(u), (gaussian - log_slope).sum(-1)

    def values(self, params: dict[str, Tensor], observation: Tensor, action: Tensor, training: bool) -> Tensor:
        """Every critic's value, (critics, batch)."""
        x = torch.cat([observation, action], dim=-1)
        return torch.stack([self._value(params, k, x, training) for k in range(self.num_critics)])

    def _value(self, params: dict[str, Tensor], k: int, x: Tensor, training: bool) -> Tensor:
        for layer in sorted({int(name.partition(".")[0]) for name in params}):
            weight, bias = params[f"{layer}.weight"][k], params[f"{layer}.bias"][k]
            if weight.dim() == 1:
                x = self._normalized(layer, k, x, training) * weight + bias
                continue
            x = x @ weight.T + bias
            if len(bias) > 1:
                x = x.clamp(min=0)
        return x.squeeze(-1)

    def _normalized(self, layer: int, k: int, x: Tensor, training: bool) -> Tensor:
        running_mean, running_var = self.running[f"{layer}.running_mean"], self.running[f"{layer}.running_var"]
        if not training:
            return (x - running_mean[k]) / (running_var[k] + 1e-3).sqrt()
        mean = x.sum(0) / len(x)
        centred = x - mean
        var = (centred**2).sum(0) / len(x)
        with torch.no_grad():
            running_mean[k] = 0.99 * running_mean[k] + 0.01 * mean
            running_var[k] = 0.99 * running_var[k] + 0.01 * var * len(x) / (len(x) - 1)
        return centred / (var + 1e-3).sqrt()

    def critic_loss(self, batch: TensorDict, noise: Tensor) -> Tensor:
        next_action, next_log_prob = (part.detach() for part in self.policy(batch["next", "observation"], noise))
        state, action, successor = batch["observation"], batch["action"], batch["next", "observation"]
        if self.target:
            value = self.values(self.critic, state, action, training=False)
            next_value = self.values(self.target, successor, next_action, training=False)
        else:
            both = torch.cat([state, successor]), torch.cat([action, next_action])
            value, next_value = self.values(self.critic, *both, training=True).split(len(state), dim=1)
        soft = next_value.detach().min(0).values - self.alpha * next_log_prob
        follows = 1 - batch["next", "terminated"].double().squeeze(-1)
        target = batch["next", "reward"].squeeze(-1) + self.gamma * follows * soft
        return ((value - target) ** 2).mean(1).sum()

    def actor_loss(self, batch: TensorDict, noise: Tensor) -> Tensor:
        action, log_prob = self.policy(batch["observation"], noise)
        value = self.values(self.critic, batch["observation"], action, training=False).min(0).values
        return (self.alpha * log_prob - value).mean()

    def alpha_loss(self, batch: TensorDict, noise: Tensor, target_entropy: float) -> Tensor:
        log_prob = self.policy(batch["observation"], noise)[1].detach()
        return -(self.log_alpha * (log_prob + target_entropy)).mean()


def double(batch: TensorDict) -> TensorDict:
    return batch.apply(lambda entry: entry.double() if entry.is_floating_point() else entry)


def seeded_noise(seed: int) -> Tensor:
    """The standard normal numbers that a loss draws after this seed; seeds again."""
    torch.manual_seed(seed)
    noise = torch.normal(torch.zeros(BATCH, ACTION_DIM), torch.ones(BATCH, ACTION_DIM)).double()
    torch.manual_seed(seed)
    return noise


def assert_equal(ours: Tensor, reference: Tensor, name: str) -> None:
    scale = float(reference.detach().abs().max())
    torch.testing.assert_close(ours.double(), reference, rtol=2e-5, atol=2e-5 * scale, msg=lambda text: name + text)


def assert_gradients_equal(
    ours: Tensor, our_parameters: dict[str, Tensor], reference: Tensor, parameters: dict[str, Tensor]
) -> None:
    assert len(our_parameters) == len(parameters)
    gradients = torch.autograd.grad(ours, list(our_parameters.values()))
    expected = torch.autograd.grad(reference, list(parameters.values()))
    assert all(gradient.abs().max() > 0 for gradient in expected)
    for name, left, right in zip(parameters, gradients, expected, strict=True):
        assert_equal(left, right, f"gradient of {name}: ")


def test_crossq_has_batch_norm_and_no_target_and_sac_has_targets_and_no_batch_norm() -> None:
    sac, crossq = (Reference.of(randomized_loss(algorithm)) for algorithm in ALGORITHMS)
    assert sac.target.keys() == sac.critic.keys()
    assert not sac.running
    assert not crossq.target
    widths = [value.shape[1] for name, value in crossq.running.items() if name.endswith("running_mean")]
    assert widths == [OBSERVATION_DIM + ACTION_DIM, 7, 5]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("num_critics", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_critic_loss_and_its_gradients_follow_the_equations(algorithm: str, num_critics: int, seed: int) -> None:
    loss = randomized_loss(algorithm, seed, num_critics=num_critics)
    reference, batch = Reference.of(loss), random_transition(BATCH, seed)
    assert reference.num_critics == num_critics
    noise = seeded_noise(seed + 10)
    value, metadata = losses.critic_loss(loss, batch.copy())
    expected = reference.critic_loss(double(batch), noise)
    assert_equal(value, expected, "critic loss: ")
    assert metadata["td_error"].shape == (BATCH,)
    assert_gradients_equal(value, losses.critic_parameters(loss), expected, reference.critic)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("num_critics", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_actor_and_alpha_losses_and_their_gradients_follow_the_equations(
    algorithm: str, num_critics: int, seed: int
) -> None:
    loss = randomized_loss(algorithm, seed, num_critics=num_critics)
    reference, batch = Reference.of(loss), random_transition(BATCH, seed)
    noise = seeded_noise(seed + 10)
    value, log_prob = losses.actor_loss(loss, batch.copy())
    expected = reference.actor_loss(double(batch), noise)
    assert_equal(value, expected, "actor loss: ")
    assert_gradients_equal(value, losses.actor_parameters(loss), expected, reference.actor)
    value = losses.alpha_loss(loss, log_prob)
    expected = reference.alpha_loss(double(batch), noise, -ACTION_DIM)
    assert_equal(value, expected, "alpha loss: ")
    assert_gradients_equal(value, {"log_alpha": loss.log_alpha}, expected, {"log_alpha": reference.log_alpha})


def test_the_critic_loss_of_crossq_moves_the_running_statistics_by_the_joint_batch() -> None:
    loss = randomized_loss("crossq")
    reference, batch = Reference.of(loss), random_transition(BATCH)
    before = {name: value.clone() for name, value in reference.running.items()}
    noise = seeded_noise(3)
    losses.critic_loss(loss, batch.copy())
    reference.critic_loss(double(batch), noise)
    for name, value in Reference.of(loss).running.items():
        assert not torch.allclose(value, before[name], rtol=1e-4)
        assert_equal(value, reference.running[name], name)


def test_the_actor_loss_of_crossq_leaves_the_running_statistics_and_the_critics_in_training_mode() -> None:
    loss = randomized_loss("crossq")
    before = Reference.of(loss).running
    losses.actor_loss(loss, random_transition(BATCH))
    assert all(torch.equal(value, before[name]) for name, value in Reference.of(loss).running.items())
    assert loss.qvalue_network.training


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_gradient_leaks_from_one_loss_into_another(algorithm: str) -> None:
    loss, batch = randomized_loss(algorithm), random_transition(BATCH)
    groups = {
        "critic": list(losses.critic_parameters(loss).values()),
        "actor": list(losses.actor_parameters(loss).values()),
        "alpha": [loss.log_alpha],
    }
    critic = losses.critic_loss(loss, batch.copy())[0]
    actor, log_prob = losses.actor_loss(loss, batch.copy())
    alpha = losses.alpha_loss(loss, log_prob)
    for name, value in (("critic", critic), ("actor", actor), ("alpha", alpha)):
        for group, parameters in groups.items():
            gradients = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
            if group != name:
                assert all(gradient is None or not gradient.any() for gradient in gradients), f"{name} moves {group}"
    assert not any(target.requires_grad for target in losses.target_parameters(loss).values())


def critic_loss_at(loss: losses.Loss, batch: TensorDict) -> Tensor:
    torch.manual_seed(0)
    return losses.critic_loss(loss, batch.copy())[0].detach()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_termination_cuts_the_bootstrap_and_truncation_does_not(algorithm: str) -> None:
    batch, everywhere = random_transition(BATCH), torch.ones(BATCH, 1, dtype=torch.bool)
    flags = {
        name: batch.clone().update({"next": {"terminated": terminated, "truncated": truncated, "done": done}})
        for name, terminated, truncated, done in (
            ("running", ~everywhere, ~everywhere, ~everywhere),
            ("truncated", ~everywhere, everywhere, everywhere),
            ("terminated", everywhere, ~everywhere, everywhere),
            ("both", everywhere, everywhere, everywhere),
        )
    }
    found = {name: critic_loss_at(randomized_loss(algorithm), flagged) for name, flagged in flags.items()}
    assert torch.equal(found["running"], found["truncated"])
    assert torch.equal(found["terminated"], found["both"])
    assert not torch.isclose(found["running"], found["terminated"])
    torch.testing.assert_close(critic_loss_at(randomized_loss(algorithm, gamma=0.0), batch), found["terminated"])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.99])
def test_gamma_discounts_the_value_that_follows(algorithm: str, gamma: float) -> None:
    loss, batch = randomized_loss(algorithm, gamma=gamma), random_transition(BATCH)
    reference, noise = Reference.of(loss, gamma), seeded_noise(5)
    assert_equal(losses.critic_loss(loss, batch.copy())[0], reference.critic_loss(double(batch), noise), "loss: ")


@pytest.mark.parametrize("worst", range(3))
def test_the_smallest_target_counts(worst: int) -> None:
    loss, batch = randomized_loss("sac", num_critics=3, gamma=0.5), random_transition(BATCH)
    batch["next", "terminated"].fill_(False)
    bias = losses.target_parameters(loss)["module.body.4.bias"]
    bias[worst] -= 1e4
    alone = critic_loss_at(loss, batch)
    assert alone == pytest.approx(3 * (0.5 * 1e4) ** 2, rel=0.01)
    bias[(worst + 1) % 3] += 1e6
    bias[(worst + 2) % 3] += 1e6
    assert critic_loss_at(loss, batch) == alone


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_automatic_target_entropy_is_minus_the_action_dimension(algorithm: str) -> None:
    assert float(randomized_loss(algorithm).target_entropy) == -ACTION_DIM
    assert float(randomized_loss(algorithm, target_entropy=-0.5).target_entropy) == -0.5


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_first_temperature_is_alpha_init(algorithm: str) -> None:
    loss, _ = losses.make_loss(small_config(algorithm=algorithm, alpha_init=0.2), 3, 1, torch.device("cpu"))
    assert float(loss.log_alpha.detach().exp()) == pytest.approx(0.2)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("loc", [8.0, 20.0, 100.0])
def test_saturated_actions_have_the_right_finite_log_probability(algorithm: str, loc: float) -> None:
    loss, batch = randomized_loss(algorithm), random_transition(BATCH)
    bias = losses.actor_parameters(loss)["module.0.module.body.4.bias"]
    with torch.no_grad():
        bias[:ACTION_DIM] = torch.tensor([loc, -loc, loc])
    reference, noise = Reference.of(loss), seeded_noise(1)
    action, expected = reference.policy(batch["observation"].double(), noise)
    value, log_prob = losses.actor_loss(loss, batch.copy())
    assert (action.abs() > 0.99).any()
    torch.testing.assert_close(log_prob.double(), expected.detach(), rtol=1e-5, atol=1e-4)
    gradients = torch.autograd.grad(value, list(losses.actor_parameters(loss).values()))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert_equal(value, reference.actor_loss(double(batch), noise), "actor loss: ")
    assert losses.critic_loss(loss, batch.copy())[0].isfinite()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_loss_draws_what_the_policy_draws(algorithm: str) -> None:
    """The actor's own `sample` and the loss's distribution are the same policy."""
    config = small_config(algorithm=algorithm)
    loss, actor = losses.make_loss(config, OBSERVATION_DIM, ACTION_DIM, torch.device("cpu"))
    observation = torch.randn(BATCH, OBSERVATION_DIM)
    batch = TensorDict({"observation": observation}, batch_size=[BATCH])
    with loss.actor_network_params.to_module(loss.actor_network):
        distribution = loss.actor_network.get_dist(batch)
    torch.manual_seed(0)
    drawn = distribution.rsample().detach()
    torch.manual_seed(0)
    torch.testing.assert_close(actor.sample(observation), drawn, rtol=1e-5, atol=1e-6)
    assert drawn.std() > 0.3

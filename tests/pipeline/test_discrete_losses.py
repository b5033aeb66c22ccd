"""Discrete losses against enumeration of all joint actions, in float64 and elementary tensor operations.

Christodoulou 2019, arXiv 1910.07207, eq. 10 to 12; Haarnoja et al. 2017, arXiv 1702.08165, eq. 6 (soft-q).
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pipeline_helpers import ACTION_DIM, OBSERVATION_DIM, random_transition, small_config
from tensordict import TensorDict
from torch import Tensor

from pipeline import losses
from pipeline.dimensions import Dimensions
from pipeline.discrete import CategoricalActor
from pipeline.torchrl_adapter import (
    DiscreteVariant,
    actor_loss,
    actor_parameters,
    alpha_loss,
    critic_loss,
    critic_parameters,
    target_parameters,
)

LEVELS, GAMMA, ALPHA, BATCH = 3, 0.9, 0.6, 8
COUNTS = (LEVELS,) * ACTION_DIM
JOINT = [*itertools.product(*map(range, COUNTS))]  # level of each actuator, the last one fastest
ACTIONS = 2 * torch.tensor(JOINT, dtype=torch.float64) / (LEVELS - 1) - 1
pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
policies = pytest.mark.parametrize("policy", ["joint", "factored"])
updates = pytest.mark.parametrize("update", ["exact", "soft-q"])


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def different_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every test function see actuators of 2, 4 and 3 choices, of an environment with discrete actions."""
    module, counts = sys.modules[__name__], (2, 4, 3)
    joint = [*itertools.product(*map(range, counts))]
    monkeypatch.setattr(module, "COUNTS", counts)
    monkeypatch.setattr(module, "JOINT", joint)
    monkeypatch.setattr(module, "ACTIONS", 2 * torch.tensor(joint) / (torch.tensor(counts) - 1) - 1)


def make(policy: str, update: str, seed: int = 0, **overrides: Any) -> tuple[DiscreteVariant, CategoricalActor]:
    """A loss with random parameters and targets, and its actor."""
    settings = {"policy": policy, "discrete_update": update, "gamma": GAMMA, **overrides}
    loss, actor = losses.make_loss(
        small_config(preset="sac-discrete", **settings),
        Dimensions(OBSERVATION_DIM, ACTION_DIM, action_choices=COUNTS),
        torch.device("cpu"),
    )
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameters in (critic_parameters(loss), target_parameters(loss), actor_parameters(loss)):
            for value in parameters.values():
                value.copy_(torch.randn_like(value))
        loss.log_alpha.fill_(math.log(ALPHA))
    return loss, actor


def batch_of(seed: int = 0) -> TensorDict:
    batch = random_transition(BATCH, seed).apply(lambda value: value.double() if value.is_floating_point() else value)
    rows = torch.randint(len(JOINT), (BATCH,), generator=torch.Generator().manual_seed(seed))
    return batch.set("action", ACTIONS[rows]).set("row", rows)


def network(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """A perceptron with one hidden layer; parameters in the order of the layers, stacked over networks or not."""
    w1, b1, w2, b2 = parameters.values()
    hidden = (x @ w1.mT + b1.unsqueeze(-2)).clamp(min=0)
    return hidden @ w2.mT + b2.unsqueeze(-2)


def joint_of_heads(outputs: Tensor, policy: str) -> Tensor:
    """Sums over actuators, for all joint actions: (..., outputs) -> (..., joint actions)."""
    if policy == "joint":
        return outputs
    heads = outputs.split(COUNTS, dim=-1)
    return torch.stack([sum(heads[head][..., level] for head, level in enumerate(row)) for row in JOINT], dim=-1)


def joint_values(parameters: dict[str, Tensor], observation: Tensor, policy: str, update: str) -> Tensor:
    """Q of all joint actions, (critics, B, joint actions)."""
    if update != "score":
        return joint_of_heads(network(parameters, observation), policy)
    columns = [torch.cat([observation, action.expand(len(observation), -1)], -1) for action in ACTIONS]
    return torch.stack([network(parameters, column).squeeze(-1) for column in columns], dim=-1)


def joint_log_probs(actor: dict[str, Tensor], observation: Tensor, policy: str) -> Tensor:
    """log pi of all joint actions, (B, joint actions)."""
    outputs = network(actor, observation)
    return joint_of_heads(outputs, policy).log_softmax(-1)


def expected_value(values: Tensor, probabilities: Tensor, policy: str, update: str) -> Tensor:
    """E[Q]: of the smallest critic for each action, or, for a sum over actuators, by the smallest critic."""
    if policy == "factored" and update == "exact":
        return (probabilities * values).sum(-1).amin(0)
    return (probabilities * values.amin(0)).sum(-1)


def soft_value(
    loss: DiscreteVariant, actor: dict[str, Tensor], observation: Tensor, policy: str, update: str
) -> Tensor:
    """V by the target networks, (B,)."""
    values = joint_values(target_parameters(loss), observation, policy, update)
    if update == "soft-q":
        return (ALPHA * (values / ALPHA).exp().sum(-1).log()).amin(0)
    log_prob = joint_log_probs(actor, observation, policy)
    return expected_value(values, log_prob.exp(), policy, update) - ALPHA * (log_prob.exp() * log_prob).sum(-1)


def assert_same_gradients(ours: Tensor, theirs: Tensor, parameters: dict[str, Tensor]) -> None:
    pairs = [torch.autograd.grad(one, list(parameters.values())) for one in (ours, theirs)]
    for name, left, right in zip(parameters, *pairs, strict=True):
        assert right.abs().max() > 1e-6, name
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12, msg=name)


@policies
@updates
@pytest.mark.parametrize("critics", [1, 2, 3])
def test_critic_loss_and_gradient_equal_enumeration(policy: str, update: str, critics: int) -> None:
    loss, _ = make(policy, update, num_critics=critics)
    batch = batch_of().set("steps_to_next_obs", torch.randint(1, 4, (BATCH, 1)))
    step = batch["next"]
    alive = GAMMA ** batch["steps_to_next_obs"].squeeze(-1) * (~step["terminated"]).squeeze(-1)
    with torch.no_grad():
        value = soft_value(loss, actor_parameters(loss), step["observation"], policy, update)
        target = step["reward"].squeeze(-1) + alive * value
    values = joint_values(critic_parameters(loss), batch["observation"], policy, update)
    errors = values[:, torch.arange(BATCH), batch["row"]] - target
    ours, metrics = critic_loss(loss, batch)
    torch.testing.assert_close(ours, errors.square().mean(1).sum(), rtol=1e-9, atol=0)
    expected = {"td_error": errors.abs().amax(0), "target_mean": target.mean(), "q_mean": (errors + target).mean()}
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name], value, rtol=1e-9, atol=1e-12)
    assert_same_gradients(ours, errors.square().mean(1).sum(), critic_parameters(loss))


@policies
@pytest.mark.parametrize("critics", [1, 2, 3])
def test_actor_loss_and_gradient_equal_enumeration(policy: str, critics: int) -> None:
    loss, _ = make(policy, "exact", num_critics=critics)
    batch, parameters = batch_of(), actor_parameters(loss)
    log_prob = joint_log_probs(parameters, batch["observation"], policy)
    values = joint_values(critic_parameters(loss), batch["observation"], policy, "exact").detach()
    negative_entropy = (log_prob.exp() * log_prob).sum(-1)
    theirs = (ALPHA * negative_entropy - expected_value(values, log_prob.exp(), policy, "exact")).mean()
    ours, ours_log_prob = actor_loss(loss, batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
    torch.testing.assert_close(ours_log_prob, negative_entropy, rtol=1e-9, atol=0)
    assert not ours_log_prob.requires_grad
    assert_same_gradients(ours, theirs, parameters)
    with pytest.raises(RuntimeError, match=r"not have been used"):
        torch.autograd.grad(actor_loss(loss, batch)[0], list(critic_parameters(loss).values()))


@policies
def test_soft_q_acts_in_proportion_to_exp_of_q(policy: str) -> None:
    loss, actor = make(policy, "soft-q")
    observation = batch_of()["observation"]
    values = joint_values(critic_parameters(loss), observation, policy, "soft-q").mean(0)
    expected = (values / ALPHA).softmax(-1)
    logits = actor(observation)
    outputs = logits.flatten(1) if policy == "joint" else torch.cat(
        [head[:, -count:] for head, count in zip(logits.unbind(1), COUNTS, strict=True)], dim=-1
    )  # fmt: skip
    acting = joint_of_heads(outputs, policy).softmax(-1)
    torch.testing.assert_close(acting, expected, rtol=1e-9, atol=1e-12)
    _, log_prob = actor_loss(loss, batch_of())
    torch.testing.assert_close(log_prob, (expected * expected.log()).sum(-1), rtol=1e-9, atol=1e-12)
    assert actor_parameters(loss) == {}


@policies
@pytest.mark.parametrize("update", ["exact", "score", "soft-q"])
def test_temperature_loss_moves_the_entropy_to_its_target(policy: str, update: str) -> None:
    """d J(alpha) / d log alpha is the entropy minus its target, a fraction of the largest entropy."""
    loss, _ = make(policy, update, target_entropy_scale=0.4)
    _, log_prob = actor_loss(loss, batch_of())
    (gradient,) = torch.autograd.grad(alpha_loss(loss, log_prob), [loss.log_alpha])
    target = 0.4 * math.log(LEVELS**ACTION_DIM)
    torch.testing.assert_close(float(gradient), float(-log_prob.mean()) - target, rtol=1e-6, atol=1e-9)
    (times_alpha,) = torch.autograd.grad(alpha_loss(loss, log_prob, "exp"), [loss.log_alpha])
    torch.testing.assert_close(times_alpha, loss.log_alpha.detach().exp() * gradient)


@pytest.mark.usefixtures("different_counts")
@pytest.mark.parametrize("alpha", [1e-35, 1e-7, 1.0, 1e12])
def test_choices_that_a_head_does_not_have_are_impossible_at_any_temperature(alpha: float) -> None:
    loss, actor = make("factored", "soft-q")
    batch = batch_of()
    with torch.no_grad():
        loss.log_alpha.fill_(math.log(alpha))
        for parameters in (critic_parameters(loss), target_parameters(loss)):
            [*parameters.values()][-1].sub_(500.0)
    probabilities = actor(batch["observation"]).softmax(-1)
    for head, count in enumerate(COUNTS):
        assert not probabilities[:, head, : max(COUNTS) - count].any()
    assert torch.equal(actor.mode(batch["observation"]), actor.standalone().mode(batch["observation"]))
    values = joint_values(target_parameters(loss), batch["observation"], "factored", "soft-q")
    expected = (alpha * (values / alpha).logsumexp(-1)).amin(0)
    torch.testing.assert_close(loss.next_value(batch), expected, rtol=1e-9, atol=0)
    assert actor_loss(loss, batch)[1].isfinite().all()


@pytest.mark.usefixtures("different_counts")
def test_heads_of_different_sizes_equal_enumeration() -> None:
    for update in ("exact", "soft-q"):
        test_critic_loss_and_gradient_equal_enumeration("factored", update, 2)
    test_actor_loss_and_gradient_equal_enumeration("factored", 2)
    test_soft_q_acts_in_proportion_to_exp_of_q("factored")
    test_temperature_to_zero_gives_the_greedy_value_and_action("factored")


@pytest.mark.usefixtures("different_counts")
def test_sampled_actions_of_heads_of_different_sizes_have_the_probabilities_of_the_policy() -> None:
    test_score_critics_value_the_action_taken("factored")
    test_score_target_equals_exact_value_in_mean("factored")


# The score-function form


REPEATS = 20_000


def repeated(batch: TensorDict, count: int) -> TensorDict:
    return batch.expand(count, *batch.batch_size).flatten()


@pytest.mark.usefixtures("different_counts")
def test_score_gradient_of_heads_of_different_sizes_equals_exact_gradient_in_mean() -> None:
    test_score_gradient_equals_exact_gradient_in_mean("factored")


@policies
def test_score_gradient_equals_exact_gradient_in_mean(policy: str) -> None:
    loss, _ = make(policy, "score")
    batch, parameters = batch_of()[:2], actor_parameters(loss)
    log_prob = joint_log_probs(parameters, batch["observation"], policy)
    values = joint_values(critic_parameters(loss), batch["observation"], policy, "score").detach()
    exact = (log_prob.exp() * (ALPHA * log_prob - values.amin(0))).sum(-1).mean()
    expected = torch.cat([one.flatten() for one in torch.autograd.grad(exact, list(parameters.values()))])
    draws, found, entropies = [], [], []
    for _ in range(16):
        value, sampled = actor_loss(loss, repeated(batch, REPEATS // 16))
        found.append(float(value.detach()))
        entropies.append(-float(sampled.mean()))
        draws.append(torch.cat([one.flatten() for one in torch.autograd.grad(value, list(parameters.values()))]))
    error = torch.stack(draws).std(0) / 4
    mean = torch.stack(draws).mean(0)
    assert float(error.norm()) < 0.05 * float(expected.norm()), "the bound must catch a wrong factor"
    assert float((mean - expected).norm()) < 3 * float(error.norm())
    assert abs(sum(found) / 16 - float(exact.detach())) < 0.05
    entropy = -float((log_prob.exp() * log_prob).sum(-1).mean())
    assert abs(sum(entropies) / 16 - entropy) < 0.02


@policies
def test_score_target_equals_exact_value_in_mean(policy: str) -> None:
    loss, _ = make(policy, "score")
    step = batch_of()["next"].select("observation")
    with torch.no_grad():
        sampled = loss.next_value(repeated(step, REPEATS)).unflatten(0, (REPEATS, BATCH))
        expected = soft_value(loss, actor_parameters(loss), step["observation"], policy, "score")
    error = sampled.std(0) / REPEATS**0.5
    assert ((sampled.mean(0) - expected).abs() < 4 * error + 1e-9).all()
    assert error.max() < 0.1


@policies
def test_score_critics_value_the_action_taken(policy: str) -> None:
    loss, _ = make(policy, "score")
    batch = batch_of()
    values = joint_values(critic_parameters(loss), batch["observation"], policy, "score")
    expected = values[:, torch.arange(BATCH), batch["row"]]
    torch.testing.assert_close(loss.chosen_values(batch), expected, rtol=1e-9, atol=1e-12)


# Laws that join the forms


def with_constant_outputs(policy: str, update: str, values: Tensor, logits: Tensor | None) -> DiscreteVariant:
    """A loss whose networks return constants: `values` by all critics and targets, `logits` by the actor."""
    loss, _ = make(policy, update)
    outputs = [(critic_parameters(loss), values), (target_parameters(loss), values)]
    if logits is not None:
        outputs.append((actor_parameters(loss), logits))
    with torch.no_grad():
        for parameters, output in outputs:
            *_, weight, bias = parameters.values()
            weight.zero_()
            bias.copy_(output)
    return loss


@policies
def test_policy_of_exp_q_is_the_actors_optimum_and_has_the_soft_value(policy: str) -> None:
    """The information projection's fixed point: there V = alpha log sum exp(Q / alpha)."""
    values = torch.randn(LEVELS**ACTION_DIM if policy == "joint" else ACTION_DIM * LEVELS)
    loss = with_constant_outputs(policy, "exact", values, values / ALPHA)
    batch = batch_of()
    gradients = torch.autograd.grad(actor_loss(loss, batch)[0], list(actor_parameters(loss).values()))
    assert max(float(one.abs().max()) for one in gradients) < 1e-12
    soft = with_constant_outputs(policy, "soft-q", values, None)
    torch.testing.assert_close(loss.next_value(batch["next"]), soft.next_value(batch["next"]), rtol=1e-9, atol=0)
    away = with_constant_outputs(policy, "exact", values, values / ALPHA + torch.randn_like(values))
    assert (away.next_value(batch["next"]) < soft.next_value(batch["next"]) - 1e-3).all(), "no policy is better"


@policies
def test_temperature_to_zero_gives_the_greedy_value_and_action(policy: str) -> None:
    loss, actor = make(policy, "soft-q")
    observation = batch_of()["observation"]
    best = joint_values(target_parameters(loss), observation, policy, "soft-q").amax(-1).amin(0)
    with torch.no_grad():
        loss.log_alpha.fill_(math.log(1e-5))
        value = loss.next_value(TensorDict({"observation": observation}, [BATCH]))
    assert ((value - best).abs() < 1e-5 * math.log(len(JOINT))).all()
    greedy = joint_values(critic_parameters(loss), observation, policy, "soft-q").mean(0).argmax(-1)
    for noise in (-2.0, 0.0, 2.0):
        sampled = actor.sample(observation, torch.full((BATCH, ACTION_DIM), noise))
        torch.testing.assert_close(sampled, ACTIONS[greedy])
    torch.testing.assert_close(actor.mode(observation), ACTIONS[greedy])

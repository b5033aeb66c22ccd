"""Discrete actions: their levels, their sampling, and the messages that refuse them."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from pipeline_helpers import small_config
from torch import Tensor, nn

from pipeline.agent import Agent
from pipeline.dimensions import Dimensions
from pipeline.discrete import ActionLevels, CategoricalActor, quantile_index
from saltus.errors import SaltusError

POLICIES = ["joint", "factored"]


class FixedLogits(nn.Module):
    """A network whose output depends on nothing."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = logits

    def forward(self, observation: Tensor) -> Tensor:
        return self.logits.expand(len(observation), -1)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("counts", [(2,), (5,), (3, 3, 3), (7, 7), (2, 4, 3), (6, 2)])
def test_every_choice_has_an_action_of_evenly_spaced_levels(policy: str, counts: tuple[int, ...]) -> None:
    space = ActionLevels(counts, policy)
    first = [0] if policy == "joint" else [max(counts) - count for count in counts]  # heads of fewer choices skip some
    index = torch.tensor([*itertools.product(*(range(one, space.choices) for one in first))])
    actions = space.actions(index)
    levels = [[-1 + 2 * number / (count - 1) for number in range(count)] for count in counts]
    expected = torch.tensor([*itertools.product(*levels)])
    torch.testing.assert_close(actions, expected)
    assert torch.equal(space.index(actions), index)
    nudged = actions + (torch.rand_like(actions) - 0.5) * 1.9 / (torch.tensor(counts) - 1)
    assert torch.equal(space.index(nudged), index), "the nearest level"
    assert torch.equal(space.index(torch.full((1, len(counts)), 9.0)), space.index(torch.ones(1, len(counts))))
    assert torch.equal(space.index(torch.full((1, len(counts)), -9.0)), space.index(-torch.ones(1, len(counts))))
    assert space.largest_entropy == pytest.approx(math.log(len(actions)))


def test_outputs_belong_to_the_heads_in_their_order() -> None:
    space = ActionLevels((2, 4, 3), "factored")
    assert (space.heads, space.choices, space.outputs) == (3, 4, 9)
    heads = space.split(torch.arange(9.0).expand(2, 9))[1]
    assert [[value for value in head if value >= 0] for head in heads.tolist()] == [[0, 1], [2, 3, 4, 5], [6, 7, 8]]
    never = heads.softmax(-1)[heads < 0]
    assert torch.equal(never, torch.zeros(3)), "choices that a head does not have"
    assert torch.equal(ActionLevels((3, 3), "factored").split(torch.arange(6.0)), torch.arange(6.0).view(2, 3))


def test_action_that_is_not_finite_has_a_valid_index() -> None:
    index = ActionLevels((3, 3), "joint").index(torch.tensor([[float("nan"), float("inf")]]))
    assert 0 <= int(index) < 9


def test_quantiles_have_the_probabilities_as_frequencies() -> None:
    probabilities = torch.tensor([0.0, 0.2, 0.5, 0.0, 0.3, 0.0])
    uniform = (torch.arange(1000) + 0.5) / 1000
    counts = quantile_index(probabilities.expand(1000, -1), uniform).bincount(minlength=6)
    assert counts.tolist() == [0, 200, 500, 0, 300, 0]
    assert int(quantile_index(torch.tensor([0.5, 0.5 - 1e-6]), torch.tensor(1.0))) == 1


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("counts", [(3, 3), (4, 2)])
def test_sampled_actions_have_the_policys_probabilities(policy: str, counts: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    levels = ActionLevels(counts, policy)
    actor = CategoricalActor(FixedLogits(torch.randn(levels.outputs)), levels)
    count = 40_000
    actions = actor.sample(torch.zeros(count, 1), torch.randn(count, 2))
    probabilities = actor(torch.zeros(1, 1)).softmax(-1)[0]
    for choices in itertools.product(range(levels.choices), repeat=levels.heads):
        expected = float(torch.stack([probabilities[head, choice] for head, choice in enumerate(choices)]).prod())
        found = float((levels.index(actions) == torch.tensor(choices)).all(-1).float().mean())
        assert abs(found - expected) < 4 * (expected * (1 - expected) / count) ** 0.5 + 1e-6
    best = probabilities.argmax(-1)
    assert torch.equal(actor.mode(torch.zeros(1, 1)), levels.actions(best)[None])


def test_extreme_noise_draws_no_choice_that_a_head_does_not_have() -> None:
    levels = ActionLevels((4, 2), "factored")
    index = quantile_index(
        levels.split(torch.randn(6)).softmax(-1) * (1 - 1e-6), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    )
    assert index.tolist() == [[0, 2], [3, 3]]


@pytest.mark.parametrize("policy", POLICIES)
def test_random_actions_choose_every_level_equally_often(policy: str) -> None:
    levels = ActionLevels((5, 2), policy)
    actor = CategoricalActor(FixedLogits(torch.zeros(levels.outputs)), levels)
    actions = actor.random(((torch.arange(1000) + 0.5) / 1000)[:, None].expand(-1, 2))
    for column, count in enumerate((5, 2)):
        values, found = actions[:, column].unique(return_counts=True)
        assert torch.equal(values, torch.linspace(-1, 1, count))
        assert found.tolist() == [1000 // count] * count
    assert torch.equal(levels.actions(levels.index(actions)), actions)


def agent(**overrides: object) -> Agent:
    return Agent(small_config(preset="sac-discrete", **overrides), Dimensions(5, 6))


def assert_refused(message: str, **overrides: object) -> None:
    with pytest.raises(SaltusError, match=re.escape(message)):
        agent(**overrides)


def test_discrete_policy_of_a_continuous_task_without_levels_is_refused() -> None:
    assert_refused(
        "--policy joint (as of --preset sac-discrete) needs discrete actions, and the task has 6 continuous ones: give "
        "--action-levels 5",
        action_levels=0,
    )
    assert_refused("action_levels is 1; it must be a whole number, at least 2, or 0, or auto", action_levels=1)


def test_too_many_joint_actions_are_refused_with_their_number() -> None:
    assert_refused(
        "6 actuators with --action-levels 5 have 15,625 joint actions, and at most 1,024 work: use --policy factored, "
        "which chooses each actuator's level on its own (6 x 5 outputs), or fewer levels"
    )
    assert agent(policy="factored").actor.levels.heads == 6
    assert ActionLevels([4] * 5, "joint").choices == 1024
    assert Agent(small_config(preset="sac-discrete", action_levels=4), Dimensions(5, 5)).actor.levels.choices == 1024


def test_settings_that_need_a_continuous_policy_are_refused() -> None:
    for setting in ({"actor_value": "mean"}, {"critic_loss": "categorical", "reward_scaling": "bounded"}):
        assert_refused("--policy joint needs --critic-loss mse, --target-network, --network mlp", **setting)
    assert_refused("soft-q has no actor to average", discrete_update="soft-q", eval_policy_averaging=0.1)
    unused = small_config(preset="sac", action_levels=3).unused_settings()
    assert unused["action_levels"] == "--policy joint or factored"


@pytest.mark.parametrize("policy", POLICIES)
def test_target_entropy_that_no_policy_has_is_refused(policy: str) -> None:
    """The largest entropy, that of the uniform policy, is a bound that only an infinite temperature reaches."""
    largest = 6 * math.log(3)
    limits = f"and the entropy of --policy {policy} lies between 0 and {largest:.3g}, the logarithm of the number of "
    for settings, given in (
        ({"target_entropy_scale": 1.0}, "scale is 1"),
        ({"target_entropy_scale": -0.3}, "scale is -0.3"),
        ({"target_entropy": -1.0}, "is -1"),
        ({"target_entropy": 10.0}, "is 10"),
    ):
        expected = f"the target entropy {given}, {limits}joint actions: give --target-entropy-scale 0.3, a fraction of"
        assert_refused(expected, policy=policy, action_levels=3, **settings)
        agent(policy=policy, action_levels=3, alpha_lr=0.0, **settings)
    assert float(agent(policy=policy, action_levels=3, target_entropy=2.0).loss.target_entropy) == 2.0

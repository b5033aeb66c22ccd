"""The agent's policy: the actor that acts, the average that is evaluated, their statistics and copies."""

from __future__ import annotations

import pytest
import torch
from pipeline_helpers import ACTION_DIM, OBSERVATION_DIM, PRESETS, make_agent, random_transition
from torch import Tensor

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
every_recipe = pytest.mark.parametrize("preset", PRESETS)


def test_the_actor_that_learns_is_the_actor_that_acts() -> None:
    agent, observation = make_agent("crossq"), torch.randn(4, OBSERVATION_DIM)
    before = agent.act(observation, torch.zeros(4, ACTION_DIM))
    agent.update_actor(random_transition(16))
    after = agent.act(observation, torch.zeros(4, ACTION_DIM))
    assert not torch.equal(after, before)
    assert torch.equal(after, agent.actor.mode(observation))


@every_recipe
@pytest.mark.parametrize(
    ("eval_policy_averaging", "weights"), [(1, [1, 1, 1, 1]), (1 / 2, [1, 2, 3, 4]), (1 / 3, [1, 3, 6, 10])]
)
def test_eval_actor_is_the_weighted_average_of_the_actors(
    preset: str, eval_policy_averaging: float, weights: list[int]
) -> None:
    """The actor after update i has weight 1, i or i (i + 1) / 2: Shamir and Zhang 2013, in closed form."""
    agent = make_agent(preset, eval_policy_averaging=eval_policy_averaging)
    observation, noise = torch.randn(4, OBSERVATION_DIM), torch.zeros(4, ACTION_DIM)
    assert torch.equal(agent.policy(observation), agent.actor.mode(observation))
    actors: list[dict[str, Tensor]] = []
    for number in range(1, 5):
        agent.update_actor(random_transition(16, number))
        actors.append({name: value.double() for name, value in agent.actor.state_dict().items()})
        for name, value in agent.eval_actor.state_dict().items():
            weighted = sum(weight * actor[name] for weight, actor in zip(weights, actors, strict=False))
            expected = weighted / sum(weights[:number])
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(agent.policy(observation), agent.eval_actor.mode(observation))
    assert not torch.equal(agent.policy(observation), agent.actor.mode(observation))
    assert torch.equal(agent.act(observation, noise), agent.actor.mode(observation)), "the actor itself acts"


def test_without_averaging_the_eval_actor_is_the_actor() -> None:
    agent, observation = make_agent("crossq", eval_policy_averaging=0.0), torch.randn(4, OBSERVATION_DIM)
    agent.update_actor(random_transition(16))
    assert agent.eval_actor is agent.actor
    assert torch.equal(agent.policy(observation), agent.actor.mode(observation))


@pytest.mark.parametrize("preset", ["xqc", "flashsac"])
def test_acting_uses_the_running_statistics_that_updates_change(preset: str) -> None:
    agent, observation = make_agent(preset), torch.randn(8, OBSERVATION_DIM)
    before = {name: value.clone() for name, value in agent.actor.named_buffers()}
    with torch.no_grad():
        loc = agent.actor(observation)[0]
    agent.update_actor(random_transition(16))
    trained = agent.loss.actor_network_params.flatten_keys(".")
    for name, value in agent.actor.named_buffers():
        assert not torch.equal(value, before[name])
        assert torch.equal(value, trained[f"module.0.module.{name}"])
    for name, value in agent.actor.named_parameters():
        assert torch.equal(value, trained[f"module.0.module.{name}"])
    assert not torch.equal(agent.actor(observation)[0], loc)
    # Actions depend on no other row of the batch.
    torch.testing.assert_close(agent.policy(observation)[:3], agent.policy(observation[:3]))


def test_input_statistics_of_the_actor_follow_observations() -> None:
    agent, batch = make_agent("xqc"), random_transition(16)
    agent.update_actor(batch)
    torch.testing.assert_close(agent.actor.body[0].running_mean, 0.01 * batch["observation"].mean(0))
    torch.testing.assert_close(agent.actor.body[0].running_var, 0.99 + 0.01 * batch["observation"].var(0))


def test_policy_state_restores_the_policy() -> None:
    agent = make_agent("xqc", normalize_observations=True, eval_policy_averaging=0.5)
    other = make_agent("xqc", seed=1, normalize_observations=True, eval_policy_averaging=0.5)
    observation = torch.randn(4, OBSERVATION_DIM)
    agent.observe(random_transition(4))
    agent.update(random_transition(16))
    state, expected = agent.policy_state(), agent.policy(observation)
    agent.observe(random_transition(4, seed=1))
    agent.update(random_transition(16))
    assert not torch.equal(agent.policy(observation), expected), "the state is a copy"
    other.load_policy_state(state)
    assert torch.equal(other.policy(observation), expected)


@pytest.mark.parametrize("averaging", [0.0, 0.5])
def test_policy_on_cpu_is_a_copy_unless_the_agent_is_there(averaging: float) -> None:
    agent = make_agent("xqc", normalize_observations=True, eval_policy_averaging=averaging)
    agent.observe(random_transition(4))
    assert agent.policy_on_cpu() == agent.policy
    agent.device = torch.device("cuda")  # in name only
    policy, observation = agent.policy_on_cpu(), torch.randn(4, OBSERVATION_DIM)
    expected = agent.policy(observation)
    assert torch.equal(policy(observation), expected)
    agent.observe(random_transition(4, seed=1))
    agent.update(random_transition(16))
    assert torch.equal(policy(observation), expected)
    assert not torch.equal(agent.policy(observation), expected)

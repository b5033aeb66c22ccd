"""Actions: their bounds, their scaling to controls, and what transitions hold."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from env_helpers import WARP_MEMORY, Actions, CartBall, equal, spy
from torch import Tensor

import envs
from envs.action_space import ActionSpace
from saltus.errors import SaltusError

LOW, HIGH = torch.tensor([-1.0, -3.0, 0.0, -0.4]), torch.tensor([1.0, 3.0, 5.0, 0.4])
CPU = torch.device("cpu")
# Hopper's controls lie in [-1, 1], CartBall's second one in [-2, 2], InvertedPendulum's in [-3, 3].
WARP = {"physics": "warp", **WARP_MEMORY[CartBall]}
CASES: list[Any] = [("Hopper-v5", {}), ("InvertedPendulum-v5", {}), (CartBall, {}), (CartBall, WARP)]


def test_normalized_actions_are_scaled_to_the_control_range():
    space = ActionSpace(LOW, HIGH, True, CPU)
    assert space.low.tolist() == [-1] * 4
    assert space.high.tolist() == [1] * 4
    assert torch.equal(space.to_control(space.low[None]), LOW[None])
    assert torch.equal(space.to_control(space.high[None]), HIGH[None])
    assert space.to_control(torch.zeros(1, 4)).tolist() == [[0, 0, 2.5, 0]]
    action = 4 * torch.rand(50, 4, generator=torch.Generator().manual_seed(0)) - 2
    assert torch.equal(space.to_control(action)[:, 0], action[:, 0]), "exact where the range is [-1, 1]"


def test_actions_in_the_actuators_units_are_controls():
    space = ActionSpace(LOW, HIGH, False, CPU)
    assert torch.equal(space.low, LOW)
    assert torch.equal(space.high, HIGH)
    action = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(space.to_control(action), action)


def test_check_reads_values_only_where_asked():
    space = ActionSpace(LOW, HIGH, True, CPU)
    action = torch.zeros(2, 4)
    action[1, 2] = math.nan
    space.check(action, 2, read_values=False)
    with pytest.raises(SaltusError, match=r"the action of world 1 is not finite: \[0.0, 0.0, nan, 0.0\]"):
        space.check(action, 2, read_values=True)
    with pytest.raises(SaltusError, match=r"torch.float32 of shape \(2, 4\); expected torch.float32 of shape \(3, 4\)"):
        space.check(action, 3, read_values=False)
    with pytest.raises(SaltusError, match=r"the action is torch.float64"):
        space.check(action.double(), 2, read_values=False)


@pytest.mark.parametrize(("task", "simulation"), CASES)
def test_env_applies_the_scaled_action_and_keeps_the_given_one(task: Any, simulation: dict[str, Any]):
    env = envs.make(task, 4, **simulation)
    assert (env.action_low == -1).all()
    assert (env.action_high == 1).all()
    ranges = torch.as_tensor(env.physics.model.actuator_ctrlrange).float()
    assert torch.equal(torch.stack([env.control_low, env.control_high], dim=1), ranges)
    rewards = spy(env.task, "reward")
    center, half_range = (env.control_low + env.control_high) / 2, (env.control_high - env.control_low) / 2
    draw = Actions(env, scale=1.5)
    env.reset()
    compared = 0
    for _ in range(5):
        action = draw()
        transition, _ = env.step(action)
        assert torch.equal(transition["action"], action)
        control: Tensor = rewards[-1][0][1]
        assert torch.equal(control, center + half_range * action)
        assert torch.equal(control[:, ranges[:, 1] == 1], action[:, ranges[:, 1] == 1])
        for world in (~transition["next", "done"]).flatten().nonzero().flatten().tolist()[:1]:  # reset clears ctrl
            assert torch.equal(torch.as_tensor(env.physics.mj_data(world).ctrl).float(), control[world])
            compared += 1
    assert compared


@pytest.mark.parametrize(("task", "simulation"), CASES)
def test_normalization_changes_only_the_action(task: Any, simulation: dict[str, Any]):
    """An action and the corresponding control give the same transition, bit for bit."""
    normalized, raw = (
        envs.make(task, 4, seed=2, max_episode_steps=9, normalized_actions=flag, **simulation) for flag in (True, False)
    )
    assert torch.equal(raw.action_low, raw.control_low)
    assert torch.equal(raw.action_high, raw.control_high)
    center, half_range = (raw.control_low + raw.control_high) / 2, (raw.control_high - raw.control_low) / 2
    draw = Actions(normalized, scale=1.2)
    assert torch.equal(normalized.reset(), raw.reset())
    for _ in range(12):
        action = draw()
        control = center + half_range * action
        (left, left_obs), (right, right_obs) = normalized.step(action), raw.step(control)
        assert torch.equal(left["action"], action)
        assert torch.equal(right["action"], control)
        assert equal(left.exclude("action"), right.exclude("action"))
        assert torch.equal(left_obs, right_obs)

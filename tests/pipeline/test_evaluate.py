"""Evaluation: whole episodes, each world's first, and the statistics of their returns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

import envs
import saltus
from envs import State, Task
from pipeline.evaluate import Evaluation, evaluate
from pipeline.rows import evaluation_row
from saltus import SaltusError

SLIDER = """
<mujoco>
  <option timestep="0.125" gravity="0 0 0"/>
  <worldbody><body><joint name="x" type="slide" axis="1 0 0"/><geom size="0.1" mass="1"/></body></worldbody>
  <actuator><motor joint="x" ctrlrange="-1 3" gear="{gear}"/></actuator>
</mujoco>
"""


@dataclass
class Slider(Task):
    """A slider that moves at speed 1 to position 0: world i takes i + 1 steps in its first episode, 1 in later ones."""

    gear: float = 1.0
    max_episode_steps: int = 1000

    def __post_init__(self) -> None:
        self.mjcf = SLIDER.format(gear=self.gear)
        self.resets = 0

    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        qpos, qvel = super().reset(num_envs, generator)
        self.resets += 1
        first = self.resets <= 4  # the first three are the check at construction
        steps = torch.arange(1, num_envs + 1).to(qpos) if first else torch.ones_like(qpos[:, 0])
        qvel[:] = 1
        return -0.125 * steps[:, None], qvel

    def observation(self, state: State) -> Tensor:
        return torch.cat([state.qpos, state.qvel.clamp(max=10)], dim=-1)

    def reward(self, state: State, action: Tensor, next_state: State) -> Tensor:
        return 1 - 8 * state.qpos[:, 0]  # 1 + the remaining steps

    def terminated(self, state: State) -> Tensor:
        return state.qpos[:, 0] > -0.0625


def idle(observation: Tensor) -> Tensor:
    """The action of zero control: the control range is [-1, 3]."""
    return torch.full((len(observation), 1), -0.5)


def test_only_the_first_episode_of_each_world_counts() -> None:
    env = envs.make(Slider, 6)
    result = evaluate(idle, env)
    steps = range(1, 7)
    assert result.lengths == tuple(steps)
    assert result.returns == pytest.approx([sum(1 + left for left in range(1, count + 1)) for count in steps])
    assert result.failed == 0
    assert env.task.resets > 5, "no second episode began"


def test_truncated_episodes_count() -> None:
    result = evaluate(idle, envs.make(Slider, 5, max_episode_steps=3))
    assert result.lengths == (1, 2, 3, 3, 3)
    assert result.returns == pytest.approx([2, 5, 9, 5 + 4 + 3, 6 + 5 + 4])


def test_failed_episode_is_counted_once_and_leaves_others_unchanged() -> None:
    def break_world_2(observation: Tensor) -> Tensor:
        action = idle(observation)
        action[2] = 1
        return action

    with pytest.warns(UserWarning, match="world-steps whose physics failed: it diverged"):
        result = evaluate(break_world_2, envs.make(Slider, 4, gear=1e13))
    assert result.failed == 1
    assert result.lengths == (1, 2, 1, 4)
    assert result.returns == pytest.approx([2, 5, 0, 14])
    assert "1 truncated by failures" in result.summary()


def test_failure_of_a_reward_is_not_called_one_of_physics() -> None:
    class NoReward(Slider):
        """Its reward is not finite for the action 0, which the checks of a task do not try."""

        def reward(self, state: State, action: Tensor, next_state: State) -> Tensor:
            moved, idle = next_state.qpos[:, 0] > state.qpos[:, 0], next_state.qvel[:, 0] == 1
            return torch.where(moved & idle, torch.nan, super().reward(state, action, next_state))

    with pytest.warns(UserWarning, match="action, control, observation or reward was not finite") as caught:
        result = evaluate(idle, envs.make(NoReward, 3))
    assert result.failed == 3
    assert not any("physics" in str(warning.message) for warning in caught)


def test_policy_gets_observations_and_its_actions_reach_the_actuator() -> None:
    seen = []

    def push(observation: Tensor) -> Tensor:
        seen.append(observation.clone())
        return torch.ones(len(observation), 1)

    result = evaluate(push, envs.make(Slider, 8))
    assert not seen[0].requires_grad
    torch.testing.assert_close(seen[0][:, 0], -0.125 * torch.arange(1.0, 9.0))
    torch.testing.assert_close(seen[1][1:, 1], torch.full((7,), 1 + 3 * 0.125 / 1.0))
    assert max(result.lengths) < 8, "pushing did not shorten the episodes"


def test_environment_without_normalized_actions_is_refused() -> None:
    with pytest.raises(SaltusError, match=r"policies act in \[-1, 1\].*normalized_actions=True"):
        evaluate(idle, envs.make(Slider, 3, normalized_actions=False))


def test_evaluate_is_public() -> None:
    assert saltus.evaluate is evaluate


def evaluation_of(returns: list[float]) -> Evaluation:
    return Evaluation(tuple(returns), (1,) * len(returns), 0)


def test_mean_and_std_by_hand() -> None:
    result = evaluation_of([1.0, 2.0, 6.0])
    assert result.mean == pytest.approx(3.0)
    assert result.std == pytest.approx(((4 + 1 + 9) / 2) ** 0.5)


def test_single_episode_has_no_interval() -> None:
    result = evaluation_of([4.0])
    assert result.std == 0
    assert result.interval is None
    assert result.summary() == "return 4.0, length 1, 1 episode"
    assert evaluation_row({"env_steps": 1, "gradient_steps": 1, "seconds": 1}, result)["return_low"] is math.nan


def test_small_and_large_returns_are_readable() -> None:
    small, large = (evaluation_of([value] * 2).summary() for value in (-1.2e-5, 3e31))
    assert small.startswith("return -1.2e-05 +- 0.0 (standard deviation of episodes; ")
    assert "interval of the mean: -1.2e-05 to -1.2e-05)" in small
    assert large.startswith("return 3e+31 +- 0.0 (")


def test_interval_contains_the_mean_and_narrows_with_more_episodes() -> None:
    returns = np.random.default_rng(0).normal(100, 30, size=12).tolist()
    widths = []
    for copies in (1, 4, 16):
        result = evaluation_of(returns * copies)
        assert result.interval is not None
        low, high = result.interval
        assert min(returns) <= low < result.mean < high <= max(returns)
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0] / 2, rel=0.1)
    assert widths[2] == pytest.approx(widths[0] / 4, rel=0.1)


def test_interval_covers_the_true_mean_in_about_95_percent_of_cases() -> None:
    generator = np.random.default_rng(1)
    intervals = [evaluation_of(generator.normal(5, 2, size=30).tolist()).interval for _ in range(150)]
    coverage = np.mean([low <= 5 <= high for low, high in filter(None, intervals)])
    assert 0.87 <= coverage <= 0.99


def test_interval_is_deterministic() -> None:
    assert evaluation_of([1.0, 5.0, 2.0]).interval == evaluation_of([1.0, 5.0, 2.0]).interval


@pytest.mark.parametrize("adapter", ["GymnasiumVectorEnv", "TorchRLEnv"])
def test_the_environment_within_an_adapter_is_named(adapter: str) -> None:
    env = getattr(saltus, adapter)("InvertedPendulum-v5", 2)
    with pytest.raises(SaltusError, match="give the BatchEnv in its batch_env, made with normalized_actions=True"):
        evaluate(lambda observation: observation[:, :1], env)

"""`saltus check` finds planted faults, and has nothing to say against a correct task."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from check_helpers import CART, Cart

import envs
from envs import Task
from envs.task_ref import find_task
from pipeline.check.check import Check, _rate, check
from pipeline.check.report import _describe_episodes

pytestmark = pytest.mark.usefixtures("short_capacity_rollouts")


def run(task: type[Task], **options: Any) -> Check:
    return check(task, options, num_envs=32, steps=60, seed=0)


def texts(result: Check, severity: str) -> list[str]:
    return [finding.text for finding in result.findings if finding.severity == severity]


def test_correct_task_has_no_errors_and_no_warnings() -> None:
    result = run(Cart)
    assert texts(result, "error") == texts(result, "warning") == []
    assert not result.failed


@pytest.mark.slow
@pytest.mark.parametrize("name", envs.list_tasks())
def test_built_in_tasks_have_no_errors(name: str) -> None:
    result = check(find_task(name), {}, num_envs=8, steps=30, seed=0)
    assert texts(result, "error") == []
    known = ("standard deviations of observations", "geom floor of body world and geom right_larm")  # HumanoidStandup
    assert all(any(start in text for start in known) for text in texts(result, "warning"))


class NoObservation(Cart):
    observation = Task.observation


class NoReward(Cart):
    reward = Task.reward


class FlatReward(Cart):
    def reward(self, state: Any, action: torch.Tensor, next_state: Any) -> Any:
        return super().reward(state, action, next_state)[:, None]


class MixedWorlds(Cart):
    def observation(self, state: Any) -> torch.Tensor:
        return super().observation(state) - state.qpos.mean(dim=0)


class ChangedState(Cart):
    def reward(self, state: Any, action: torch.Tensor, next_state: Any) -> Any:
        next_state.qpos.clamp_(-0.5, 0.5)
        return super().reward(state, action, next_state)


class InfiniteObservation(Cart):
    def observation(self, state: Any) -> torch.Tensor:
        return 1 / (state.qvel * 0)


class UndeclaredField(Cart):
    def observation(self, state: Any) -> torch.Tensor:
        return state.xpos[:, 1]


class Unbounded(Cart):
    mjcf = CART.replace(' ctrlrange="-1 1"', "").format(actuators="")


class OwnRandomness(Cart):
    def observation(self, state: Any) -> torch.Tensor:
        return super().observation(state) + torch.rand_like(state.qpos)


class RandomReset(Cart):
    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        qpos, qvel = Task.reset(self, num_envs, generator)
        return qpos + torch.rand_like(qpos), qvel


class EndsAtOnce(Cart):
    def terminated(self, state: Any) -> torch.Tensor:
        return state.qpos[:, 0] > -10


class EndsOften(Cart):
    def terminated(self, state: Any) -> torch.Tensor:
        return state.qpos[:, 0] > 0.5


class CountsOnSelf(Cart):
    def reward(self, state: Any, action: torch.Tensor, next_state: Any) -> Any:
        self.steps = getattr(self, "steps", 0) + 1
        return super().reward(state, action, next_state)


class KeepsTensor(Cart):
    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        self.start = torch.zeros(num_envs)
        return super().reset(num_envs, generator)


class Broken(Cart):
    def reward(self, state: Any, action: torch.Tensor, next_state: Any) -> Any:
        return next_state.qpos[:, 3]


class ReadsValues(Cart):
    def reward(self, state: Any, action: torch.Tensor, next_state: Any) -> Any:
        reward = super().reward(state, action, next_state)
        return reward if float(reward.max()) < 100 else 0 * reward


class BooleanIndex(Cart):
    def terminated(self, state: Any) -> torch.Tensor:
        ended = torch.zeros_like(state.qpos[:, 0])
        far = state.qpos[:, 0] > 100
        ended[far] = state.qpos[far, 0]
        return ended > 0


class Unscaled(Cart):
    def observation(self, state: Any) -> torch.Tensor:
        return torch.cat([1e5 * state.qpos, state.qvel], dim=-1)


class ConstantObservation(Cart):
    def observation(self, state: Any) -> torch.Tensor:
        return torch.ones_like(state.qpos)


class ConstantReward(Cart):
    def reward(self, state: Any, action: torch.Tensor, next_state: Any) -> Any:
        return torch.ones_like(next_state.qpos[:, 0])


class HugeReward(Cart):
    def reward(self, state: Any, action: torch.Tensor, next_state: Any) -> Any:
        return 1e6 * super().reward(state, action, next_state)


class IdleActuator(Cart):
    mjcf = CART.format(actuators='<motor name="idle" joint="slide" gear="0" ctrlrange="-1 1"/>')


class Saturated(Cart):
    mjcf = CART.format(actuators='<motor name="free" joint="slide"/><motor joint="slide" ctrlrange="-99 99"/>')
    action_low, action_high = -1, 1

    def control(self, state: Any, action: torch.Tensor) -> torch.Tensor:
        return 50 * action


class WideActions(Cart):
    action_low, action_high = -50, 50


class Overlap(Cart):
    mjcf = CART.replace('pos="0 0 0.2"', 'pos="0 0 0.0"').format(actuators="")


class SlowControl(Cart):
    frame_skip = 100


class Diverges(Cart):
    mjcf = CART.replace('damping="1"', 'damping="-2000"').format(actuators="")


class NotFiniteLater(Cart):
    def reward(self, state: Any, action: torch.Tensor, next_state: Any) -> Any:
        return torch.where(next_state.qvel[:, 0] > 0.5, torch.nan, next_state.qpos[:, 0])


class FailsAlways(Cart):
    mjcf = CART.replace('damping="1"', 'damping="-1e10"').format(actuators="")

    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        qpos, qvel = super().reset(num_envs, generator)
        return qpos, qvel + 1


class BadStarts(Cart):
    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        qpos, qvel = super().reset(num_envs, generator)
        return torch.where(qpos > 0.8, 1e12, qpos), qvel


@dataclass
class OneStep(Cart):
    max_episode_steps: int = 1


class NoAction(Cart):
    mjcf = "<mujoco><worldbody><body><joint/><geom size='1'/></body></worldbody></mujoco>"


@pytest.mark.parametrize(
    ("task", "severity", "text"),
    [
        (NoObservation, "error", "does not define observation"),
        (NoReward, "error", "does not define reward"),
        (FlatReward, "error", r"reward returned a torch.float64 tensor of shape \(32, 1\)"),
        (MixedWorlds, "error", "mixes worlds"),
        (ChangedState, "error", "changes state.qpos in place"),
        (InfiniteObservation, "error", "observation is not finite"),
        (UndeclaredField, "error", r"AttributeError in test_check.py:\d+.*add 'xpos' to `fields`"),
        (Unbounded, "error", "give each a ctrlrange"),
        (NoAction, "error", "has no actuators"),
        (OwnRandomness, "error", "saved and restored continues with other observations"),
        (RandomReset, "warning", "reset returns other values for equal generators"),
        (EndsAtOnce, "error", "is true at every initial state and after one step"),
        (EndsOften, "error", "% of the episodes end after one step"),
        (CountsOnSelf, "error", "functions set self.steps"),
        (KeepsTensor, "error", "functions set self.start"),
        (Broken, "error", r"IndexError in test_check.py:\d+: index 3 is out of bounds"),
        (ReadsValues, "warning", r"would wait for it.*test_check.py:\d+ \(reward\)"),
        (BooleanIndex, "warning", r"would wait for it.*test_check.py:\d+ \(terminated\)"),
        (Unscaled, "warning", "--normalize-observations often helps"),
        (ConstantObservation, "warning", "observations that never change: 0 of 1"),
        (ConstantReward, "warning", "the reward is always 1"),
        (HugeReward, "warning", r"rewards reach .*e\+0[56] per step"),
        (IdleActuator, "warning", "actions that change nothing from the initial states: idle"),
        (Saturated, "warning", r"clamps most controls to their range.*alike: push \(up to 9\d% of the steps"),
        (WideActions, "warning", "clamps most controls to their range"),
        (Overlap, "warning", "geom floor of body world and geom box of body cart overlap by 0.1 m"),
        (SlowControl, "warning", "acts 1 times per second"),
        (
            Diverges,
            "error",
            r"world-steps failed \(.*%\), the first in world \d+ at step \d+, at body cart, where physics",
        ),
        (NotFiniteLater, "error", "where control, observation or reward was not finite"),
        (FailsAlways, "error", r"world-steps failed \(100.00%\), the first in world 0 at step 0, at body cart"),
        (BadStarts, "error", r"\d+ initial states failed and were replaced"),
    ],
)
def test_planted_fault_is_found(task: type[Task], severity: str, text: str) -> None:
    result = run(task)
    found = " | ".join(texts(result, severity))
    assert re.search(text, found), result.findings
    assert result.failed == bool(texts(result, "error"))


def test_equal_starts_and_short_episodes_are_notes() -> None:
    class Still(Cart):
        reset = Task.reset

        def terminated(self, state: Any) -> torch.Tensor:
            return state.qpos.abs()[:, 0] > 0.01

    result = check(Still, {"max_episode_steps": 1000}, num_envs=32, steps=60, seed=0)
    notes = " | ".join(texts(result, "note"))
    assert "every episode begins with the same observation" in notes
    assert re.search(r"episodes of random actions last \d+ of 1,000 steps", notes)


class Servo(Cart):
    """Its controls come from a network, whose parameters have gradients."""

    def bind(self, *model: Any) -> None:
        super().bind(*model)
        object.__setattr__(self, "network", torch.nn.Linear(1, 1, dtype=self.qpos0.dtype))

    def control(self, state: Any, action: torch.Tensor) -> torch.Tensor:
        return self.network(action.to(self.qpos0))


class Uncalled(Cart):
    def falls(self, state: Any) -> torch.Tensor:
        return state.qpos[:, 0] > 3


def test_methods_that_nothing_calls_are_noted() -> None:
    assert texts(run(Uncalled), "note")[0] == (
        "nothing calls falls of Uncalled: saltus calls reset, observation, reward, terminated, advance, control, "
        "randomize, bind"
    )


class NearlyConstant(Cart):
    def observation(self, state: Any) -> torch.Tensor:
        return torch.cat([1 + 1e-6 * state.qpos, state.qvel, 1e3 * state.qpos, 0.1 * state.qvel], dim=-1)


def test_scales_are_compared_of_observations_that_change_and_both_ends_named() -> None:
    result = run(NearlyConstant)
    (note,) = (text for text in texts(result, "note") if "hardly change" in text)
    assert note == ("observations that hardly change (standard deviation below 0.0001, or below 0.0001 of the mean): 0")
    (warning,) = texts(result, "warning")
    assert re.fullmatch(
        r"the standard deviations of observations differ by a factor of [\d,]+, from [\d.]+ \(observation 3\) to "
        r"[\d.e+]+ \(observation 2\): --normalize-observations often helps, or scale them in `observation`",
        warning,
    )
    assert "(observation 1 joint slide qvel) to " in texts(run(Unscaled), "warning")[-1]


@pytest.mark.parametrize(("factor", "text"), [(1e7, "observations reach "), (1e-6, "observations stay below ")])
def test_observations_far_from_1_are_warned_about(factor: float, text: str) -> None:
    def observation(self: Cart, state: Any) -> torch.Tensor:
        return factor * state.qpos

    result = run(type("Extreme", (Cart,), {"observation": observation}))
    (warning,) = texts(result, "warning")
    assert warning.startswith(text)
    assert "--normalize-observations" in warning
    assert not [note for note in texts(result, "note") if "hardly change" in note]


def test_tasks_may_compute_controls_by_networks() -> None:
    assert texts(run(Servo), "error") == []


def test_task_of_one_step_is_no_mistake() -> None:
    assert texts(run(OneStep), "error") == []


def test_options_reach_the_task() -> None:
    result = run(Cart, goal=3.0)
    assert result.env is not None
    assert result.rollout is not None
    assert isinstance(result.env.task, Cart)
    assert result.env.task.goal == 3.0
    assert float(result.rollout.rewards.high[0]) < -1


def test_ranges_are_those_of_all_world_steps() -> None:
    rollout = run(Cart).rollout
    assert rollout is not None
    assert rollout.totals["steps"] == 32 * 60
    assert rollout.totals["reward"] / rollout.totals["steps"] == pytest.approx(float(rollout.rewards.mean[0]))
    assert rollout.lengths == [50] * 32
    assert torch.all(rollout.observations.low <= rollout.observations.mean)
    assert torch.all(rollout.observations.mean <= rollout.observations.high)
    assert rollout.steps_per_second > 0
    assert rollout.bare_steps_per_second > 0


def test_rate_is_about_a_share_of_the_bare_engines() -> None:
    result = run(Cart)
    assert result.env is not None
    assert result.rollout is not None
    noisy = dataclasses.replace(result.rollout, steps_per_second=1050.0, bare_steps_per_second=1000.0)
    assert _describe_episodes(noisy).endswith("1,050 env steps/s, about 100% of the bare engine's rate")
    slow = dataclasses.replace(noisy, steps_per_second=400.0)
    (finding,) = _rate(result.env, slow)
    assert finding.text.startswith("steps have about 40% of the bare engine's rate: ")

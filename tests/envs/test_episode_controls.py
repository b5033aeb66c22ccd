"""Controls of a task, and mistakes in `control`, `advance` and own tensors."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from arm_task import WORLDS, Arm, make, refused, warp
from env_helpers import Actions
from torch import Tensor

from envs import BatchEnv, State, Task
from saltus.errors import SaltusError

# Controls


class Free(Task):
    """A body without actuators that a mocap body pulls."""

    mjcf = """<mujoco><worldbody>
      <body name="hand" mocap="true"><geom size=".05" contype="0" conaffinity="0"/></body>
      <body name="load"><freejoint/><geom size=".1" mass="1"/></body>
      </worldbody><equality><weld body1="hand" body2="load"/></equality></mujoco>"""
    fields: ClassVar[tuple[str, ...]] = ("qpos", "mocap_pos")
    action_low: Any = (-0.1, -0.1, -0.1)
    action_high: Any = 0.1

    def control(self, state: State, action: Tensor) -> Any:
        return {"mocap_pos": state.mocap_pos + action[:, None]}

    def observation(self, state: State) -> Tensor:
        return state.qpos

    def reward(self, state: State, action: Tensor, next_state: State) -> Tensor:
        return next_state.qpos[:, 2]


def test_a_model_without_actuators_is_moved_by_mocap():
    env = make(Free)
    env.reset()
    assert (env.action_dim, env.action_low.tolist()) == (3, [-1, -1, -1])
    assert env.control_high.tolist() == pytest.approx([0.1] * 3)
    for _ in range(50):
        env.step(torch.tensor([[0.2, 0.0, 1.0]]).repeat(WORLDS, 1))
    assert env.physics.mj_data(0).mocap_pos[0] == pytest.approx([1, 0, 5], rel=1e-5)
    assert float(env.state.qpos[0, 2]) > 0.5


def test_actuators_without_limits_are_bounded_by_the_task():
    mjcf = Free.mjcf.replace("<equality>", "<actuator><motor site='s'/></actuator><equality>").replace(
        '<geom size=".1"', '<site name="s"/><geom size=".1"'
    )
    task = type("Pushed", (Free,), {"mjcf": mjcf, "control": Task.control, "action_low": -3, "action_high": 3})
    env = make(task)
    env.reset()
    env.step(torch.ones(WORLDS, 1))
    assert env.physics.mj_data(1).ctrl.tolist() == [3]


@pytest.mark.parametrize("engine", ["cpu", "warp"])
def test_a_control_that_is_not_finite_fails_its_world_only(engine: str):
    class Bad(Arm):
        armed = False

        def control(self, state: State, action: Tensor) -> dict[str, Tensor]:
            inputs = super().control(state, action)
            if self.armed:
                inputs["mocap_pos"][1, 0, 2] = torch.nan
            return inputs

    env = make(Bad) if engine == "cpu" else warp("device", Bad)
    env.reset()
    env.task.armed = True
    transition, obs = env.step(Actions(env)())
    assert env.failed.tolist() == [False, True, False]
    assert torch.isfinite(transition["next", "observation"]).all()
    assert torch.isfinite(obs).all()
    env.task.armed = False
    env.step(Actions(env)())
    assert not env.failed.any()


@pytest.mark.parametrize("engine", ["cpu", "warp"])
def test_an_initial_field_that_is_not_finite_fails(engine: str):
    class Bad(Arm):
        armed = False

        def reset(self, num_envs: int, generator: torch.Generator) -> dict[str, Tensor]:
            start = super().reset(num_envs, generator)
            if self.armed:
                start["mocap_pos"][1, 0, 2] = torch.nan
            return start

    env = make(Bad) if engine == "cpu" else warp("device", Bad)
    env.task.armed = True
    assert torch.isfinite(env.reset()).all()
    env.task.armed = False
    env.step(Actions(env)())
    assert env.failed.tolist() == [False, engine == "warp", False], "on the CPU it starts from the home state"
    env.step(Actions(env)())
    assert not env.failed.any()


# Mistakes


def task_with(**changes: Any) -> type[Task]:
    return type("Mine", (Arm,), changes)


def starting(**changes: Any) -> type[Task]:
    def reset(self: Arm, num_envs: int, generator: torch.Generator) -> dict[str, Any]:
        return {**Arm.reset(self, num_envs, generator), **changes}

    return task_with(reset=reset)


ones, TWO = torch.ones(WORLDS, 2), torch.ones(2)
MISTAKES: list[tuple[type[Task], list[str]]] = [
    (task_with(home="high"), ["home of task Mine is 'high'", "the model has 'low', 1 (without a name)"]),
    (task_with(home=2), ["home of task Mine is 2"]),
    (task_with(settle_steps=-1), ["settle_steps of task Mine is -1"]),
    (starting(xpos=ones), ["Mine.reset returned 'xpos', which is a name of MjData", "qpos, qvel, act, ctrl"]),
    (starting(body=ones), ["Mine.reset returned 'body', which is a function of the state"]),
    (starting(**{"a goal": ones}), ["Mine.reset returned 'a goal'; expected a name such as 'goal'"]),
    (starting(target=TWO), ["Mine.reset (target) returned", "(2,)", "expected a tensor of shape (3, ...)"]),
    (starting(target=[1, 2, 3]), ["Mine.reset (target) returned a list"]),
    (starting(act=ones.double()), ["Mine.reset (act) returned", "expected a floating-point tensor of shape (3, 1)"]),
    (starting(goal=ones * torch.nan), ["Mine.reset returned values that are not finite (goal)"]),
    (task_with(reset=lambda self, n, generator: [1]), ["returned a list; expected (qpos, qvel), or a dict of tensors"]),
    (
        task_with(advance=lambda self, s, a, g: {"gaol": s.goal}),
        ["Mine.advance renews 'gaol'", "goal, previous_action"],
    ),
    (task_with(advance=lambda self, s, a, g: {"qpos": s.qpos}), ["Mine.advance renews 'qpos'"]),
    (task_with(advance=lambda self, s, a, g: {"count": s.goal}), ["Mine.advance (count) returned", "torch.int64"]),
    (task_with(advance=lambda self, s, a, g: s.goal), ["Mine.advance returned a Tensor; expected a dict"]),
    (task_with(advance=lambda self, s, a, g: {"goal": s.goal.mul_(2)}), ["Mine.advance changes state.goal in place"]),
    (task_with(advance=lambda self, s, a, g: {"goal": s.goal + s.goal.mean(0)}), ["Mine.advance mixes worlds"]),
    (
        task_with(control=lambda self, s, a: {"qpos": s.qpos}),
        ["Mine.control returned 'qpos'; it can set ctrl, mocap_pos"],
    ),
    (task_with(control=lambda self, s, a: {}), ["Mine.control returned an empty dict"]),
    (task_with(control=lambda self, s, a: a), ["Mine.control (ctrl) returned", "(3, 3)", "tensor of shape (3, 2)"]),
    (task_with(control=lambda self, s, a: a[:, :2] / 0), ["Mine.control returned values that are not finite (ctrl)"]),
    (task_with(control=lambda self, s, a: a[:, :2] - a.mean()), ["Mine.control mixes worlds"]),
    (task_with(control=lambda self, a: a), ["Mine.control", "expected: def control(self, state, action)"]),
    (task_with(action_low=(0, 0)), ["action_low and action_high of task Mine are (0, 0) and (1.0, 1.0, 0.5)"]),
    (task_with(action_low=None), ["are None and (1.0"]),
    (task_with(action_low=2), ["the lower one first"]),
    (task_with(control=Task.control), ["Mine has 3 actions", "its model 2 controls", "control(self, state, action)"]),
    (task_with(action_low=None, action_high=None), ["servo (its ctrlrange", "Or set action_low and action_high"]),
    (type("Mine", (Free,), {"action_low": -1, "action_high": 1}), ["has no controls: give a number for each action"]),
    (type("Mine", (Free,), {"action_low": None, "action_high": None}), ["has no actuators. Give it some, or set"]),
    (task_with(ctrl0=1), ["defines 'ctrl0', which saltus sets"]),
    (task_with(observation=lambda self, state: state.gaol), ["state.gaol", "goal, previous_action"]),
]


@pytest.mark.parametrize(("task", "parts"), MISTAKES)
def test_mistakes_are_named(task: type[Task], parts: list[str]):
    with pytest.raises((SaltusError, AttributeError)) as caught:
        make(task)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_own_tensors_that_change_their_form_are_refused():
    class Changing(Arm):
        later: ClassVar[dict[str, Any]] = {}

        def reset(self, num_envs: int, generator: torch.Generator) -> dict[str, Tensor]:
            return {**super().reset(num_envs, generator), **self.later}

    env = make(Changing)
    env.reset()
    for later in ({"new": ones}, {"goal": ones}, {"count": ones[:, 0]}):
        Changing.later = later
        refused(env.reset, "Changing.reset returned {", "as when the environment was made")


@pytest.mark.parametrize(("function", "expected"), [("advance", "a dict"), ("control", "a tensor, or a dict")])
def test_functions_that_later_return_nothing_are_refused(function: str, expected: str):
    env = make(Arm)
    env.reset()
    setattr(env.task, function, lambda *arguments: None)
    message = f"Arm.{function} returned a NoneType; expected {expected}, as when the environment was made"
    refused(lambda: env.step(torch.zeros(WORLDS, 3)), message)


def test_name_close_to_a_field_is_warned_about():
    with pytest.warns(UserWarning, match=r"'mocap_pose'.* did you mean mocap_pos\?"):
        make(starting(mocap_pose=ones))


def test_randomness_of_its_own_is_warned_about():
    with pytest.warns(UserWarning, match=r"advance returns other values for the same state"):
        make(task_with(advance=lambda self, s, a, g: {"goal": torch.rand_like(s.goal)}))


class SometimesBad(Arm):
    """Draws a goal that is not finite in one world, but not when the environment is made."""

    max_episode_steps = 1
    calls = 0

    def reset(self, num_envs: int, generator: torch.Generator) -> Any:
        start = super().reset(num_envs, generator)
        SometimesBad.calls += 1
        if SometimesBad.calls > 4:
            start["goal"] = start["goal"].clone()
            start["goal"][1] = torch.nan
        return start


def test_world_whose_own_tensor_is_not_finite_starts_from_a_checked_one() -> None:
    env = BatchEnv(SometimesBad(), WORLDS)
    env.reset()
    for _ in range(5):
        _, observation = env.step(torch.zeros(WORLDS, env.action_dim))
        assert torch.isfinite(observation).all()
        assert torch.isfinite(env.state.goal).all()
    assert env.statistics()["nonfinite"] > 0

"""State of episodes and controls: own tensors, act, mocap, keyframes, `control` and `advance`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar

import mujoco
import numpy as np
import pytest
import torch
from env_helpers import Actions, equal, same_bits
from graph_recorder import record_on_cpu
from torch import Tensor

import envs
from envs import BatchEnv, Simulation, State, Task
from saltus.device.synchronizations import Synchronizations
from saltus.errors import SaltusError

# An arm with a muscle and a position servo, a mocap body that pulls the arm by a weld, a keyframe.
MODEL = """
<mujoco>
  <option timestep="0.004"/>
  <size nuserdata="2"/>
  <worldbody>
    <geom name="floor" type="plane" size="3 3 .1"/>
    <body name="hand" mocap="true" pos=".7 0 1"><geom size=".04" contype="0" conaffinity="0"/></body>
    <body name="upper" pos="0 0 1">
      <joint name="shoulder" axis="0 1 0" damping=".4" range="-100 100"/>
      <geom type="capsule" fromto="0 0 0 .4 0 0" size=".04" mass=".6"/>
      <body name="lower" pos=".4 0 0">
        <joint name="elbow" axis="0 1 0" damping=".4" range="-120 120"/>
        <geom type="capsule" fromto="0 0 0 .3 0 0" size=".03" mass=".4"/>
        <site name="tip" pos=".3 0 0"/>
      </body>
    </body>
    <body name="ball" pos=".3 .4 .3"><freejoint/><geom size=".1" mass=".2"/></body>
  </worldbody>
  <equality><weld body1="hand" body2="lower" solref=".1 1" relpose="-.3 0 0 1 0 0 0"/></equality>
  <actuator>
    <muscle name="flexor" joint="shoulder" ctrlrange="0 1" force="20" lengthrange="-2 2"/>
    <position name="servo" joint="elbow" kp="8"/>
  </actuator>
  <keyframe>
    <key name="low" time="2" qpos=".2 .3 .3 .4 .3 1 0 0 0" qvel=".1 0 0 0 0 0 0 0" act=".2" ctrl=".3 .1"
         mpos=".6 .05 .9"/>
    <key qpos="0 0 .3 .4 .2 1 0 0 0"/>
  </keyframe>
</mujoco>
"""
MEMORY = {"max_contacts": 16, "max_constraints": 64}
WORLDS = 3


class Arm(Task):
    """Uses all of it: a start by a mapping, own tensors of three dtypes, `advance`, `control`."""

    mjcf = MODEL
    frame_skip = 3
    max_episode_steps = 6
    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel", "act", "mocap_pos", "site_xpos", "xpos", "time")
    home: Any = "low"
    action_low: Any = (-1.0, -1.0, -0.5)
    action_high: Any = (1.0, 1.0, 0.5)

    def reset(self, num_envs: int, generator: torch.Generator) -> dict[str, Tensor]:
        def draw(*shape: int) -> Tensor:
            return torch.rand(num_envs, *shape, generator=generator, device=generator.device).to(self.qpos0.dtype)

        goal = draw(3)
        qpos = self.qpos0.repeat(num_envs, 1)
        qpos[:, :2] += 0.1 * draw(2)
        return {
            "qpos": qpos,
            "act": 0.5 * draw(1),
            "mocap_pos": torch.tensor([0.6, 0.0, 0.9]).to(qpos) + 0.05 * draw(1, 3),
            "userdata": draw(2),
            "goal": goal,
            "previous_action": torch.zeros_like(goal),
            "count": torch.zeros(num_envs, dtype=torch.int64, device=qpos.device),
            "switched": torch.zeros(num_envs, dtype=torch.bool, device=qpos.device),
            "command": goal[:, 0],
        }

    def control(self, state: State, action: Tensor) -> dict[str, Tensor]:
        home = self.ctrl0.repeat(len(action), 1)
        torque = 2.0 * (0.3 * action[:, 1] - state.qpos[:, 1]) - 0.1 * state.qvel[:, 1]
        ctrl = torch.stack([home[:, 0] + 0.3 * action[:, 0], torque], dim=-1)
        push = torch.zeros(len(action), self.model.nbody, 6).to(home)
        push[:, -1, 1] = action[:, 2]
        hand = torch.stack([torch.zeros_like(action[:, 2]), 0.1 * action[:, 2], 0.02 * action[:, 1]], dim=-1)
        return {"ctrl": ctrl, "xfrc_applied": push, "mocap_pos": state.mocap_pos + hand[:, None]}

    def advance(self, state: State, action: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        drawn = torch.rand(len(action), generator=generator, device=generator.device)
        switched = state.count == 1
        command = torch.where(switched, drawn.to(state.command), state.command)
        previous = action.to(state.previous_action)
        return {"command": command, "previous_action": previous, "count": state.count + 1, "switched": switched}

    def observation(self, state: State) -> Tensor:
        parts = [state.qpos, state.qvel, state.act, state.mocap_pos.flatten(1), state.goal, state.previous_action]
        last = torch.stack([state.command, state.count.to(state.command), state.time], dim=-1)
        return torch.cat([*parts, last], dim=-1)

    def reward(self, state: State, action: Tensor, next_state: State) -> Tensor:
        distance = (next_state.site("tip").xpos - state.goal).norm(dim=-1)
        return next_state.count - distance - (action - state.previous_action).square().sum(-1)


def make(task: type[Task] = Arm, num_envs: int = WORLDS, **options: Any) -> BatchEnv:
    return envs.make(task, num_envs, **options)


def warp(execution: Any = "auto", task: type[Task] = Arm, **options: Any) -> BatchEnv:
    simulation = Simulation(physics="warp", **MEMORY)
    return BatchEnv(task(), WORLDS, simulation=simulation, execution=execution, **options)


def unwelded(task: type[Task]) -> type[Task]:
    """A task without the weld: Warp's welds read velocities of the step before, which are outside its state."""
    return type(task.__name__, (task,), {"mjcf": re.sub("<equality>.*</equality>", "", MODEL)})


def own(env: BatchEnv) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in env._own.items()}


def refused(call: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(SaltusError) as caught:
        call()
    assert all(part in str(caught.value) for part in parts), str(caught.value)


# Against plain MuJoCo


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_worlds_equal_plain_mujoco_bit_for_bit(recompute: bool, num_threads: int):
    task = type("Recomputed", (Arm,), {"recompute_derived": recompute})
    env = make(task, seed=3, num_threads=num_threads)
    env.reset()
    draw, model = Actions(env, scale=1.0), env.task.model
    worlds = []
    # The first start, drawn again from a generator in the state of the environment's before its reset.
    start = env.task.reset(WORLDS, make(task, seed=3)._generator)
    key = model.key("low")
    for world in range(WORLDS):
        data = mujoco.MjData(model)
        mujoco.mj_resetDataKeyframe(model, data, key.id)
        for name in ("qpos", "act", "mocap_pos", "userdata"):
            getattr(data, name)[...] = start[name][world].numpy()
        assert data.time == 2
        mujoco.mj_forward(model, data)
        worlds.append(data)
    for _ in range(5):
        action = draw()
        scaled = (np.array([1, 1, 0.5], np.float32) * action.numpy()).astype(np.float64)
        for data, (muscle, servo, push) in zip(worlds, scaled, strict=True):
            data.ctrl[:] = controls(key.ctrl[0], muscle, servo, data)
            data.xfrc_applied[-1] = [0, push, 0, 0, 0, 0]
            data.mocap_pos[0] += np.float64(
                [0, np.float32(0.1) * np.float32(push), np.float32(0.02) * np.float32(servo)]
            )
            mujoco.mj_step(model, data, 3)
        env.step(action)
        for world, data in enumerate(worlds):
            for name in ("qpos", "qvel", "act", "mocap_pos", "time"):
                assert same_bits(getattr(env.state, name)[world], np.asarray(getattr(data, name))), name
            if recompute:
                mujoco.mj_kinematics(model, data)
            assert same_bits(env.state.xpos[world], data.xpos)


def controls(home: float, muscle: float, servo: float, data: mujoco.MjData) -> tuple[float, float]:
    """What `Arm.control` computes, whose products of actions are in float32."""
    target = np.float64(np.float32(0.3) * np.float32(servo))
    torque = 2.0 * (target - data.qpos[1]) - 0.1 * data.qvel[1]
    return home + np.float64(np.float32(0.3) * np.float32(muscle)), torque


def test_settled_home_equals_plain_steps():
    task = type("Settled", (Arm,), {"settle_steps": 50, "reset": Task.reset, "advance": Task.advance, **plain()})
    env = make(task)
    env.reset()
    data = mujoco.MjData(env.task.model)
    mujoco.mj_resetDataKeyframe(env.task.model, data, 0)
    mujoco.mj_step(env.task.model, data, 50)
    for name in ("qpos", "qvel", "act", "mocap_pos"):
        assert same_bits(getattr(env.state, name)[1], getattr(data, name))
    assert (env.state.time == 2).all()
    assert same_bits(env.task.ctrl0, data.ctrl)
    assert same_bits(env.physics.mj_data(0).ctrl, data.ctrl)


def plain() -> dict[str, Any]:
    """Functions that use no own tensors."""
    return {"observation": lambda self, state: state.qpos, "reward": lambda self, state, action, then: then.qpos[:, 0]}


# Own tensors


@pytest.mark.parametrize("engine", ["cpu", "warp"])
def test_goal_is_constant_in_an_episode_and_drawn_at_its_start(engine: str):
    env = make() if engine == "cpu" else warp()
    env.reset()
    draw, goal, commands = Actions(env), env.state.goal.clone(), env.state.command.clone()
    for step in range(1, 15):
        action = draw()
        transition, obs = env.step(action)
        ended = transition["next", "truncated"].flatten()
        assert ended.all() == (step % 6 == 0)
        assert torch.equal(env.state.goal, goal) != bool(ended.any())
        successor = transition["next", "observation"]
        assert torch.equal(successor[:, -9:-6], goal.float()), "the goal of the next episode is in the successor"
        scaled = action * torch.tensor([1, 1, 0.5])
        assert torch.equal(successor[:, -6:-3], scaled)
        assert torch.equal(successor[:, -2], torch.full((WORLDS,), (step - 1) % 6 + 1.0))
        if ended.any():
            assert (env.state.previous_action == 0).all()
            assert (env.state.count == 0).all()
            assert torch.equal(obs[:, -9:-6], env.state.goal.float())
            commands = env.state.command.clone()
        else:
            assert (env.state.command == commands).all() == ((step - 1) % 6 != 1)
            commands = env.state.command.clone()
        goal = env.state.goal.clone()


def test_only_worlds_that_end_get_new_own_tensors():
    task = type("Ending", (Arm,), {"terminated": lambda self, state: state.goal[:, 0] > 0.5, "max_episode_steps": 100})
    env = make(task, 8, seed=1)
    env.reset()
    draw, changed = Actions(env), 0
    for _ in range(10):
        before = own(env)
        transition, _ = env.step(draw())
        done = transition["next", "terminated"].flatten()
        assert torch.equal((env.state.goal != before["goal"]).any(-1), done)
        assert torch.equal(env.state.count == 0, done)
        changed += int(done.sum())
    assert changed


@pytest.mark.parametrize("engine", ["cpu", "warp"])
def test_state_continues_bit_for_bit(engine: str):
    def build(seed: int) -> BatchEnv:
        return make(seed=seed) if engine == "cpu" else warp(task=unwelded(Arm), seed=seed)

    env, other = build(1), build(2)
    draw = Actions(env)
    env.reset()
    actions = [draw() for _ in range(16)]
    for action in actions[:4]:
        env.step(action)
    state = env.get_state().clone()
    assert set(state["own"].keys()) == {"goal", "previous_action", "count", "switched", "command"}
    expected = [env.step(action) for action in actions[4:]]
    other.set_state(state)
    for action, (transition, obs) in zip(actions[4:], expected, strict=True):
        found, found_obs = other.step(action)
        assert equal(found, transition)
        assert torch.equal(found_obs, obs)
    assert "own" not in envs.make("Hopper-v5", 1)._persistent


def test_swapped_tensors_are_not_mixed_up():
    swap = {
        "advance": lambda self, state, action, generator: {"goal": state.previous_action, "previous_action": state.goal}
    }
    env = make(type("Swapping", (Arm,), swap))
    env.reset()
    before = own(env)
    env.step(Actions(env)())
    assert torch.equal(env.state.goal, before["previous_action"])
    assert torch.equal(env.state.previous_action, before["goal"])


# CUDA graphs and engines


def test_recorded_graph_equals_eager_steps(monkeypatch: pytest.MonkeyPatch):
    record_on_cpu(monkeypatch)
    eager, captured = warp("device", seed=4), warp("captured", seed=4)
    assert torch.equal(eager.reset(), captured.reset())
    draw, addresses = Actions(eager), [value.data_ptr() for value in captured._own.values()]
    ended = 0
    for _ in range(14):
        action = draw()
        (expected, expected_obs), (found, found_obs) = eager.step(action), captured.step(action)
        assert equal(expected, found)
        assert torch.equal(expected_obs, found_obs)
        assert all(torch.equal(value, captured._own[name]) for name, value in eager._own.items())
        ended += int(expected["next", "done"].sum())
    assert captured.captured
    assert ended == 2 * WORLDS
    assert [value.data_ptr() for value in captured._own.values()] == addresses


def test_step_on_the_device_never_synchronizes():
    env = warp("device")
    env.reset()
    actions = [Actions(env)() for _ in range(8)]
    env.step(actions[0])
    with Synchronizations() as waits:
        for action in actions[1:]:
            env.step(action)
    assert waits.found == []


def test_engines_agree_within_single_precision():
    exact = type("Exact", (Arm,), {"reset": lambda self, n, generator: fixed_start(self, n), "max_episode_steps": 100})
    cpu, gpu = make(exact), warp(task=exact)
    draw = Actions(cpu)
    torch.testing.assert_close(cpu.reset(), gpu.reset(), rtol=0, atol=1e-5)
    for _ in range(5):
        action = draw()
        (expected, _), (found, _) = cpu.step(action), gpu.step(action)
        same_draws = list(range(cpu.observation_dim))
        del same_draws[-3]  # the command: drawn in float32 from generators of equal seeds, after other resets
        for key in (("next", "observation"), ("next", "reward")):
            columns = same_draws if key[-1] == "observation" else [0]
            torch.testing.assert_close(found[key][:, columns], expected[key][:, columns], rtol=0, atol=1e-2)


def fixed_start(task: Task, num_envs: int) -> dict[str, Tensor]:
    return Arm.reset(task, num_envs, torch.Generator(task.qpos0.device).manual_seed(5))  # type: ignore[arg-type]


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

    env = make(Bad) if engine == "cpu" else warp("device", unwelded(Bad))
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
    (task_with(control=Task.control), ["Mine has 3 actions", "its model 2 actuators", "control(self, state, action)"]),
    (task_with(action_low=None, action_high=None), ["servo (its ctrlrange", "Or set action_low and action_high"]),
    (type("Mine", (Free,), {"action_low": -1, "action_high": 1}), ["has no actuators: give a number for each action"]),
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

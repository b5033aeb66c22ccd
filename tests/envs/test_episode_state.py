"""State of episodes: own tensors, act, mocap, keyframes."""

from __future__ import annotations

from typing import Any, ClassVar

import mujoco
import numpy as np
import pytest
import torch
from arm_task import WORLDS, Arm, make, own, warp
from env_helpers import Actions, equal, same_bits
from graph_recorder import record_on_cpu
from torch import Tensor

import envs
from envs import BatchEnv, State, Task
from envs.physics.warp_start import home_fields
from saltus import SaltusError
from saltus.device.synchronizations import Synchronizations

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


class Delayed(Task):
    """A servo that holds 1, with a delay, and sensors that are delayed or sampled."""

    mjcf = """<mujoco><option timestep=".01" gravity="0 0 0"/>
      <worldbody><body><joint name="j" type="slide" damping="6"/><geom size=".1" mass="1"/></body></worldbody>
      <actuator><position joint="j" kp="10" ctrlrange="-2 2" delay=".195" nsample="25"/></actuator>
      <sensor><jointpos joint="j" delay=".095" nsample="11"/><jointvel joint="j" interval=".0271" nsample="2"/></sensor>
      <keyframe><key time="2" qpos="1" ctrl="1"/></keyframe></mujoco>"""
    fields: ClassVar[tuple[str, ...]] = ("qpos", "sensordata")
    recompute_derived = False
    home = 0
    settle_steps = 400

    def observation(self, state: State) -> Tensor:
        return state.qpos

    def reward(self, state: State, action: Tensor, next_state: State) -> Tensor:
        return next_state.qpos[:, 0]


def test_settled_start_keeps_the_history_of_delays():
    env = make(Delayed)
    data = mujoco.MjData(env.task.model)
    mujoco.mj_resetDataKeyframe(env.task.model, data, 0)
    mujoco.mj_step(env.task.model, data, 400)
    env.reset()
    for step in range(80):
        data.ctrl[:] = 1 if step < 40 else -1
        mujoco.mj_step(env.task.model, data)
        env.step(torch.full((WORLDS, 1), data.ctrl[0] / 2, dtype=torch.float32))
        for name in ("qpos", "sensordata"):
            expected = torch.tensor(getattr(data, name)).expand(WORLDS, -1)
            torch.testing.assert_close(getattr(env.state, name), expected, rtol=0, atol=1e-9)
        assert step >= 60 or abs(data.qpos[0] - 1) < 1e-4, "the servo is at rest until its delay is over"


class DelayedAtATime(Delayed):
    def reset(self, num_envs: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"qpos": self.qpos0.expand(num_envs, -1), "time": torch.zeros(num_envs)}


def test_time_of_an_episode_is_refused_where_delays_have_samples():
    with pytest.raises(SaltusError, match="returned a time; delays of the model have samples with times: leave it out"):
        make(DelayedAtATime)


def test_worlds_of_warp_start_with_the_history_of_delays():
    data0 = make(Delayed).task.data0
    defaults = mujoco.MjData(data0.model)
    found = home_fields({"history": torch.zeros(WORLDS, data0.history.size)}, data0, defaults)
    assert torch.equal(found["history"], torch.tensor(data0.history).float().expand(WORLDS, -1))


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
        return make(seed=seed) if engine == "cpu" else warp(seed=seed)

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
    without = envs.make("Hopper-v5", 1)
    without.reset()
    assert "own" not in without.get_state()


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
    draw, addresses = Actions(eager), [value.data_ptr() for value in captured._episodes._own.values()]
    ended = 0
    for _ in range(14):
        action = draw()
        (expected, expected_obs), (found, found_obs) = eager.step(action), captured.step(action)
        assert equal(expected, found)
        assert torch.equal(expected_obs, found_obs)
        assert all(torch.equal(value, captured._episodes._own[name]) for name, value in eager._episodes._own.items())
        ended += int(expected["next", "done"].sum())
    assert captured.captured
    assert ended == 2 * WORLDS
    assert [value.data_ptr() for value in captured._episodes._own.values()] == addresses


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

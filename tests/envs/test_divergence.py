"""Worlds whose physics fails: truncated, counted and reset, without a non-finite number in a transition."""

from __future__ import annotations

import math
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from divergence_helpers import BAD, OTHERS, assert_failed
from env_helpers import Actions, CartBall, equal, is_finite, overwrite, qpos_qvel, same_bits
from torch import Tensor

import envs
from envs import BatchEnv, State, Task
from envs.physics.cpu import CpuPhysics


def assert_continues_like_mujoco(env: BatchEnv, world: int, steps: int = 15) -> None:
    """Assert that the world moves like a new simulation from its state: the failure left nothing behind."""
    model = env.physics.model
    data = mujoco.MjData(model)
    qpos, qvel = qpos_qvel(env)
    data.qpos[:], data.qvel[:] = qpos[world], qvel[world]
    mujoco.mj_forward(model, data)
    draw = Actions(env, seed=5)
    for _ in range(steps):
        action = draw()
        transition, _ = env.step(action)
        data.ctrl[:] = action[world]
        mujoco.mj_step(model, data, env.task.frame_skip)
        assert not transition["next", "done"][world]
        qpos, qvel = qpos_qvel(env)
        assert same_bits(qpos[world], data.qpos)
        assert same_bits(qvel[world], data.qvel)


INJECTIONS = [("qvel", math.nan), ("qvel", 1e12), ("qpos", math.nan), ("qpos", -math.inf), ("qpos", 1e12)]
TASKS: list[Any] = ["HalfCheetah-v5", "Humanoid-v5", CartBall]


def make(task: Any, **options: Any) -> BatchEnv:
    """Three worlds whose episodes do not end within a test."""
    far = {"CartBall": {"reach": 1e6}, "Humanoid-v5": {"terminate_when_unhealthy": False}}
    name = task if isinstance(task, str) else task.__name__
    return envs.make(task, 3, seed=1, normalized_actions=False, **far.get(name, {}) | options)


@pytest.mark.parametrize(("field", "value"), INJECTIONS)
@pytest.mark.parametrize("task", TASKS)
def test_diverged_world_is_truncated_counted_and_reset(task: Any, field: str, value: float):
    env = make(task)
    draw = Actions(env)
    env.reset()
    for _ in range(10):
        env.step(draw())
    overwrite(env.physics, field, value, BAD)
    transition, obs = env.step(draw())
    assert_failed(transition)
    assert is_finite(transition)
    assert torch.isfinite(obs).all()
    assert not torch.equal(obs[BAD], transition["next", "observation"][BAD])
    assert not transition["next", "done"][OTHERS].any()
    assert env.failed.tolist() == [False, True, False]
    with pytest.warns(UserWarning, match="diverged"):
        totals = env.statistics()
    assert (totals["unstable"], totals["nonfinite"], totals["episodes"]) == (1, 0, 1)
    assert totals["episode_length"] == 11
    qpos, qvel = qpos_qvel(env)
    scale = 0.1 if isinstance(env.task, CartBall) else env.task.reset_noise_scale
    assert (qpos[BAD] - env.task.qpos0).abs().max() <= scale
    assert qvel[BAD].any()  # the task's own initial state, not the default state to which MuJoCo resets
    assert_continues_like_mujoco(env, BAD)
    assert not env.failed.any()
    assert env.statistics()["unstable"] == 1


@pytest.mark.parametrize("task", TASKS)
def test_other_worlds_are_unaffected(task: Any):
    env, healthy = make(task), make(task)
    draw = Actions(env)
    env.reset()
    healthy.reset()
    for step in range(40):
        if step == 12:
            overwrite(env.physics, "qvel", math.nan, BAD)
        action = draw()
        (ours, obs), (theirs, their_obs) = env.step(action), healthy.step(action)
        assert equal(ours[OTHERS], theirs[OTHERS])
        assert torch.equal(obs[OTHERS], their_obs[OTHERS])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("gap", [1, 2, 5])
def test_every_divergence_is_detected(task: Any, gap: int):
    env = make(task)
    draw = Actions(env)
    env.reset()
    for step in range(4 * gap):
        failing = step % gap == 0
        if failing:
            overwrite(env.physics, "qvel", 1e12 if step % 2 else math.nan, BAD)
        transition, _ = env.step(draw())
        assert env.failed.tolist() == [False, failing, False], step
        if failing:
            assert_failed(transition)
    with pytest.warns(UserWarning, match="diverged"):
        assert env.statistics()["unstable"] == 4


def test_divergence_is_detected_after_set_state():
    env = make("HalfCheetah-v5")
    draw = Actions(env)
    env.reset()
    state = env.get_state()
    for _ in range(3):
        overwrite(env.physics, "qvel", math.nan, BAD)
        assert env.step(draw())[0]["next", "truncated"][BAD]
        env.set_state(state)
        assert not env.step(draw())[0]["next", "done"].any()


def test_all_worlds_diverge_at_once():
    env = make("HalfCheetah-v5")
    env.reset()
    overwrite(env.physics, "qpos", math.nan, [0, 1, 2])
    transition, obs = env.step(Actions(env)())
    for world in range(3):
        assert_failed(transition, world)
    assert torch.isfinite(obs).all()
    assert len(obs.unique(dim=0)) == 3


def test_episode_after_a_failure_has_full_length():
    env = make("HalfCheetah-v5", max_episode_steps=10)
    draw = Actions(env)
    env.reset()
    for step in range(1, 21):
        if step == 4:
            overwrite(env.physics, "qvel", math.nan, BAD)
        done = env.step(draw())[0]["next", "done"].squeeze(-1)
        assert done[BAD] == (step in (4, 14))
        assert done[OTHERS].all() == (step in (10, 20))


# Models that diverge

STIFF = """
<mujoco>
  <option timestep="0.02"/>
  <worldbody>
    <body><joint name="slide" type="slide" axis="1 0 0" stiffness="100000"/><geom size=".1" mass="1"/></body>
  </worldbody>
  <actuator><motor joint="slide" ctrlrange="-1 1"/></actuator>
</mujoco>
"""


class Stiff(Task):
    """A spring so stiff that the integrator's error grows fortyfold per step."""

    mjcf = STIFF
    frame_skip = 2

    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        qpos, qvel = super().reset(num_envs, generator)
        return qpos + torch.empty_like(qpos).uniform_(0.01, 0.1, generator=generator), qvel

    def observation(self, state: State) -> Tensor:
        return torch.cat([state.qpos, state.qvel], dim=-1)

    def reward(self, state: State, action: Tensor, next_state: State) -> Tensor:
        return -next_state.qpos[:, 0].abs()


@pytest.mark.parametrize("recompute", [True, False])
def test_model_that_diverges_is_restarted_every_time(recompute: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Stiff, "recompute_derived", recompute)
    env = envs.make(Stiff, 4, seed=0)
    obs = env.reset()
    length, failures = torch.zeros(4), torch.zeros(4)
    for _ in range(60):
        transition, next_obs = env.step(torch.zeros(4, 1))
        assert is_finite(transition)
        assert torch.equal(transition["observation"], obs)
        # MuJoCo's limit for positions and velocities.
        assert (transition["next", "observation"].abs() <= mujoco.mjMAXVAL).all()
        length += 1
        for world in env.failed.nonzero().flatten().tolist():
            assert_failed(transition, world)
            assert 0.01 <= next_obs[world, 0] <= 0.1
        failures += env.failed
        length[env.failed] = 0
        assert (length < 10).all(), "a diverged world was left at the default state, where it is at rest"
        obs = next_obs
    assert (failures >= 6).all()
    with pytest.warns(UserWarning, match="Stiff"):
        totals = env.statistics()
    assert totals["unstable"] == totals["episodes"] == int(failures.sum())


BOXES = "".join(f'<body pos="0 0 {1 + i}"><freejoint/><geom type="box" size=".1 .1 .1"/></body>' for i in range(8))
LITTLE_MEMORY = f"""
<mujoco>
  <option timestep="0.005"/>
  <size memory="20000"/>
  <worldbody>
    <geom type="plane" size="5 5 .1"/>
    <body pos="0 0 20"><joint name="slide" type="slide" axis="1 0 0"/><geom size=".1"/></body>
    {BOXES}
  </worldbody>
  <actuator><motor joint="slide" ctrlrange="-1 1"/></actuator>
</mujoco>
"""


class LittleMemory(Stiff):
    """A model with enough memory for boxes in the air; MuJoCo raises when they lie on the floor."""

    mjcf = LITTLE_MEMORY


@pytest.mark.parametrize("fields", [("qpos", "qvel"), ("qpos", "qvel", "cfrc_ext"), ("qpos", "qvel", "cacc")])
@pytest.mark.parametrize("recompute", [True, False])
def test_world_in_which_mujoco_raises_is_truncated_and_reset(
    recompute: bool, fields: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(LittleMemory, "recompute_derived", recompute)
    monkeypatch.setattr(LittleMemory, "fields", fields)
    env, healthy = (envs.make(LittleMemory, 3, seed=0) for _ in range(2))
    env.reset()
    healthy.reset()
    draw = Actions(env)
    for step in range(8):
        if step in (2, 3, 6):
            boxes = np.arange(8) * 7 + 1
            overwrite(env.physics, "qpos", 0.05, BAD, boxes + 2)
            overwrite(env.physics, "qpos", boxes, BAD, boxes)
        action = draw()
        (ours, _), (theirs, _) = env.step(action), healthy.step(action)
        assert is_finite(ours)
        assert env.failed.tolist() == [False, step in (2, 3, 6), False]
        if step in (2, 3, 6):
            assert_failed(ours)
        assert equal(ours[OTHERS], theirs[OTHERS])
    advice = r"LittleMemory: 3 world-steps whose physics failed: MuJoCo raised '.*stack overflow.*': raise <size memory"
    with pytest.warns(UserWarning, match=advice) as warned:
        assert env.statistics()["unstable"] == 3
    assert "timestep" not in str(warned[0].message)


class BoxesDown(LittleMemory):
    """Once armed (after the check at construction), one initial state in four has the boxes on the floor."""

    max_episode_steps = 2
    armed = False

    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        qpos, qvel = super().reset(num_envs, generator)
        if self.armed:
            down = torch.rand(num_envs, 1, generator=generator) < 1 / 4
            boxes = torch.arange(8) * 7 + 1
            qpos[:, boxes + 2] = torch.where(down, 0.05, qpos[:, boxes + 2])
            qpos[:, boxes] = torch.where(down, boxes.to(qpos), qpos[:, boxes])
        return qpos, qvel


def test_initial_state_in_which_mujoco_raises_is_replaced():
    env = envs.make(BoxesDown, 8, seed=0)
    env.task.armed = True
    obs, draw = env.reset(), Actions(env)
    for _ in range(12):
        assert torch.isfinite(obs).all()
        transition, obs = env.step(draw())
        assert is_finite(transition)
        assert not env.failed.any()  # initial states were replaced
    with pytest.warns(UserWarning, match="BoxesDown"):
        assert env.statistics()["unstable"] > 0


@pytest.mark.parametrize(
    ("option", "joint", "actuator", "advised"),
    [
        ("", 'damping="1"', "<motor joint='j'/>", False),  # Euler's method integrates it implicitly
        ('integrator="RK4"', 'damping="1"', "<motor joint='j'/>", True),
        ("", "", "<velocity joint='j' kv='1'/>", True),
        ('integrator="RK4"', "", "<position joint='j' kp='1' kv='1'/>", True),
        ('integrator="implicitfast"', 'damping="1"', "<motor joint='j'/>", False),
        ('integrator="implicit"', 'damping="1"', "<motor joint='j'/>", False),
        ("", "", "<motor joint='j'/>", False),
    ],
)
def test_integrator_is_advised_where_it_damps_better(option: str, joint: str, actuator: str, advised: bool):
    model = mujoco.MjModel.from_xml_string(
        f"<mujoco><option {option}/><worldbody><body><joint name='j' {joint}/><geom size='1'/></body></worldbody>"
        f"<actuator>{actuator}</actuator></mujoco>"
    )
    advice = CpuPhysics(model, 1, ("qpos",), True, {}, 1, None).failure_advice
    assert ('<option integrator="implicitfast"/>' in advice) == advised
    assert "a smaller timestep, or less extreme actions, may help" in advice.replace("A smaller", "a smaller")

"""Helpers for tests of `envs`: random actions, exact comparisons, call records, a small model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from envs import BatchEnv, State, Task
from envs.physics import Physics
from envs.physics.cpu import CpuPhysics
from envs.tasks import BUILT_IN

NAMES = list(BUILT_IN)

# A cart with a pole, and a ball that falls on the floor: named objects of every kind, contacts, a quaternion.
MODEL = """
<mujoco>
  <option timestep="0.005"/>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 .1"/>
    <body name="cart" pos="0 0 1">
      <joint name="slide" type="slide" axis="1 0 0" damping=".1"/>
      <geom name="box" type="box" size=".1 .1 .05" mass="1"/>
      <body name="pole">
        <joint name="hinge" type="hinge" axis="0 1 0"/>
        <geom name="rod" type="capsule" fromto="0 0 .1 0 0 .6" size=".04" mass=".3"/>
        <site name="tip" pos="0 0 .6"/>
        <camera name="eye" pos="0 0 .3"/>
      </body>
    </body>
    <body name="ball" pos="0 .5 .2">
      <freejoint name="free"/>
      <geom name="sphere" type="sphere" size=".1" mass=".2"/>
    </body>
  </worldbody>
  <tendon>
    <fixed name="cable"><joint joint="slide" coef=".5"/><joint joint="hinge" coef="2"/></fixed>
  </tendon>
  <actuator>
    <motor name="push" joint="slide" gear="20" ctrlrange="-1 1"/>
    <position name="servo" joint="hinge" kp="3" ctrlrange="-2 2"/>
  </actuator>
  <sensor>
    <framepos name="tip_position" objtype="site" objname="tip"/>
    <jointvel name="hinge_velocity" joint="hinge"/>
    <accelerometer name="imu" site="tip"/>
  </sensor>
</mujoco>
"""


@dataclass
class CartBall(Task):
    """A user's task on MODEL: drive the cart; an episode ends when the cart is out of reach."""

    mjcf: ClassVar[str] = MODEL
    frame_skip: int = 3
    max_episode_steps: int = 1000
    noise: float = 0.1
    reach: float = 1.0

    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel", "xpos", "sensordata")

    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        qpos, qvel = super().reset(num_envs, generator)
        qpos[:, :2] += torch.empty_like(qpos[:, :2]).uniform_(-self.noise, self.noise, generator=generator)
        qvel += torch.empty_like(qvel).uniform_(-self.noise, self.noise, generator=generator)
        return qpos, qvel

    def observation(self, state: State) -> Tensor:
        return torch.cat([state.qpos, state.qvel, state.body("pole").xpos, state.sensor("imu")], dim=-1)

    def reward(self, state: State, action: Tensor, next_state: State) -> tuple[Tensor, dict[str, Tensor]]:
        before, height = state.body("ball").xpos[:, 2], next_state.body("ball").xpos[:, 2]
        effort = 0.1 * action.square().sum(-1)
        return height + (height - before) - effort, {"height": height, "rise": height - before, "effort": -effort}

    def terminated(self, state: State) -> Tensor:
        return state.qpos[:, 0].abs() > self.reach


class Noisy(CartBall):
    """CartBall whose policy observes positions with noise, and whose critics observe them without."""

    def reset(self, num_envs: int, generator: torch.Generator) -> Any:
        qpos, qvel = super().reset(num_envs, generator)
        return {"qpos": qpos, "qvel": qvel, "error": torch.empty_like(qpos).normal_(generator=generator)}

    def advance(self, state: State, action: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"error": torch.empty_like(state.error).normal_(generator=generator)}

    def observation(self, state: State) -> Any:
        return {"policy": state.qpos + 0.1 * state.error, "critic": state.qpos}


# Sizes of Warp's memory. Giving them skips the slow rollout that estimates them.
WARP_MEMORY: dict[Any, dict[str, int]] = {
    "Ant-v5": {"max_contacts": 32, "max_constraints": 96},
    "HalfCheetah-v5": {"max_contacts": 16, "max_constraints": 48},
    "Hopper-v5": {"max_contacts": 24, "max_constraints": 48},
    "Humanoid-v5": {"max_contacts": 32, "max_constraints": 96},
    "HumanoidStandup-v5": {"max_contacts": 48, "max_constraints": 160},
    "InvertedDoublePendulum-v5": {"max_contacts": 8, "max_constraints": 16},
    "InvertedPendulum-v5": {"max_contacts": 8, "max_constraints": 16},
    "Pendulum-v1": {"max_contacts": 8, "max_constraints": 16},
    "Pusher-v5": {"max_contacts": 32, "max_constraints": 48},
    "Reacher-v5": {"max_contacts": 8, "max_constraints": 16},
    "Swimmer-v5": {"max_contacts": 8, "max_constraints": 16},
    "Walker2d-v5": {"max_contacts": 32, "max_constraints": 80},
    CartBall: {"max_contacts": 16, "max_constraints": 48},
}


class Actions:
    """A reproducible stream of random actions, uniform within `scale` times the bounds."""

    def __init__(self, env: BatchEnv, seed: int = 0, scale: float = 1.0):
        self._env, self._scale = env, scale
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self) -> Tensor:
        env = self._env
        unit = torch.rand(env.num_envs, env.action_dim, generator=self._generator)
        center, half_range = (env.action_high + env.action_low) / 2, (env.action_high - env.action_low) / 2
        return center + (2 * unit - 1) * half_range * self._scale


def spy(task: Task, function: str) -> list[tuple[tuple[Any, ...], Any]]:
    """Record every call of one of the task's functions as (arguments, result)."""
    calls: list[tuple[tuple[Any, ...], Any]] = []
    original = getattr(task, function)

    def recorded(*arguments: Any) -> Any:
        result = original(*arguments)
        calls.append((arguments, result))
        return result

    setattr(task, function, recorded)
    return calls


def same_bits(ours: Any, theirs: Any) -> bool:
    """Whether two arrays have the same shape, dtype and bits."""
    ours, theirs = np.ascontiguousarray(ours), np.ascontiguousarray(theirs)
    return ours.shape == theirs.shape and ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()


def equal(ours: TensorDictBase, theirs: TensorDictBase) -> bool:
    """Whether two TensorDicts have the same keys and equal values."""
    keys = set(ours.keys(True, True))
    return keys == set(theirs.keys(True, True)) and all(torch.equal(ours[key], theirs[key]) for key in keys)


def is_finite(transition: TensorDictBase) -> bool:
    """Whether every number in a transition is finite."""
    return all(bool(torch.isfinite(value).all()) for value in transition.values(True, True))


def qpos_qvel(env: BatchEnv) -> tuple[Tensor, Tensor]:
    """Copies of the worlds' current positions and velocities."""
    return env.state.qpos.clone(), env.state.qvel.clone()


def overwrite(physics: Physics, field: str, value: Any, world: int | list[int], columns: Any = slice(None)) -> None:
    """Overwrite ``qpos`` or ``qvel`` through get_state and set_state; `columns` selects some of their entries."""
    state = physics.get_state()
    if isinstance(physics, CpuPhysics):
        # The state vector begins with time, qpos and qvel, as in mj_getState.
        nq, nv = physics.model.nq, physics.model.nv
        part = state["integration"][:, 1 : 1 + nq] if field == "qpos" else state["integration"][:, 1 + nq :][:, :nv]
    else:
        part = state[field]
    worlds = torch.as_tensor(world).reshape(-1, 1)
    part[worlds, torch.arange(part.shape[1])[columns]] = torch.as_tensor(value, dtype=part.dtype)
    physics.set_state(state)

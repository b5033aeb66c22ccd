"""Pendulum-v1: a motor too weak to lift a pendulum swings it up (Gymnasium's task, with a model of its own)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.task import State, Task
from envs.tasks.numpy_math import cos, sin, square, square_float32

_INERTIA = 2.0**20  # a power of two, so that dividing a torque by it is exact
_MAX_SPEED = 8.0
_MAX_TORQUE = 2.0
_GRAVITY_FACTOR, _TORQUE_FACTOR = 3 / 2, 3.0  # of a rod of length 1 and mass 1

# MuJoCo's Euler step is Gymnasium's: qvel += qacc dt, then qpos += qvel dt. The armature makes the hinge's inertia
# exactly `_INERTIA`, because the body's own is lost in rounding. `Pendulum.control` sets the acceleration.
_MODEL = f"""<mujoco model="pendulum">
  <option timestep="0.05" integrator="Euler" gravity="0 0 0"><flag contact="disable"/></option>
  <size memory="100K"/>
  <statistic center="0 0 0" extent="2"/>
  <visual><headlight ambient="0.4 0.4 0.4" diffuse="0.5 0.5 0.5"/></visual>
  <worldbody>
    <camera name="track" pos="0 -4 0" xyaxes="1 0 0 0 0 1"/>
    <body name="rod">
      <joint name="hinge" axis="0 -1 0" armature="{_INERTIA:.0f}"/>
      <inertial pos="0 0 0" mass="1" diaginertia="1e-12 1e-12 1e-12"/>
      <geom type="capsule" fromto="0 0 0 0 0 1" size="0.1" rgba="0.8 0.3 0.3 1"/>
      <geom type="sphere" size="0.05" pos="0 -0.1 0" rgba="0 0 0 1"/>
    </body>
  </worldbody>
</mujoco>"""


@dataclass
class Pendulum(Task):
    """Observation: cosine and sine of the angle, which is 0 at the top, and the angular velocity.

    The action is the torque. `g` is the acceleration of gravity in m/s^2, Gymnasium's option. Speeds are limited to 8
    rad/s. Where the limit acts and `g` is above 49, a step may differ from Gymnasium's in the last bit; below, the
    change of speed that reaches the limit is an exact difference (Sterbenz's lemma).
    """

    mjcf = _MODEL
    action_low = (-_MAX_TORQUE,)
    action_high = (_MAX_TORQUE,)
    max_episode_steps: int = 200
    """Control steps after which an episode is truncated."""
    g: float = 10.0
    """Acceleration of gravity, in m/s^2."""

    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        qpos, qvel = super().reset(num_envs, generator)
        angle = torch.empty_like(qpos).uniform_(-math.pi, math.pi, generator=generator)
        return angle, torch.empty_like(qvel).uniform_(-1, 1, generator=generator)

    def control(self, state: State, action: Tensor) -> dict[str, Tensor]:
        torque = action.clamp(-_MAX_TORQUE, _MAX_TORQUE)
        acceleration = _GRAVITY_FACTOR * self.g * sin(state.qpos) + _TORQUE_FACTOR * torque
        after = state.qvel + acceleration * self.dt
        limited = after.clamp(-_MAX_SPEED, _MAX_SPEED)
        acceleration = torch.where(after == limited, acceleration, (limited - state.qvel) / self.dt)
        return {"qfrc_applied": _INERTIA * acceleration}

    def observation(self, state: State) -> Tensor:
        return torch.cat([cos(state.qpos), sin(state.qpos), state.qvel], dim=-1)

    def reward(self, state: State, action: Tensor, next_state: State) -> Tensor:
        torque = action.clamp(-_MAX_TORQUE, _MAX_TORQUE)
        angle = (state.qpos + math.pi) % (2 * math.pi) - math.pi
        cost = square(angle) + 0.1 * square(state.qvel) + 0.001 * square_float32(torque, state.qvel)
        return -cost.squeeze(-1)

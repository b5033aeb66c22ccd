"""An arm with every kind of state and control."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import envs
from envs import BatchEnv, Simulation, State, Task
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


def own(env: BatchEnv) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in env._episodes._own.items()}


def refused(call: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(SaltusError) as caught:
        call()
    assert all(part in str(caught.value) for part in parts), str(caught.value)

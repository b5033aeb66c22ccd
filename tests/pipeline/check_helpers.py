"""A model, its task and fixtures for the tests of `saltus check`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch

from envs import Task
from envs.physics import warp_memory

CART = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 1"/>
    <body name="cart" pos="0 0 0.2">
      <joint name="slide" type="slide" axis="1 0 0" damping="1"/>
      <geom name="box" type="box" size="0.1 0.1 0.1" rgba="1 0 0 1"/>
    </body>
  </worldbody>
  <actuator><motor name="push" joint="slide" gear="100" ctrlrange="-1 1"/>{actuators}</actuator>
</mujoco>
"""


@dataclass
class Cart(Task):
    mjcf = CART.format(actuators="")
    frame_skip = 2
    max_episode_steps: int = 50
    goal: float = 1.0

    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        qpos, qvel = super().reset(num_envs, generator)
        return qpos + torch.empty_like(qpos).uniform_(generator=generator), qvel

    def observation(self, state: Any) -> torch.Tensor:
        return torch.cat([state.qpos, state.qvel], dim=-1)

    def reward(self, state: Any, action: torch.Tensor, next_state: Any) -> Any:
        return -(next_state.qpos[:, 0] - self.goal).abs()


@pytest.fixture
def short_capacity_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimate Warp's contacts in short rollouts: those of `saltus check` take longer than the rest of it."""
    short = partial(warp_memory.estimate_capacity, num_worlds=2, num_steps=20)
    monkeypatch.setattr(warp_memory, "estimate_capacity", short)

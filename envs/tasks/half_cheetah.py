"""HalfCheetah-v5: a planar two-legged robot runs forward (Gymnasium's task and model)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from envs.task import State
from envs.tasks.gymnasium_task import GymnasiumTask
from envs.tasks.resets import add_noise
from envs.tasks.rewards import ordered_sum


@dataclass
class HalfCheetah(GymnasiumTask):
    """Observation: positions without x, and velocities. Options and defaults are Gymnasium's."""

    xml_file: str = "half_cheetah.xml"
    frame_skip: int = 5
    max_episode_steps: int = 1000
    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 0.1
    reset_noise_scale: float = 0.1
    exclude_current_positions_from_observation: bool = True

    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel")

    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        start = super().reset(num_envs, generator)
        return add_noise(start, self.reset_noise_scale, generator, normal_velocities=True)

    def observation(self, state: State) -> Tensor:
        position = state.qpos[:, 1:] if self.exclude_current_positions_from_observation else state.qpos
        return torch.cat([position, state.qvel], dim=-1)

    def reward(self, state: State, action: Tensor, next_state: State) -> tuple[Tensor, dict[str, Tensor]]:
        x_velocity = (next_state.qpos[:, 0] - state.qpos[:, 0]) / self.dt
        forward = self.forward_reward_weight * x_velocity
        ctrl_cost = self.ctrl_cost_weight * ordered_sum(action.square())
        return forward - ctrl_cost, {"reward_forward": forward, "reward_ctrl": -ctrl_cost}

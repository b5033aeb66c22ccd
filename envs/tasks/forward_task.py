"""ForwardTask: the parts that HalfCheetah-v5 and Swimmer-v5 share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from envs.task import State
from envs.tasks.gymnasium_task import GymnasiumTask
from envs.tasks.rewards import ordered_sum


@dataclass
class ForwardTask(GymnasiumTask):
    """A planar robot that moves forward and cannot fall.

    Observation: positions without the first `hidden_positions`, and velocities.
    """

    xml_file: str
    ctrl_cost_weight: float
    frame_skip: int = 4
    max_episode_steps: int = 1000
    forward_reward_weight: float = 1.0
    reset_noise_scale: float = 0.1
    exclude_current_positions_from_observation: bool = True

    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel")
    hidden_positions: ClassVar[int]

    def observation(self, state: State) -> Tensor:
        hidden = self.hidden_positions if self.exclude_current_positions_from_observation else 0
        return torch.cat([state.qpos[:, hidden:], state.qvel], dim=-1)

    def reward(self, state: State, action: Tensor, next_state: State) -> tuple[Tensor, dict[str, Tensor]]:
        x_velocity = (next_state.qpos[:, 0] - state.qpos[:, 0]) / self.dt
        forward = self.forward_reward_weight * x_velocity
        ctrl_cost = self.ctrl_cost_weight * ordered_sum(action.square())
        return forward - ctrl_cost, {"reward_forward": forward, "reward_ctrl": -ctrl_cost}

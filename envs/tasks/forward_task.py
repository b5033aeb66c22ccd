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
    """The model: the plain name of one of Gymnasium's files, or the path of a file."""
    ctrl_cost_weight: float
    """Cost of a control step per squared control, summed over the actuators."""
    frame_skip: int = 4
    """Physics steps per control step."""
    max_episode_steps: int = 1000
    """Control steps after which an episode is truncated."""
    forward_reward_weight: float = 1.0
    """Reward per m/s of forward velocity."""
    reset_noise_scale: float = 0.1
    """Scale of the noise of initial positions and velocities, in m, rad and their rates."""
    exclude_current_positions_from_observation: bool = True
    """Whether the observation leaves out where the robot is in the plane, or along its line."""

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

"""PlanarWalker: the parts that Hopper-v5 and Walker2d-v5 share."""

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
class PlanarWalker(GymnasiumTask):
    """A robot that moves forward in a plane while it is healthy.

    Observation: positions without x, and velocities clipped to 10.
    """

    xml_file: str
    """The model: the plain name of one of Gymnasium's files, or the path of a file."""
    healthy_z_range: tuple[float, float]
    """Heights of the torso that are healthy, in m."""
    healthy_angle_range: tuple[float, float]
    """Angles of the torso that are healthy, in rad."""
    frame_skip: int = 4
    """Physics steps per control step."""
    max_episode_steps: int = 1000
    """Control steps after which an episode is truncated."""
    forward_reward_weight: float = 1.0
    """Reward per m/s of forward velocity."""
    ctrl_cost_weight: float = 1e-3
    """Cost of a control step per squared control, summed over the actuators."""
    healthy_reward: float = 1.0
    """Reward of every control step that ends healthy."""
    terminate_when_unhealthy: bool = True
    """Whether an unhealthy state ends the episode."""
    reset_noise_scale: float = 5e-3
    """Scale of the noise of initial positions and velocities, in m, rad and their rates."""
    exclude_current_positions_from_observation: bool = True
    """Whether the observation leaves out where the robot is in the plane, or along its line."""

    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel")

    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return add_noise(super().reset(num_envs, generator), self.reset_noise_scale, generator)

    def observation(self, state: State) -> Tensor:
        position = state.qpos[:, 1:] if self.exclude_current_positions_from_observation else state.qpos
        return torch.cat([position, state.qvel.clamp(-10, 10)], dim=-1)

    def reward(self, state: State, action: Tensor, next_state: State) -> tuple[Tensor, dict[str, Tensor]]:
        x_velocity = (next_state.qpos[:, 0] - state.qpos[:, 0]) / self.dt
        forward = self.forward_reward_weight * x_velocity
        survive = self.healthy(next_state).to(forward) * self.healthy_reward
        ctrl_cost = self.ctrl_cost_weight * ordered_sum(action.square())
        terms = {"reward_forward": forward, "reward_ctrl": -ctrl_cost, "reward_survive": survive}
        return forward + survive - ctrl_cost, terms

    def terminated(self, state: State) -> Tensor:
        return ~self.healthy(state) & self.terminate_when_unhealthy

    def healthy(self, state: State) -> Tensor:
        """Whether height and angle of the torso lie within the healthy ranges, (N,) bool."""
        height, angle = state.qpos[:, 1], state.qpos[:, 2]
        return is_within(height, self.healthy_z_range) & is_within(angle, self.healthy_angle_range)


def is_within(values: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Whether values lie between bounds, which do not belong to the range."""
    return (bounds[0] < values) & (values < bounds[1])

"""Hopper-v5: a one-legged robot hops forward (Gymnasium's task and model)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from envs.task import State
from envs.tasks.gymnasium_task import GymnasiumTask
from envs.tasks.resets import add_uniform
from envs.tasks.rewards import ordered_sum


@dataclass
class Hopper(GymnasiumTask):
    """Observation: positions without x, and velocities clipped to 10. Options and defaults are Gymnasium's."""

    xml_file: str = "hopper.xml"
    frame_skip: int = 4
    max_episode_steps: int = 1000
    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 1e-3
    healthy_reward: float = 1.0
    terminate_when_unhealthy: bool = True
    healthy_state_range: tuple[float, float] = (-100.0, 100.0)
    healthy_z_range: tuple[float, float] = (0.7, float("inf"))
    healthy_angle_range: tuple[float, float] = (-0.2, 0.2)
    reset_noise_scale: float = 5e-3
    exclude_current_positions_from_observation: bool = True

    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel")

    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        qpos, qvel = super().reset(num_envs, generator)
        scale = self.reset_noise_scale
        return add_uniform(qpos, scale, generator), add_uniform(qvel, scale, generator)

    def observation(self, state: State) -> Tensor:
        position = state.qpos[:, 1:] if self.exclude_current_positions_from_observation else state.qpos
        return torch.cat([position, state.qvel.clamp(-10, 10)], dim=-1)

    def reward(self, state: State, action: Tensor, next_state: State) -> tuple[Tensor, dict[str, Tensor]]:
        x_velocity = (next_state.qpos[:, 0] - state.qpos[:, 0]) / self.dt
        forward = self.forward_reward_weight * x_velocity
        survive = self._healthy(next_state).to(forward) * self.healthy_reward
        ctrl_cost = self.ctrl_cost_weight * ordered_sum(action.square())
        terms = {"reward_forward": forward, "reward_ctrl": -ctrl_cost, "reward_survive": survive}
        return forward + survive - ctrl_cost, terms

    def terminated(self, state: State) -> Tensor:
        return ~self._healthy(state) & self.terminate_when_unhealthy

    def _healthy(self, state: State) -> Tensor:
        height, angle = state.qpos[:, 1], state.qpos[:, 2]
        rest = torch.cat([state.qpos[:, 2:], state.qvel], dim=-1)
        return (
            _within(rest, self.healthy_state_range).all(dim=-1)
            & _within(height, self.healthy_z_range)
            & _within(angle, self.healthy_angle_range)
        )


def _within(values: Tensor, bounds: tuple[float, float]) -> Tensor:
    return (bounds[0] < values) & (values < bounds[1])

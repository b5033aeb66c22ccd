"""InvertedDoublePendulum-v5: a cart balances two poles, one on the other (Gymnasium's task and model)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from envs.task import State
from envs.tasks.gymnasium_task import GymnasiumTask
from envs.tasks.numpy_math import cos, sin, square
from envs.tasks.resets import add_noise


@dataclass
class InvertedDoublePendulum(GymnasiumTask):
    """Observation: the cart's position, sines and cosines of the angles, velocities, the constraint force on the cart.

    Velocities and force are clipped to 10. Options and defaults are Gymnasium's.
    """

    xml_file: str = "inverted_double_pendulum.xml"
    """The model: the plain name of one of Gymnasium's files, or the path of a file."""
    frame_skip: int = 5
    """Physics steps per control step."""
    max_episode_steps: int = 1000
    """Control steps after which an episode is truncated."""
    healthy_reward: float = 10.0
    """Reward of every control step that ends healthy."""
    reset_noise_scale: float = 0.1
    """Scale of the noise of initial positions and velocities, in m, rad and their rates."""

    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel", "site_xpos", "qfrc_constraint")

    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        start = super().reset(num_envs, generator)
        return add_noise(start, self.reset_noise_scale, generator, normal_velocities=True)

    def observation(self, state: State) -> Tensor:
        position, angles = state.qpos[:, :1], state.qpos[:, 1:]
        rates = torch.cat([state.qvel, state.qfrc_constraint[:, :1]], dim=-1).clamp(-10, 10)
        return torch.cat([position, sin(angles), cos(angles), rates], dim=-1)

    def reward(self, state: State, action: Tensor, next_state: State) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = next_state.site_xpos[:, 0, 0], next_state.site_xpos[:, 0, 2]
        v1, v2 = next_state.qvel[:, 1], next_state.qvel[:, 2]
        survive = self.healthy_reward * (~self.terminated(next_state)).to(x)
        distance = 0.01 * square(x) + square(y - 2)
        velocity = 1e-3 * square(v1) + 5e-3 * square(v2)
        terms = {"reward_survive": survive, "distance_penalty": -distance, "velocity_penalty": -velocity}
        return survive - distance - velocity, terms

    def terminated(self, state: State) -> Tensor:
        return state.site_xpos[:, 0, 2] <= 1

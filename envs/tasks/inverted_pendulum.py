"""InvertedPendulum-v5: a cart balances a pole (Gymnasium's task and model)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from envs.task import State
from envs.tasks.gymnasium_task import GymnasiumTask
from envs.tasks.resets import add_noise


@dataclass
class InvertedPendulum(GymnasiumTask):
    """Observation: positions and velocities. Options and defaults are Gymnasium's."""

    xml_file: str = "inverted_pendulum.xml"
    """The model: the plain name of one of Gymnasium's files, or the path of a file."""
    frame_skip: int = 2
    """Physics steps per control step."""
    max_episode_steps: int = 1000
    """Control steps after which an episode is truncated."""
    reset_noise_scale: float = 0.01
    """Scale of the noise of initial positions and velocities, in m, rad and their rates."""

    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel")

    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return add_noise(super().reset(num_envs, generator), self.reset_noise_scale, generator)

    def observation(self, state: State) -> Tensor:
        return torch.cat([state.qpos, state.qvel], dim=-1)

    def reward(self, state: State, action: Tensor, next_state: State) -> tuple[Tensor, dict[str, Tensor]]:
        survive = (~self.terminated(next_state)).to(next_state.qpos)
        return survive, {"reward_survive": survive}

    def terminated(self, state: State) -> Tensor:
        return state.qpos[:, 1].abs() > 0.2

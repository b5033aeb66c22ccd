"""HumanoidTask: the parts that Humanoid-v5 and HumanoidStandup-v5 share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from envs.task import State
from envs.tasks.gymnasium_task import GymnasiumTask
from envs.tasks.resets import add_noise


@dataclass
class HumanoidTask(GymnasiumTask):
    """A humanoid.

    Observation: positions without x and y, velocities, inertias, body velocities, actuator and contact forces.
    """

    xml_file: str
    frame_skip: int = 5
    max_episode_steps: int = 1000
    ctrl_cost_weight: float = 0.1
    reset_noise_scale: float = 1e-2
    exclude_current_positions_from_observation: bool = True
    include_cinert_in_observation: bool = True
    include_cvel_in_observation: bool = True
    include_qfrc_actuator_in_observation: bool = True
    include_cfrc_ext_in_observation: bool = True

    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return add_noise(super().reset(num_envs, generator), self.reset_noise_scale, generator)

    def observation(self, state: State) -> Tensor:
        parts = [state.qpos[:, 2:] if self.exclude_current_positions_from_observation else state.qpos, state.qvel]
        # Row 0 of body fields is the world body, which never moves.
        if self.include_cinert_in_observation:
            parts.append(state.cinert[:, 1:].flatten(1))
        if self.include_cvel_in_observation:
            parts.append(state.cvel[:, 1:].flatten(1))
        if self.include_qfrc_actuator_in_observation:
            parts.append(state.qfrc_actuator[:, 6:])
        if self.include_cfrc_ext_in_observation:
            parts.append(state.cfrc_ext[:, 1:].flatten(1))
        return torch.cat(parts, dim=-1)

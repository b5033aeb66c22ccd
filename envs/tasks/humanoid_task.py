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
    """The model: the plain name of one of Gymnasium's files, or the path of a file."""
    frame_skip: int = 5
    """Physics steps per control step."""
    max_episode_steps: int = 1000
    """Control steps after which an episode is truncated."""
    ctrl_cost_weight: float = 0.1
    """Cost of a control step per squared control, summed over the actuators."""
    reset_noise_scale: float = 1e-2
    """Scale of the noise of initial positions and velocities, in m, rad and their rates."""
    exclude_current_positions_from_observation: bool = True
    """Whether the observation leaves out where the robot is in the plane, or along its line."""
    include_cinert_in_observation: bool = True
    """Whether the observation has the inertias and masses of the bodies."""
    include_cvel_in_observation: bool = True
    """Whether the observation has the velocities of the bodies."""
    include_qfrc_actuator_in_observation: bool = True
    """Whether the observation has the forces of the actuators at the joints."""
    include_cfrc_ext_in_observation: bool = True
    """Whether the observation has the contact forces of the bodies."""

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

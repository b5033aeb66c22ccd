"""Reacher-v5: an arm of two links reaches for a target in the plane (Gymnasium's task and model)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from envs.task import State
from envs.tasks.gymnasium_task import GymnasiumTask
from envs.tasks.numpy_math import cos, norm, sin
from envs.tasks.resets import add_uniform
from envs.tasks.rewards import ordered_sum

_TARGET_RADIUS = 0.2


@dataclass
class Reacher(GymnasiumTask):
    """Observation: cosines and sines of the angles, the target, angular velocities, fingertip minus target.

    Options and defaults are Gymnasium's.
    """

    xml_file: str = "reacher.xml"
    """The model: the plain name of one of Gymnasium's files, or the path of a file."""
    frame_skip: int = 2
    """Physics steps per control step."""
    max_episode_steps: int = 50
    """Control steps after which an episode is truncated."""
    reward_dist_weight: float = 1.0
    """Cost of a control step per m between the fingertip and the target."""
    reward_control_weight: float = 1.0
    """Cost of a control step per squared control, summed over the actuators."""

    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel", "xpos")

    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        qpos, qvel = super().reset(num_envs, generator)
        qpos, qvel = add_uniform(qpos, 0.1, generator), add_uniform(qvel, 0.005, generator)
        # Uniform in a disc. Gymnasium rejects points of a square, which a GPU cannot do without synchronisation.
        share, turn = torch.empty_like(qpos[:, :2]).uniform_(generator=generator).unbind(-1)
        radius, angle = _TARGET_RADIUS * share.sqrt(), 2 * math.pi * turn
        qpos[:, -2:] = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
        qvel[:, -2:] = 0
        return qpos, qvel

    def observation(self, state: State) -> Tensor:
        angles = state.qpos[:, :2]
        to_target = _to_target(state)[:, :2]
        return torch.cat([cos(angles), sin(angles), state.qpos[:, 2:], state.qvel[:, :2], to_target], dim=-1)

    def reward(self, state: State, action: Tensor, next_state: State) -> tuple[Tensor, dict[str, Tensor]]:
        distance = -norm(_to_target(next_state)) * self.reward_dist_weight
        control = -ordered_sum(action.square()) * self.reward_control_weight
        return distance + control, {"reward_dist": distance, "reward_ctrl": control}


def _to_target(state: State) -> Tensor:
    return state.body("fingertip").xpos - state.body("target").xpos

"""Pusher-v5: an arm of seven joints pushes a cylinder to a goal (Gymnasium's task and model)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from envs.task import State
from envs.tasks.gymnasium_task import GymnasiumTask
from envs.tasks.numpy_math import norm
from envs.tasks.resets import add_uniform
from envs.tasks.rewards import ordered_sum

_CANDIDATES = 32  # all are rejected once in 3e13 draws


@dataclass
class Pusher(GymnasiumTask):
    """Observation: the arm's positions and velocities; positions of its tip, the cylinder and the goal.

    Options and defaults are Gymnasium's.
    """

    xml_file: str = "pusher_v5.xml"
    """The model: the plain name of one of Gymnasium's files, or the path of a file."""
    frame_skip: int = 5
    """Physics steps per control step."""
    max_episode_steps: int = 100
    """Control steps after which an episode is truncated."""
    reward_near_weight: float = 0.5
    """Cost of a control step per m between the arm's tip and the cylinder."""
    reward_dist_weight: float = 1.0
    """Cost of a control step per m between the cylinder and the goal."""
    reward_control_weight: float = 0.1
    """Cost of a control step per squared control, summed over the actuators."""

    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel", "xpos")

    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        qpos, qvel = super().reset(num_envs, generator)
        qvel = add_uniform(qvel, 0.005, generator)
        qpos[:, -4:-2] = _cylinder_positions(qpos, generator)
        qpos[:, -2:] = 0
        qvel[:, -4:] = 0
        return qpos, qvel

    def observation(self, state: State) -> Tensor:
        bodies = [state.body(name).xpos for name in ("tips_arm", "object", "goal")]
        return torch.cat([state.qpos[:, :7], state.qvel[:, :7], *bodies], dim=-1)

    def reward(self, state: State, action: Tensor, next_state: State) -> tuple[Tensor, dict[str, Tensor]]:
        tip, cylinder, goal = (next_state.body(name).xpos for name in ("tips_arm", "object", "goal"))
        near = -norm(cylinder - tip) * self.reward_near_weight
        distance = -norm(cylinder - goal) * self.reward_dist_weight
        control = -ordered_sum(action.square()) * self.reward_control_weight
        return distance + control + near, {"reward_dist": distance, "reward_ctrl": control, "reward_near": near}


def _cylinder_positions(qpos: Tensor, generator: torch.Generator) -> Tensor:
    """Positions in [-0.3, 0] x [-0.2, 0.2] that are more than 0.17 away from the goal at 0, (N, 2).

    The first of several candidates that is far enough: a loop until one is would synchronise a GPU.
    """
    x = qpos.new_empty(len(qpos), _CANDIDATES).uniform_(-0.3, 0, generator=generator)
    y = torch.empty_like(x).uniform_(-0.2, 0.2, generator=generator)
    first = (x.square() + y.square() > 0.17**2).int().argmax(dim=1, keepdim=True)
    return torch.cat([x.gather(1, first), y.gather(1, first)], dim=1)

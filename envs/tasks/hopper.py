"""Hopper-v5: a one-legged robot hops forward (Gymnasium's task and model)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from envs.task import State
from envs.tasks.planar_walker import PlanarWalker, is_within


@dataclass
class Hopper(PlanarWalker):
    """Observation: positions without x, and velocities clipped to 10. Options and defaults are Gymnasium's."""

    xml_file: str = "hopper.xml"
    healthy_state_range: tuple[float, float] = (-100.0, 100.0)
    """Values of the other positions and velocities that are healthy, in m, rad and their rates."""
    healthy_z_range: tuple[float, float] = (0.7, float("inf"))
    healthy_angle_range: tuple[float, float] = (-0.2, 0.2)

    def healthy(self, state: State) -> Tensor:
        rest = torch.cat([state.qpos[:, 2:], state.qvel], dim=-1)
        return super().healthy(state) & is_within(rest, self.healthy_state_range).all(dim=-1)

"""HalfCheetah-v5: a planar two-legged robot runs forward (Gymnasium's task and model)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from envs.tasks.forward_task import ForwardTask
from envs.tasks.resets import add_noise


@dataclass
class HalfCheetah(ForwardTask):
    """Observation: positions without x, and velocities. Options and defaults are Gymnasium's."""

    xml_file: str = "half_cheetah.xml"
    frame_skip: int = 5
    ctrl_cost_weight: float = 0.1

    hidden_positions: ClassVar[int] = 1

    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        start = super().reset(num_envs, generator)
        return add_noise(start, self.reset_noise_scale, generator, normal_velocities=True)

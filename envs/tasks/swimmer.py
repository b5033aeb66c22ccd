"""Swimmer-v5: a planar chain of three links swims forward (Gymnasium's task and model)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from envs.tasks.forward_task import ForwardTask
from envs.tasks.resets import add_noise


@dataclass
class Swimmer(ForwardTask):
    """Observation: positions without x and y, and velocities. Options and defaults are Gymnasium's."""

    xml_file: str = "swimmer.xml"
    ctrl_cost_weight: float = 1e-4

    hidden_positions: ClassVar[int] = 2

    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return add_noise(super().reset(num_envs, generator), self.reset_noise_scale, generator)

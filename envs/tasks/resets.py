"""Noise on initial states."""

from __future__ import annotations

import torch
from torch import Tensor


def add_uniform(values: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Add noise that is uniform in [-scale, scale]."""
    return values + torch.empty_like(values).uniform_(-scale, scale, generator=generator)


def add_normal(values: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Add normal noise of standard deviation `scale`."""
    return values + scale * torch.empty_like(values).normal_(generator=generator)

"""Noise on initial states."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from saltus.errors import SaltusError


def add_noise(
    start: tuple[Tensor, Tensor], scale: float, generator: torch.Generator, *, normal_velocities: bool = False
) -> tuple[Tensor, Tensor]:
    """Add noise to initial positions and velocities, as most of Gymnasium's tasks do.

    Args:
        start: qpos (N, nq) and qvel (N, nv).
        scale: half the width of uniform noise; the standard deviation of normal noise.
        generator: the source of the noise.
        normal_velocities: normal noise on velocities in place of uniform noise.
    """
    qpos, qvel = start
    qpos = add_uniform(qpos, scale, generator)
    return qpos, (add_normal if normal_velocities else add_uniform)(qvel, scale, generator)


def add_uniform(values: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Add noise that is uniform in [-scale, scale]."""
    _check_scale(scale)
    return values + torch.empty_like(values).uniform_(-scale, scale, generator=generator)


def add_normal(values: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Add normal noise of standard deviation `scale`."""
    _check_scale(scale)
    return values + scale * torch.empty_like(values).normal_(generator=generator)


def _check_scale(scale: float) -> None:
    if not (math.isfinite(scale) and scale >= 0):
        raise SaltusError(f"reset_noise_scale is {scale}; it must be a finite number, 0 or more")

"""Losses with random weights, for their tests."""

from __future__ import annotations

from typing import Any

import torch
from loss_reference import loss_config
from pipeline_helpers import DIMENSIONS

from pipeline import losses
from pipeline.config import Config
from pipeline.networks import Actor
from pipeline.torchrl_adapter import Loss


def randomized_loss(preset: str, seed: int = 0, batched_critics: bool | None = None, **overrides: Any) -> Loss:
    """A loss with random weights, biases, targets and running statistics, and log_alpha = -0.7."""
    loss, _ = make_loss(loss_config(preset, **overrides), batched_critics)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in loss.state_dict().items():
            if name.endswith((".weight", ".bias")):
                value.copy_(torch.randn_like(value) * 0.5)
            elif name.endswith("running_mean"):
                value.copy_(torch.randn_like(value))
            elif name.endswith("running_var"):
                value.copy_(torch.rand_like(value) + 0.5)
        loss.log_alpha.fill_(-0.7)
    return loss


def make_loss(config: Config, batched_critics: bool | None = None) -> tuple[Loss, Actor]:
    return losses.make_loss(config, DIMENSIONS, torch.device("cpu"), batched_critics)

"""Values of worlds by a mask."""

from __future__ import annotations

import torch
from torch import Tensor


def where_worlds(mask: Tensor, values: Tensor, others: Tensor) -> Tensor:
    """`values` in the worlds of `mask`, (N,) bool, `others` elsewhere; (N, ...) both."""
    return torch.where(mask.reshape(-1, *[1] * (values.dim() - 1)), values, others)

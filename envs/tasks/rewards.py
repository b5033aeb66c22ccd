"""Sums in NumPy's order, for rewards that equal Gymnasium's bit for bit."""

from __future__ import annotations

from torch import Tensor

_BLOCK = 128


def ordered_sum(values: Tensor) -> Tensor:
    """Sum over the last axis in NumPy's order, (..., n) -> (...).

    Floating-point sums depend on their order. NumPy, with which Gymnasium's tasks sum, keeps eight running sums over
    blocks of at most 128 elements and splits longer axes in halves. On a GPU, where results are not bit-exact anyway,
    this is torch's sum, a single kernel.
    """
    if values.is_cuda:
        return values.sum(-1)
    n = values.shape[-1]
    if n > _BLOCK:
        half = n // 2
        half -= half % 8
        return ordered_sum(values[..., :half]) + ordered_sum(values[..., half:])
    rest = n - n % 8
    if rest == 0:
        return _sequential_sum(values)
    running = values[..., :8]
    for start in range(8, rest, 8):
        running = running + values[..., start : start + 8]
    pairs = running[..., 0::2] + running[..., 1::2]
    total = (pairs[..., 0] + pairs[..., 1]) + (pairs[..., 2] + pairs[..., 3])
    for i in range(rest, n):
        total = total + values[..., i]
    return total


def _sequential_sum(values: Tensor) -> Tensor:
    total = values[..., 0]
    for i in range(1, values.shape[-1]):
        total = total + values[..., i]
    return total


def weighted_positions(mass: Tensor, xipos: Tensor) -> Tensor:
    """Sum of positions weighted by mass, added body by body: (nbody,), (..., nbody, 3) -> (..., 3)."""
    weighted = mass[:, None] * xipos
    if xipos.is_cuda:
        return weighted.sum(-2)
    total = weighted[..., 0, :]
    for body in range(1, len(mass)):
        total = total + weighted[..., body, :]
    return total

"""What the reward functions of several tasks share."""

from __future__ import annotations

from torch import Tensor

_BLOCK = 128


def ordered_sum(values: Tensor) -> Tensor:
    """Sum over the last axis, (..., n) -> (...), adding in the order in which NumPy adds.

    Floating-point sums depend on their order. Gymnasium's tasks sum with NumPy, which keeps eight running sums
    over blocks of at most 128 elements and adds the halves of anything longer, so a sum that is to equal theirs bit
    for bit has to be made in the same way. On a GPU nothing equals theirs, and one kernel does.
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
        return _sum_in_turn(values)
    running = values[..., :8]
    for start in range(8, rest, 8):
        running = running + values[..., start : start + 8]
    pairs = running[..., 0::2] + running[..., 1::2]
    total = (pairs[..., 0] + pairs[..., 1]) + (pairs[..., 2] + pairs[..., 3])
    for i in range(rest, n):
        total = total + values[..., i]
    return total


def _sum_in_turn(values: Tensor) -> Tensor:
    total = values[..., 0]
    for i in range(1, values.shape[-1]):
        total = total + values[..., i]
    return total


def weighted_positions(mass: Tensor, xipos: Tensor) -> Tensor:
    """Sum (..., 3) of the positions `xipos` (..., nbody, 3), weighted with `mass` (nbody,), added body by body."""
    weighted = mass[:, None] * xipos
    if xipos.is_cuda:
        return weighted.sum(-2)
    total = weighted[..., 0, :]
    for body in range(1, len(mass)):
        total = total + weighted[..., body, :]
    return total

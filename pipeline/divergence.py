"""Divergence: the first update whose loss was not finite, and the error that names it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from saltus.errors import SaltusError

DIVERGED = "learning has diverged"


class DivergenceError(SaltusError):
    """A loss, metric or parameter became infinite or NaN."""


class DivergenceMonitor:
    """Records, on the device, the gradient step of the first loss that was not finite.

    `record` is part of an update: it neither synchronises nor branches. The checks read values from the device.

    Args:
        step_count: the current gradient step, a float64 scalar that updates advance in place.

    Attributes:
        first_step: the recorded gradient step, a float64 scalar; 0 if every loss was finite.
    """

    def __init__(self, step_count: Tensor):
        self._step_count = step_count
        self.first_step = torch.zeros_like(step_count)

    @torch.no_grad()
    def record(self, loss: Tensor) -> None:
        """Record the current step if `loss`, a scalar, is the first that is not finite."""
        is_first = (self.first_step == 0) & ~torch.isfinite(loss)
        self.first_step.copy_(torch.where(is_first, self._step_count, self.first_step))

    def check_values(self, values: Mapping[str, float]) -> None:
        """Raise DivergenceError if a value is not finite."""
        for name, value in values.items():
            if not math.isfinite(value):
                raise self._error(f"{name} is {value}")

    def check_tensors(self, tensors: Mapping[str, object]) -> None:
        """Raise DivergenceError if a floating-point tensor has an element that is not finite."""
        for name, value in tensors.items():
            if isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
                raise self._error(f"{name} is not finite")

    def _error(self, symptom: str) -> DivergenceError:
        step = int(self.first_step) or int(self._step_count)
        return DivergenceError(
            f"{symptom} at gradient step {step}: {DIVERGED}. Start a new run with a lower --actor-lr and --critic-lr, "
            "or look for extreme observations or rewards in the task"
        )

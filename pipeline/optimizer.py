"""Adam as a function of tensors, so that it becomes part of the compiled update."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1) with a falling learning rate.

    Computes what torch.optim.Adam with a LambdaLR computes, but keeps step and rate on the parameters' device and
    branches on nothing, so that torch.compile takes it in whole.

    Args:
        parameters: what to optimise, by name.
        lr: learning rate of the first step.
        final: share of it that is left after `total_steps`.
        total_steps: over how many steps it falls.
        schedule: ``"linear"``, or ``"cosine"``: along half a cosine (Loshchilov and Hutter 2017).
        beta1, beta2: decays of the mean and mean squared gradient.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        lr: float,
        final: float,
        total_steps: int,
        schedule: Literal["linear", "cosine"] = "linear",
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
    ):
        self.names = list(parameters)
        self.parameters = list(parameters.values())
        self.lr, self.final, self.total_steps, self.schedule = lr, final, total_steps, schedule
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        # In float64, which counts beyond 2**24; a number of no dimension leaves the parameters' dtype as it is.
        self.step_count = torch.zeros((), dtype=torch.float64, device=self.parameters[0].device)
        self.mean = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.square = [torch.zeros_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step along `gradients`, in the order of the parameters."""
        done = (self.step_count / self.total_steps).clamp(max=1)
        if self.schedule == "cosine":
            done = (1 - torch.cos(math.pi * done)) / 2
        lr = self.lr * (1 - (1 - self.final) * done)
        self.step_count += 1
        step_size = lr / (1 - self.beta1**self.step_count)
        square_scale = (1 - self.beta2**self.step_count).sqrt()
        # Stacked, they are computed once. Inductor would else compute both powers at every sixteenth element.
        step_size, square_scale = torch.stack([step_size, square_scale]).to(self.mean[0].dtype).unbind()
        for parameter, gradient, mean, square in zip(self.parameters, gradients, self.mean, self.square, strict=True):
            mean.lerp_(gradient, 1 - self.beta1)
            square.lerp_(gradient * gradient, 1 - self.beta2)
            parameter -= step_size * mean / (square.sqrt() / square_scale + self.eps)

    def state_dict(self) -> dict[str, Tensor]:
        """Step count and moments by name."""
        state = {"step": self.step_count}
        for name, mean, square in zip(self.names, self.mean, self.square, strict=True):
            state |= {f"{name}.mean": mean, f"{name}.square": square}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy what `state_dict` gave into place."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])

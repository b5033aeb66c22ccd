"""Adam as tensor operations, so that it compiles into the update."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from pipeline.ranks import ALONE, Ranks


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1) with a decaying learning rate.

    Computes what torch.optim.Adam with a LambdaLR computes, but keeps the step count and the learning rate on the
    parameters' device and branches on no tensor value. State changes in place. beta2 is 0.999 and epsilon 1e-8.

    Args:
        parameters: the parameters by name.
        lr: learning rate at the start of the run, a number or a float64 scalar.
        final_fraction: the learning rate at the end of the run, as a fraction of `lr`.
        progress: share of the run that is done, a float64 scalar in [0, 1] that changes in place.
        schedule: ``"linear"``, or ``"cosine"``: half a cosine (Loshchilov and Hutter 2017).
        beta1: decay rate of the mean gradient.

    Attributes:
        step_count: number of steps taken, a scalar. In float64, which counts beyond 2**24.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        lr: float | Tensor,
        final_fraction: float,
        progress: Tensor,
        schedule: Literal["linear", "cosine"] = "linear",
        beta1: float = 0.9,
    ):
        self.names = list(parameters)
        self.parameters = list(parameters.values())
        self.lr, self.final_fraction, self.schedule, self.progress = lr, final_fraction, schedule, progress
        self.beta1, self.beta2, self.eps = beta1, 0.999, 1e-8
        self.step_count = torch.zeros((), dtype=torch.float64, device=self.parameters[0].device)
        self.mean = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.mean_square = [torch.zeros_like(parameter) for parameter in self.parameters]

    @property
    def current_lr(self) -> Tensor:
        """The learning rate at this progress, a float64 scalar."""
        progress = self.progress
        if self.schedule == "cosine":
            progress = (1 - torch.cos(math.pi * progress)) / 2
        return self.lr * (1 - (1 - self.final_fraction) * progress)

    def minimize(self, loss: Tensor, ranks: Ranks = ALONE) -> None:
        """Take one gradient descent step on the mean of the ranks' losses, a scalar each."""
        self.step(ranks.mean(torch.autograd.grad(loss, self.parameters)))

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Take one step against `gradients`, in the order of the parameters."""
        lr = self.current_lr
        self.step_count += 1
        step_size = lr / (1 - self.beta1**self.step_count)
        square_scale = (1 - self.beta2**self.step_count).sqrt()
        # Stacked, they are computed once: Inductor would otherwise inline both powers into every element's loop.
        step_size, square_scale = torch.stack([step_size, square_scale]).to(self.mean[0].dtype).unbind()
        for parameter, gradient, mean, mean_square in zip(
            self.parameters, gradients, self.mean, self.mean_square, strict=True
        ):
            mean.lerp_(gradient, 1 - self.beta1)
            mean_square.lerp_(gradient * gradient, 1 - self.beta2)
            parameter -= step_size * mean / (mean_square.sqrt() / square_scale + self.eps)

    def state_dict(self) -> dict[str, Tensor]:
        """Step count and moments by name; not copies."""
        state = {"step": self.step_count}
        for name, mean, mean_square in zip(self.names, self.mean, self.mean_square, strict=True):
            state |= {f"{name}.mean": mean, f"{name}.mean_square": mean_square}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy the values of a `state_dict` into place."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])

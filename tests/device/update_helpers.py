"""A small update with everything that real ones have, and its batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor

from saltus.device.compiled_update import CompiledUpdate


class Regression:
    """An update with noise, a gradient, state that it modifies in place, and nested entries."""

    def __init__(self, seed: int = 0, width: int = 3):
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(width, 2, generator=generator).requires_grad_()
        self.alias = self.weight.detach()  # the same memory
        self.count = torch.zeros(())
        self.python_calls = 0

    def state(self) -> list[Tensor]:
        return [self.weight, self.count]

    def update(self, batch: TensorDict) -> dict[str, Tensor]:
        self.python_calls += 1
        noise = torch.randn_like(batch["observation"])
        error = (batch["observation"] + noise) @ self.weight - batch["next", "reward"]
        loss = error.square().mean()
        (gradient,) = torch.autograd.grad(loss, [self.weight])
        with torch.no_grad():
            self.weight -= 0.1 * gradient
            self.count += 1
        batch["scratch"] = error  # TorchRL's losses write into their input, too
        return {"loss": loss.detach(), "noise": noise, "alias": self.alias.sum()}

    def compiled(self) -> CompiledUpdate:
        return CompiledUpdate(self.update, self.state)


def make_batch(seed: int = 0, rows: int = 4, width: int = 3) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    after = TensorDict({"reward": torch.randn(rows, 1, generator=generator)}, batch_size=[rows])
    observation = torch.randn(rows, width, generator=generator)
    return TensorDict({"observation": observation, "next": after}, batch_size=[rows])


def run(update: Callable[[TensorDict], dict[str, Tensor]], count: int = 4) -> list[dict[str, Tensor]]:
    """The results of several updates, from the same random state."""
    torch.manual_seed(0)
    return [{name: value.clone() for name, value in update(make_batch(seed)).items()} for seed in range(count)]

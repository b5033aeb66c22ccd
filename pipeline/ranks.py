"""Ranks: the processes that train one run together, and what they tell each other.

Every rank has the same networks, and its own worlds and replay buffer. `Ranks` is the one rank of a usual run: it
exchanges nothing. `TorchRanks` exchanges through torch.distributed: NCCL for tensors on CUDA, gloo on the CPU.

The collectives of `mean` and `merge` are functional operations, which `saltus.device.compiled_update` records and
compiles into the update, and which a CUDA graph captures.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


class Ranks:
    """The only rank of a run: every method returns its argument.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        per_host: number of ranks on this machine.
        num_threads: CPU threads of the physics of a rank; 0: one per core.
        waited: seconds in exchanges, mostly for slower ranks, since a reader set it to 0. Exchanges of compiled updates
            do not count.
    """

    rank, size, per_host, num_threads, waited = 0, 1, 1, 0, 0.0

    def share(self, number: int) -> int:
        """This rank's part of a number of the whole run."""
        return number // self.size

    def mean(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The means over ranks of tensors of one dtype, in one exchange, without gradients."""
        return tensors

    def merge(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of all ranks' rows, given those of as many rows on each rank, (columns,) each.

        Differentiable: gradients of all ranks' losses flow into this rank's rows.
        """
        return mean, variance

    def maximum(self, tensor: Tensor) -> Tensor:
        """The elementwise maximum over ranks."""
        return tensor

    def any_rank(self, flag: bool) -> bool:
        """Whether `flag` is true on a rank. Waits for all ranks."""
        return flag

    def from_rank_0(self, value: float) -> float:
        """Rank 0's value. Waits for rank 0."""
        return value

    def concatenate(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, as many of each, (ranks * N, ...)."""
        return rows

    def own_rows(self, rows: Tensor) -> Tensor:
        """Inverse of `concatenate`: this rank's rows, (N, ...)."""
        count = self.share(len(rows))
        return rows[self.rank * count : (self.rank + 1) * count]

    def gather(self, value: Value) -> list[Value]:
        """Every rank's value, in the order of ranks. Waits for all ranks."""
        return [value]


ALONE = Ranks()


class TorchRanks(Ranks):
    """One of several ranks, in torch.distributed's default process group. See `pipeline.launch`."""

    def __init__(self) -> None:
        import torch.distributed as distributed
        import torch.distributed._functional_collectives  # noqa: F401 - registers how to trace the operations

        self.rank, self.size, self.waited = distributed.get_rank(), distributed.get_world_size(), 0.0
        world = distributed.group.WORLD
        assert world is not None
        self._group = world.group_name  # operations in graphs take no objects

    def mean(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        if not tensors:
            return tensors
        flat = self._sum(torch.cat([tensor.detach().reshape(-1) for tensor in tensors])) / self.size
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def merge(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        # Chan, Golub and LeVeque (1979): unlike sums of squares, this loses no digits to large means.
        means, variances = _Gather.apply(torch.stack([mean, variance]), self).unbind(1)
        total = means.mean(0)
        return total, variances.mean(0) + (means - total).square().mean(0)

    def maximum(self, tensor: Tensor) -> Tensor:
        return self._gather(tensor).amax(0)

    def any_rank(self, flag: bool) -> bool:
        return bool(self._sum(torch.tensor(float(flag))))

    def from_rank_0(self, value: float) -> float:
        return float(self._gather(torch.tensor(value, dtype=torch.float64))[0])

    def concatenate(self, rows: Tensor) -> Tensor:
        return self._gather(rows).flatten(0, 1)

    def gather(self, value: Value) -> list[Value]:
        import torch.distributed as distributed

        values: list[Any] = [None] * self.size
        with self._waiting():
            distributed.all_gather_object(values, value)
        return values

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Count the time of an exchange. On CUDA this is only the time to launch it."""
        start = time.monotonic()
        yield
        self.waited += time.monotonic() - start

    def _sum(self, tensor: Tensor) -> Tensor:
        collectives = torch.ops._c10d_functional
        with self._waiting():
            return collectives.wait_tensor(collectives.all_reduce(tensor, "sum", self._group))

    def _gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, (ranks, ...)."""
        collectives = torch.ops._c10d_functional
        with self._waiting():
            flat = collectives.wait_tensor(
                collectives.all_gather_into_tensor(tensor.reshape(-1), self.size, self._group)
            )
        return flat.view(self.size, *tensor.shape)


class _Gather(torch.autograd.Function):
    """`TorchRanks._gather` with gradients, also under vmap."""

    @staticmethod
    def forward(tensor: Tensor, ranks: TorchRanks) -> Tensor:
        return ranks._gather(tensor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, TorchRanks], output: Tensor) -> None:
        ctx.ranks = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks._sum(gradient.contiguous())[ctx.ranks.rank], None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], tensor: Tensor, ranks: TorchRanks) -> tuple[Tensor, int]:
        return _Gather.apply(tensor.movedim(in_dims[0], 0), ranks), 1

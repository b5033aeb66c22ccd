"""MemberReplay: the transitions of all members in one buffer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict
from torch import Tensor

from pipeline.buffer import ReplayBuffer
from pipeline.config import Config
from pipeline.dimensions import Dimensions
from pipeline.seeding import derive_seed


class MemberReplay(ReplayBuffer):
    """Replay of all members: `sample` draws for each member from its own transitions.

    Each vector step adds one transition for every world: those of the first member, then those of the second, and
    so on.

    Args:
        configs: the members' configurations, each with `n_step` as a number. Each member has the capacity of its run,
            in whole vector steps.
        dimensions: widths of observations and actions.
        device: where the buffer lives.
        gammas: the members' discount factors, (S,), which may change in place.

    Raises:
        MemoryError: the buffer does not fit into the free memory; nothing was allocated.
    """

    def __init__(self, configs: Sequence[Config], dimensions: Dimensions, device: torch.device | str, gammas: Tensor):
        config = configs[0]
        self._members, self._worlds = len(configs), config.num_envs
        vector_steps = config.capacity // config.num_envs
        seed = derive_seed(config.seed, "buffer")
        capacity = vector_steps * config.num_envs * len(configs)
        assert config.n_step != "auto"
        super().__init__(capacity, dimensions, device, seed, config.n_step)
        self._gammas = gammas

    def sample(self, batch_size: int, num_batches: int = 1) -> list[TensorDict]:
        """Sample `num_batches` batches of `batch_size` transitions for each member; batch size [S, `batch_size`].

        See `ReplayBuffer.sample` for the entries.
        """
        shape = num_batches, self._members, batch_size
        draws = torch.rand(shape, dtype=torch.float64, device=self.device, generator=self.generator)
        own = (draws * (self._size // self._members)).long()  # numbers a member's transitions from its first one
        first = torch.arange(self._members, device=self.device).unsqueeze(-1) * self._worlds
        rows = (own // self._worlds * (self._members * self._worlds) + first + own % self._worlds).flatten()
        if self.n_step == 1:
            entries = self._entries_at(rows)
        else:
            gammas = self._gammas.unsqueeze(-1).expand(shape).reshape(-1, 1)
            entries = self._n_step_entries_at(rows, gammas)
        batches = [TensorDict({}, batch_size=shape[1:]) for _ in range(num_batches)]
        for key, entry in entries.items():
            for batch, part in zip(batches, entry.view(*shape, -1).unbind(), strict=True):
                batch.set(key, part)
        return batches

"""ReplayBuffer: a preallocated ring of transitions on the training device."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from envs import transition as transitions
from pipeline.dimensions import Dimensions
from saltus.device import resolve_device
from saltus.device.cuda_graph import CapturedFunction
from saltus.device.memory import free_bytes_for
from saltus.errors import SaltusError


class ReplayBuffer:
    """Ring buffer of the last `capacity` transitions, sampled uniformly with replacement.

    Cursor, size and random generator live on the device, so `extend` and `sample` do not synchronise with it.

    With `n_step` > 1, `sample` joins transitions of the same world. Every `extend` must then add one transition for
    each world, in the same order.

    Args:
        capacity: number of transitions.
        dimensions: widths of observations and actions (see `envs.transition`).
        device: where the buffer lives.
        seed: seed of the sampling.
        n_step: number of rewards that a sampled transition sums.
        gamma: discount factor of that sum, a number or a scalar that may change in place.
        capture: capture `extend` as a CUDA graph; None: on CUDA.
        per_host: number of processes that make such a buffer in this machine's memory.

    Attributes:
        num_bytes: size of the stored transitions at full capacity.
        generator: random generator of `sample`, on `device`.

    Warns if the copy that `state_dict` makes of a buffer on a GPU does not fit into the host's free memory.

    Raises:
        MemoryError: the buffer does not fit into the free memory; nothing was allocated.
    """

    def __init__(
        self,
        capacity: int,
        dimensions: Dimensions,
        device: torch.device | str = "cpu",
        seed: int = 0,
        n_step: int = 1,
        gamma: float | Tensor = 0.99,
        capture: bool | None = None,
        per_host: int = 1,
    ):
        self.capacity, self.device = capacity, resolve_device(device)
        self.n_step, self.gamma = n_step, gamma
        self.num_bytes = capacity * transitions.num_bytes(*dimensions.widths)
        if self.device.type == "cuda":
            _require_memory(self.num_bytes, capacity, self.device, 1)
            _warn_of_host_copy(self.num_bytes, per_host)
        else:
            _require_memory(self.num_bytes, capacity, self.device, per_host)
        observation_dim, action_dim, privileged_dim = dimensions.widths
        self._storage = transitions.zeros(capacity, observation_dim, action_dim, self.device, privileged_dim)
        self._entries = {key: self._storage[key] for key in transitions.layout(*dimensions.widths)}
        self._cursor = torch.zeros((), dtype=torch.int64, device=self.device)
        self._size = torch.zeros((), dtype=torch.int64, device=self.device)
        self._num_envs = 0
        self._added = 0  # counted on the host, too, so that len() does not synchronise
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._capture = self.device.type == "cuda" if capture is None else capture
        self._captured: dict[int, CapturedFunction] = {}  # by the number of transitions

    def __len__(self) -> int:
        return min(self._added, self.capacity)

    @property
    def captured(self) -> bool:
        """Whether `extend` has been captured as a CUDA graph."""
        return any(function.captured for function in self._captured.values())

    def extend(self, transition: TensorDictBase) -> None:
        """Add a transition of batch size [N], overwriting the oldest ones.

        Raises:
            SaltusError: N exceeds the capacity, or differs from the previous N while `n_step` > 1.
        """
        count = transition.batch_size[0]
        if count > self.capacity:
            raise SaltusError(f"{count} transitions do not fit into a buffer of {self.capacity}: raise buffer_size")
        if self.n_step > 1 and self._num_envs not in (0, count):
            raise SaltusError(
                f"{count} transitions after vector steps of {self._num_envs}: {self.n_step}-step returns need a "
                "transition of every world at each vector step; add all worlds, or set n_step to 1"
            )
        if self._capture and count not in self._captured:
            name = f"the replay buffer's writing of {count} transitions"
            self._captured[count] = CapturedFunction(self._write, name, self.device)
        self._captured.get(count, self._write)(*(transition[key] for key in self._entries))
        self._added += count
        self._num_envs = count

    def truncate_newest(self) -> None:
        """Mark the episodes of the newest vector step as truncated: the next transitions are of other episodes."""
        rows = (self._cursor - 1 - torch.arange(min(self._num_envs, len(self)), device=self.device)) % self.capacity
        terminated = self._entries["next", "terminated"].index_select(0, rows)
        self._entries["next", "truncated"].index_copy_(0, rows, ~terminated | self._entries["next", "truncated"][rows])
        self._entries["next", "done"].index_fill_(0, rows, True)

    def _write(self, *columns: Tensor) -> dict[str, Tensor]:
        """Write the entries of transitions, (N, width) each, in the order of `envs.transition.layout`."""
        count = len(columns[0])
        rows = (self._cursor + torch.arange(count, device=self.device)) % self.capacity
        for entry, values in zip(self._entries.values(), columns, strict=True):
            entry.index_copy_(0, rows, values)
        self._cursor.add_(count).remainder_(self.capacity)
        self._size.add_(count).clamp_(max=self.capacity)
        return {}

    def sample(self, batch_size: int, num_batches: int = 1) -> list[TensorDict]:
        """Sample `num_batches` independent batches of `batch_size` transitions each.

        With `n_step` > 1, ``("next", "reward")`` is the discounted sum of n rewards, the other entries of ``"next"``
        are those of the last of the n transitions, and ``"steps_to_next_obs"`` (B, 1) float32 is their number. It is
        below `n_step` where the episode terminates or is truncated, or where the newest transition is reached.

        Raises:
            SaltusError: fewer than `batch_size` transitions are stored.
        """
        if len(self) < batch_size:
            raise SaltusError(
                f"a batch of {batch_size} was requested, but {len(self)} transitions are stored: extend the buffer "
                "first, or lower batch_size"
            )
        count = num_batches * batch_size
        draws = torch.rand(count, dtype=torch.float64, device=self.device, generator=self.generator)
        rows = (draws * self._size).long()
        entries = self._entries_at(rows) if self.n_step == 1 else self._n_step_entries_at(rows, self.gamma)
        parts = {key: entry.split(batch_size) for key, entry in entries.items()}
        return [_nested({key: part[i] for key, part in parts.items()}, batch_size) for i in range(num_batches)]

    def _entries_at(self, rows: Tensor) -> dict[transitions.Key, Tensor]:
        return {key: entry.index_select(0, rows) for key, entry in self._entries.items()}

    def _n_step_entries_at(self, rows: Tensor, gamma: float | Tensor) -> dict[transitions.Key, Tensor]:
        """The transitions at `rows`, each joined with its up to n - 1 successors in the same world.

        `gamma` is the discount factor, or one for each row, (rows, 1).
        """
        reward, done = self._entries["next", "reward"], self._entries["next", "done"]
        age = (rows - self._cursor) % self._size.clamp(min=1)  # 0 is the oldest transition
        last = rows
        total = reward.index_select(0, rows)
        steps = torch.ones_like(total)
        alive = ~done.index_select(0, rows).squeeze(-1)
        for step in range(1, self.n_step):
            # A vector step adds num_envs rows, so a world's successor is that many rows later.
            offset = step * self._num_envs
            next_rows = (rows + offset) % self.capacity
            alive = alive & (age + offset < self._size)
            total += torch.where(alive.unsqueeze(-1), gamma**step * reward.index_select(0, next_rows), 0.0)
            steps += alive.unsqueeze(-1)
            last = torch.where(alive, next_rows, last)
            alive = alive & ~done.index_select(0, next_rows).squeeze(-1)
        entries = {
            key: entry.index_select(0, last if isinstance(key, tuple) else rows) for key, entry in self._entries.items()
        }
        return {**entries, ("next", "reward"): total, "steps_to_next_obs": steps}

    def state_dict(self) -> dict[str, Any]:
        """Stored transitions, cursor, counters and the state of the generator."""
        return {
            "stored": {_flat(key): _head(entry, len(self)) for key, entry in self._entries.items()},
            "added": self._added,
            "num_envs": self._num_envs,
            "cursor": self._cursor,
            "generator": self.generator.get_state(),
        }

    def refill(self, stored: dict[str, Tensor], num_envs: int) -> None:
        """Replace all transitions by those of whole vector steps, as many of the last ones as fit.

        Args:
            stored: transitions by name, as in a `state_dict`, oldest first.
            num_envs: number of transitions per vector step.
        """
        available = len(stored["observation"])
        count = min(available, self.capacity // num_envs * num_envs)
        state = {"added": count, "num_envs": num_envs, "cursor": torch.tensor(count % self.capacity)}
        newest = {name: values[available - count :] for name, values in stored.items()}
        self.load_state_dict({**state, "stored": newest, "generator": self.generator.get_state()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self._added, self._num_envs = state["added"], state["num_envs"]
        self._cursor.copy_(state["cursor"])
        self._size.fill_(len(self))
        self.generator.set_state(state["generator"])
        for key, entry in self._entries.items():
            entry[: len(self)] = state["stored"][_flat(key)]


def _flat(key: transitions.Key) -> str:
    return key if isinstance(key, str) else ".".join(key)


def _head(entry: Tensor, count: int) -> Tensor:
    """The first `count` rows in host memory, with a storage of just these rows, because torch.save writes it whole.

    On the CPU the detour through NumPy shortens the storage without copying it.
    """
    return torch.from_numpy(entry.numpy()[:count]) if entry.device.type == "cpu" else entry[:count].cpu()


def _nested(entries: dict[transitions.Key, Tensor], batch_size: int) -> TensorDict:
    flat: dict[str, Any] = {key: value for key, value in entries.items() if isinstance(key, str)}
    next_entries = {key[1]: value for key, value in entries.items() if isinstance(key, tuple)}
    return TensorDict({**flat, "next": TensorDict(next_entries, batch_size=[batch_size])}, batch_size=[batch_size])


def _require_memory(num_bytes: int, capacity: int, device: torch.device, per_host: int) -> None:
    needed = num_bytes * per_host
    free = free_bytes_for(needed, device)
    if per_host > 1 and needed > free:
        raise MemoryError(
            f"the replay buffers of this machine's {per_host} ranks take {needed / 1e9:.2f} GB and "
            f"{free / 1e9:.2f} GB are free: set buffer_size below {free / num_bytes / per_host:.0%} of its value"
        )
    if num_bytes > free:
        fits = int(capacity * free / num_bytes)
        raise MemoryError(
            f"a replay buffer of {capacity:,} transitions takes {num_bytes / 1e9:.2f} GB and {free / 1e9:.2f} GB are "
            f"free on {device}: set buffer_size below {fits:,}"
        )


def _warn_of_host_copy(num_bytes: int, per_host: int) -> None:
    needed = num_bytes * per_host
    free = free_bytes_for(needed, torch.device("cpu"))
    if needed > free:
        ranks = f" of this machine's {per_host} ranks" if per_host > 1 else ""
        warnings.warn(
            f"a checkpoint copies the replay buffer{ranks} to host memory, which takes {needed / 1e9:.2f} GB once it "
            f"is full, and {free / 1e9:.2f} GB are free: a save may end the run. Set buffer_size below "
            f"{free / needed:.0%} of its value",
            stacklevel=3,
        )

"""Device work that `envs` and `pipeline` share: CUDA graphs, compiled updates, memory, threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from saltus.errors import SaltusError


def resolve_device(name: torch.device | str) -> torch.device:
    """The device of a name; ``"auto"`` is the GPU if there is one. A CUDA device gets its index, as tensors have it.

    Raises:
        SaltusError: CUDA where torch sees none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SaltusError(f"device {device} was requested and torch sees no CUDA device: use device cpu or auto")
    return torch.empty(0, device=device).device


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Limit torch to one thread: its idle threads would spin on the cores that the physics needs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

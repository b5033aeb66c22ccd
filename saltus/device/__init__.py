"""Device utilities shared by `envs` and `pipeline`: CUDA graphs, compiled updates, memory, threads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from saltus.errors import SaltusError

if TYPE_CHECKING:
    from tensordict import TensorDictBase

_UNSUPPORTED = "device '{}' is not supported: use auto, cpu, cuda or, for one of several GPUs, cuda:0, cuda:1, ..."


def resolve_device(name: torch.device | str) -> torch.device:
    """The device of a name, with its index on CUDA. ``"auto"`` is the GPU if there is one, else the CPU.

    Raises:
        SaltusError: an unknown name, or a CUDA device that torch does not see.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise SaltusError(_UNSUPPORTED.format(name)) from None
    if device.type not in ("cpu", "cuda"):
        raise SaltusError(_UNSUPPORTED.format(name))
    if device.type == "cuda":
        _require_cuda(device)
    return torch.empty(0, device=device).device


def _require_cuda(device: torch.device) -> None:
    if not torch.cuda.is_available():
        raise SaltusError(f"device {device} was requested, but torch sees no CUDA device: use device cpu or auto")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise SaltusError(f"device {device} was requested, but torch sees {count} CUDA devices, numbered from 0")


@cache
def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16 numbers: AVX512-BF16 or AMX."""
    checks = "_is_avx512_bf16_supported", "_is_amx_tile_supported"  # undocumented
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def to_device(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to `device`, from the CPU pinned and without blocking; a tensor that is there already stays."""
    if value.device == device:
        return value
    return value.pin_memory().to(device, non_blocking=True) if value.device.type == "cpu" else value.to(device)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Limit torch to one thread: its idle threads would spin on cores that the physics needs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def copy_tensors(source: Mapping[str, Any] | TensorDictBase, target: Mapping[str, Any]) -> None:
    """Copy tensors into those of the same names, at any depth."""
    for name, value in target.items():
        if isinstance(value, torch.Tensor):
            value.copy_(source[name])
        else:
            copy_tensors(source[name], value)

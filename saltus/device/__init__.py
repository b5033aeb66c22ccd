"""Device utilities shared by `envs` and `pipeline`: CUDA graphs, compiled updates, memory, threads."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from saltus.errors import SaltusError, warn_once

if TYPE_CHECKING:
    from tensordict import TensorDictBase

_UNSUPPORTED = "device '{}' is not supported: use auto, cpu, cuda or, for one of several GPUs, cuda:0, cuda:1, ..."
_torch_reasons: list[str] = []  # torch gives its reason once per process


def resolve_device(name: torch.device | str) -> torch.device:
    """The device of a name, with its index on CUDA. ``"auto"`` is the GPU if there is one, else the CPU.

    Warns, once, if ``"auto"`` is the CPU because torch cannot use the GPU, for example with an old driver.

    Raises:
        SaltusError: an unknown name, or a CUDA device that torch does not see.
    """
    if name == "auto":
        name = "cuda" if cuda_available() else "cpu"
        if name == "cpu" and _torch_reasons:
            warn_once(f"torch sees no CUDA device, so device auto is the CPU.{_describe_reasons()}")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise SaltusError(_UNSUPPORTED.format(name)) from None
    if device.type not in ("cpu", "cuda"):
        raise SaltusError(_UNSUPPORTED.format(name))
    if device.type == "cuda":
        _require_cuda(device)
    return torch.empty(0, device=device).device


def cuda_available() -> bool:
    """Whether torch sees a CUDA device. torch's warnings are kept for the messages of `resolve_device`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    _torch_reasons.extend(str(one.message).partition(" (Triggered internally")[0] for one in caught)
    return available


def _describe_reasons() -> str:
    return "".join(f" torch says: {one}" for one in dict.fromkeys(_torch_reasons))


def _require_cuda(device: torch.device) -> None:
    if not cuda_available():
        raise SaltusError(
            f"device {device} was requested, but torch sees no CUDA device: use device cpu or auto."
            f"{_describe_reasons()}"
        )
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


def to_floats(scalars: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Read one-element tensors from the device in a single synchronisation."""
    if not scalars:
        return {}
    return dict(zip(scalars, torch.stack([one.double().reshape(()) for one in scalars.values()]).tolist(), strict=True))

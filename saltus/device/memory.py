"""Memory of a device."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import psutil
import torch

CGROUP_OF_PROCESS, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# Names of a control group's limit and usage, and of the parts of its usage that the kernel can drop: cached files.
_VERSION_1 = "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
_VERSION_2 = "memory.max", "memory.current", ("inactive_file", "active_file")

deferred_frees: list[Callable[[torch.device], None]] = []
"""Run what other libraries than torch deferred freeing on a CUDA device."""


def free_bytes_for(needed: int, device: torch.device) -> int:
    """`free_bytes`, after `release_memory` if that is less than `needed`."""
    free = free_bytes(device)
    if needed > free:
        release_memory(device)
        free = free_bytes(device)
    return free


def release_memory(device: torch.device) -> None:
    """Free the memory of unreferenced worlds and graphs, and torch's cached blocks.

    On CUDA, the workspace of Warp's graphs stays reserved for graphs.
    """
    gc.collect()
    if device.type == "cuda":
        for free in deferred_frees:
            free(device)
        torch.cuda.empty_cache()


def free_bytes(device: torch.device) -> int:
    """Free bytes of a GPU, or bytes that the CPU can allocate without swapping, within the limits of containers."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([psutil.virtual_memory().available, *_free_in_cgroups()])


def _free_in_cgroups() -> Iterator[int]:
    """Free bytes of the control groups that limit this process: its own and those around it."""
    try:
        memberships = CGROUP_OF_PROCESS.read_text().splitlines()
    except OSError:
        return
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (CGROUPS / "memory", _VERSION_1) if controllers else (CGROUPS, _VERSION_2)
        own = PurePosixPath(path.lstrip("/"))
        for group in (own, *own.parents):
            free = _free_in(root / group, *names)
            if free is not None:
                yield free


def _free_in(folder: Path, limit: str, usage: str, cached: tuple[str, ...]) -> int | None:
    """Free bytes of a control group; None without a limit that this process can read."""
    try:
        free = int((folder / limit).read_text()) - int((folder / usage).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, free + sum(int(statistics[name]) for name in cached))
    except (OSError, ValueError, KeyError):  # without a limit, version 2 writes the word max
        return None

"""Memory of a device."""

from __future__ import annotations

import psutil
import torch


def free_bytes(device: torch.device) -> int:
    """Free bytes of a GPU, or bytes that the CPU can allocate without swapping."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available

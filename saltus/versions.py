"""Versions that a run's numbers depend on."""

from __future__ import annotations

import functools
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from saltus._version import __version__
from saltus.device import multiplies_bfloat16

PACKAGES = ("saltus", "torch", "torchrl", "tensordict", "mujoco", "mujoco-warp", "warp-lang", "gymnasium", "numpy")


def versions(*more: str) -> dict[str, str]:
    """Versions of packages and Python, torch's threads and the CPU's vector instructions, by name.

    Each of them can change the last bit of a result.

    Args:
        more: further packages.
    """
    return {
        **{name: _version(name) for name in (*PACKAGES, *more)},
        "python": platform.python_version(),
        **cpu_settings(),
    }


def cpu_settings() -> dict[str, str]:
    """torch's threads and the CPU's vector instructions, by name."""
    return {
        "torch threads": str(torch.get_num_threads()),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "bfloat16 products": "yes" if multiplies_bfloat16() else "no",
    }


@functools.cache  # read from files, for every checkpoint
def _version(package: str) -> str:
    if package == "saltus":
        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

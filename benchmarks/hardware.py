"""The machine that a benchmark runs on."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

from envs.physics.cpu import available_cores


def hardware() -> dict[str, Any]:
    """The machine's processor, memory and GPU, as far as they are known; cores are those that this process may use."""
    info = Path("/proc/cpuinfo")
    lines = [line.partition(":") for line in info.read_text().splitlines()] if info.exists() else []
    cpu = {name.strip(): value.strip() for name, _, value in lines}  # of the last core; all cores are alike
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    found = {
        "gpu": f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB" if gpu else None,
        "driver": _driver() if gpu else None,
        "cpu": cpu.get("model name", platform.machine()),
        "cpu_family_and_model": f"{cpu.get('cpu family')}, {cpu.get('model')}",
        "cpu_instructions": sorted({"avx2", "avx512f", "avx512_bf16", "amx_bf16"} & {*cpu.get("flags", "").split()}),
        "cores": available_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
    }
    return {name: value for name, value in found.items() if value is not None}


def _driver() -> str | None:
    """The version of NVIDIA's driver; None if nvidia-smi does not tell it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def machine(found: Mapping[str, Any]) -> str:
    """A machine in a few words: its GPU or processor, and its cores.

    Args:
        found: from `hardware`.
    """
    cores = "core" if found["cores"] == 1 else "cores"
    if found.get("gpu"):
        return f"{found['gpu'].partition(',')[0]}, {found['cores']} CPU {cores}"
    model = found.get("cpu_family_and_model", "").replace(", ", "/")
    return f"{found['cpu']}{f' {model}' if model else ''}, {found['cores']} {cores}"

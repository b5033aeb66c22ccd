"""A configuration and a state to save in checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

CONFIG = {"task": "Hopper-v5", "seed": 0, "actor_hidden": [16, 16], "gamma": 0.99}


def state(seed: int = 0) -> dict[str, Any]:
    """Every kind of value that a run saves."""
    torch.manual_seed(seed)
    return {
        "env_steps": 123,
        "seconds": 4.5,
        "random": torch.get_rng_state(),
        "random_cuda": None,
        "flags": torch.rand(50) < 0.5,
        "agent": {"weights": torch.randn(40, 30), "step": torch.tensor(7.0), "nan": torch.tensor(float("nan"))},
        "environment": {"physics": torch.randn(20, 10, dtype=torch.float64), "elapsed": torch.arange(20)},
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())

"""Seeds of random generators."""

from __future__ import annotations

import numpy as np
import torch


def make_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on a device, whose numbers differ for different seeds."""
    return torch.Generator(device).manual_seed(hash_seed(seed))


def hash_seed(*numbers: int) -> int:
    """Hash whole numbers of 0 or more into 32 bits: torch's CPU generator uses only the low 32 bits of its seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])

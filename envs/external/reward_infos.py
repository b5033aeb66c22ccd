"""The terms of the reward in the infos of a vector environment's step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

PREFIX = "reward_"


def reward_terms(infos: Mapping[str, Any], count: int, device: torch.device) -> dict[str, Tensor]:
    """The infos ``reward_...`` that are numbers of each world, as Gymnasium's MuJoCo environments give them.

    Autoreset mode SAME_STEP has those of worlds whose episode ended in ``infos["final_info"]``; its other infos are
    those of their next episodes' resets.

    Returns:
        (count,) float32 by name; NaN in worlds without the info.
    """
    terms = {name: torch.where(known, value, torch.nan) for name, (value, known) in _numbers(infos, count, device)}
    final = infos.get("final_info")
    if isinstance(final, Mapping):
        ended = infos.get("_final_info")
        for name, (value, known) in _numbers(final, count, device, ended):
            terms[name] = torch.where(known, value, terms.get(name, torch.full_like(value, torch.nan)))
    return terms


def _numbers(
    infos: Mapping[str, Any], count: int, device: torch.device, otherwise: Any = None
) -> list[tuple[str, tuple[Tensor, Tensor]]]:
    """Names of infos, with their values (count,) and the worlds that have them; `otherwise`: those without a mask."""
    found = []
    for name, value in infos.items():
        if name.startswith(PREFIX) and _is_number(value, count):
            mask = infos.get(f"_{name}", otherwise)
            known = torch.ones(count, dtype=torch.bool) if mask is None else torch.as_tensor(mask)
            number = torch.as_tensor(value, device=device).reshape(count).float()
            found.append((name, (number, known.reshape(count).to(device))))
    return found


def _is_number(value: Any, count: int) -> bool:
    """Whether an info is a number of each world."""
    if isinstance(value, Tensor):
        kind = "f" if value.dtype.is_floating_point else "" if value.dtype == torch.bool else "i"
    else:
        kind = value.dtype.kind if isinstance(value, np.ndarray) else ""
    return kind in ("f", "i", "u") and tuple(value.shape) in ((count,), (count, 1))

"""Finds operations that would synchronise with a GPU, on the CPU."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Operations whose result or shape depends on values, by the beginning of their names.
SYNCHRONIZING = (
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique", "repeat_interleave",
    # These check values of their arguments.
    "normal.Tensor_Tensor", "normal.float_Tensor", "multinomial", "bincount", "_linalg_check_errors",
)  # fmt: skip
_TORCH = str(Path(torch.__file__).parent)


class Synchronizations(TorchDispatchMode):
    """Lists the operations run within it that would synchronise with a GPU.

    Attributes:
        found: their names, with their overloads'.
        places: ``file:line`` of the call of each, outside torch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.")  # with its overload's
        masked = name.partition(".")[0] in ("index", "index_put", "index_put_") and any(
            isinstance(one, Tensor) and one.dtype == torch.bool for one in args[1]
        )
        if name.startswith(SYNCHRONIZING) or masked:
            self.found.append(name)
            self.places.append(_caller())
        return func(*args, **(kwargs or {}))


def _caller() -> str:
    """``file:line`` of the innermost frame that is neither torch's nor this module's."""
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith((_TORCH, __file__)):
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return "an unknown line"

"""Finds operations that would synchronise with a GPU, on the CPU."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Operations whose result or shape depends on values, by the beginning of their names.
SYNCHRONIZING = (
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "allclose", "is_nonzero", "_unique",
    "repeat_interleave", "masked_fill.Tensor", "masked_fill_.Tensor",
    # These check values of their arguments or of their results.
    "normal.Tensor_Tensor", "normal.float_Tensor", "multinomial", "bincount", "_linalg_check_errors", "_linalg_eigh",
    "_linalg_svd", "linalg_eig", "linalg_lstsq",
)  # fmt: skip
INDEXING = ("index", "index_put", "index_put_")
_LIBRARIES = tuple(str(Path(file).parent) for file in (torch.__file__, np.__file__, __file__))


class Synchronizations(TorchDispatchMode):
    """Lists the operations run within it that would synchronise with a GPU.

    Attributes:
        found: their names, with their overloads'.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.")
        if synchronizes(name, args):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def synchronizes(operation: str, args: Any) -> bool:
    """Whether an operation of torch, named with its overload, reads values on the host, or indexes by a mask."""
    masked = operation.partition(".")[0] in INDEXING and any(
        isinstance(one, Tensor) and one.dtype == torch.bool for one in args[1]
    )
    return operation.startswith(SYNCHRONIZING) or masked


def calling_line() -> str:
    """``file:line`` of the innermost frame that is of neither torch, NumPy nor this package."""
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(_LIBRARIES):
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return "an unknown line"

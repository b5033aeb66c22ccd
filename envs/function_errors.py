"""Errors inside a task's functions: their line, and what to write instead."""

from __future__ import annotations

import inspect
import re
import traceback
from pathlib import Path

import torch

from envs.task import Task

_DTYPES = re.compile(
    r"(same|equal|expected|share).*(dtype|scalar type|datatype)|(dtype|scalar type)s? (match|to be)|"
    r"(Double|Float|Long) did not match (Double|Float|Long)"
)
_ONE_NUMBER = (
    "float(), int(), .item() and functions of `math` need one number, and the tensor has one for each world. Use "
    "torch's functions, such as torch.sin"
)
# Errors of torch, by a part of their text.
_ADVICE = {
    "with more than one value is ambiguous": "if, and, or, not, min and max of Python need one value, and the tensor "
    "has one for each world. Use torch.where, &, |, ~, torch.minimum and torch.maximum",
    "one element tensors can be converted": _ONE_NUMBER,
    "elements cannot be converted to Scalar": _ONE_NUMBER,
    "device type tensor to numpy": "NumPy does not read a GPU's tensors. Use torch's functions",
    "tensors to be on the same device": "some are on the CPU. Make tensors with device=self.qpos0.device, and constant "
    "ones in `bind`",
    "device type for generator": "random numbers are drawn on the generator's device. Pass device=generator.device",
}


def line_of(task: type[Task], error: BaseException) -> str:
    """``file:line`` at which an error left the file of a task's class, or the last line of all."""
    frames = traceback.extract_tb(error.__traceback__)
    try:
        file = inspect.getfile(task)
    except (TypeError, OSError):  # a class of an interactive session
        file = None
    frame = ([one for one in frames if one.filename == file] or list(frames))[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def is_dtype_error(error: BaseException) -> bool:
    """Whether torch refused an operation on tensors of different dtypes."""
    text = str(error)
    others = "boolean tensor" in text or "Long or Byte" in text  # an argument that must have one dtype
    return isinstance(error, RuntimeError) and not others and _DTYPES.search(text) is not None


def advice(error: BaseException, dtype: torch.dtype) -> str | None:
    """Advice for an error of torch in a task's function; None for other errors.

    Args:
        error: the error.
        dtype: the engine's.
    """
    if is_dtype_error(error):
        return (
            f"dtypes differ. States and self.qpos0 are {dtype} here, and torch.float32 on a GPU; actions are "
            "torch.float32. Convert others with .to(self.qpos0), constant tensors in `bind`"
        )
    return next((text for part, text in _ADVICE.items() if part in str(error)), None)

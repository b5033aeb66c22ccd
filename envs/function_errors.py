"""Errors inside a task's functions: their line, and which of them are about dtypes."""

from __future__ import annotations

import inspect
import re
import traceback
from pathlib import Path

from envs.task import Task

_DTYPES = re.compile(
    r"(same|equal|expected|share).*(dtype|scalar type|datatype)|(dtype|scalar type)s? (match|to be)|"
    r"(Double|Float|Long) did not match (Double|Float|Long)"
)


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
    return isinstance(error, RuntimeError) and _DTYPES.search(str(error)) is not None

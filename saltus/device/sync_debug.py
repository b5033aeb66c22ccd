"""Finds where a call synchronises with the GPU, by torch's sync debug mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

SYNCHRONIZATION = "called a synchronizing CUDA operation"  # the text of the mode's warnings


def find_synchronizations(call: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Find where a call synchronises with the GPU.

    Returns:
        The call's result, and the places: ``file:line``, or ``"compiled code or torch.ops"``, which have no line.
    """
    mode, result, places = torch.cuda.get_sync_debug_mode(), list[Any](), list[str]()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*prototype feature")  # torch's remark on the mode itself
        warnings.filterwarnings("always", message=f".*{SYNCHRONIZATION}")
        warnings.showwarning = partial(_collect_places, places, warnings.showwarning)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            _CallThroughCpp.apply(call, result, torch.is_grad_enabled())
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return result[0], places


def _collect_places(
    places: list[str], show: Any, message: Warning | str, category: type[Warning], file: str, line: int, *rest: Any
) -> None:
    """Show a warning, or, if it is one of the sync debug mode, add its place to `places`."""
    if SYNCHRONIZATION not in str(message):
        show(message, category, file, line, *rest)
    elif file == torch.autograd.function.__file__:
        places.append("compiled code or torch.ops")
    else:
        places.append(f"{Path(file).name}:{line}")


class _CallThroughCpp(torch.autograd.Function):
    """A call through C++: warnings of compiled code reach Python when the C++ frame returns."""

    @staticmethod
    def forward(_context: Any, call: Callable[[], Any], result: list[Any], with_gradients: bool) -> None:
        with torch.set_grad_enabled(with_gradients):
            result.append(call())

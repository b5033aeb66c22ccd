"""Synchronisations with a GPU are found by torch's warnings, here imitated on the CPU."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from saltus.device import sync_debug
from saltus.device.sync_debug import find_synchronizations


def test_find_synchronizations_names_lines_and_passes_other_warnings_on(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[Any] = ["default"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def call() -> int:
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)
        warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
        warnings.warn("the task's own", stacklevel=1)
        return 3

    with pytest.warns(UserWarning, match="the task's own") as seen:
        result, places = find_synchronizations(call)
    assert result == 3
    assert [str(one.message) for one in seen] == ["the task's own"]
    assert [place.partition(":")[0] for place in places] == ["test_sync_debug.py"]
    assert modes == ["default", "warn", "default"]


def test_find_synchronizations_keeps_the_filters_of_other_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line ignores warnings of torch's modules."""
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: "default")
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    in_torch = {"__name__": "torch.optim.lr_scheduler", "warnings": warnings}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", module="torch")
        find_synchronizations(lambda: exec("warnings.warn('for developers')", in_torch))
        find_synchronizations(lambda: warnings.warn("the task's own", stacklevel=1))
    assert [str(one.message) for one in seen] == ["the task's own"]


def test_find_synchronizations_catches_warnings_of_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_debug, "SYNCHRONIZATION", "degrees of freedom is <= 0")
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: "default")
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    one, weight = torch.ones(1), torch.ones(1, requires_grad=True)

    def call() -> Tensor:
        torch.var(one)
        torch.ops.aten.var.correction(one, correction=1)  # as Inductor calls operations that it does not compile
        if torch.is_grad_enabled():
            (2 * weight).sum().backward()
        return one

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.ops.aten.var.correction(one, correction=1)
    assert caught == [], "Python also sees this warning without a C++ frame"
    with torch.no_grad():
        result, places = find_synchronizations(call)
    assert result is one
    assert weight.grad is None
    assert [place.partition(":")[0] for place in places] == ["test_sync_debug.py", "compiled code or torch.ops"]
    find_synchronizations(call)
    assert weight.grad == 2
    with pytest.raises(ZeroDivisionError):
        find_synchronizations(lambda: 1 / 0)

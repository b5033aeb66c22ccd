"""Differences between two sets of settings, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """The differences between two sets of settings, as ``name VALUE instead of VALUE``."""
    names = dict.fromkeys([*expected, *found])
    return [
        f"{name} {found.get(name)} instead of {expected.get(name)}"
        for name in names
        if found.get(name) != expected.get(name)
    ]

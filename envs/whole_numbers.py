"""Whole numbers among the arguments of users."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

from saltus.errors import SaltusError

MAX_INT = 2**31 - 1
"""The largest number that MuJoCo takes for a count."""


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, also NumPy's; a bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def require_whole(name: str, value: Any, at_least: int, at_most: float = math.inf) -> None:
    """Raise SaltusError unless a value is a whole number, `at_least` or more and `at_most` or less."""
    if not is_whole(value) or value < at_least:
        raise SaltusError(f"{name} is {value!r}; it must be a whole number, {at_least} or more")
    if value > at_most:
        raise SaltusError(f"{name} is {value!r}; it must be at most {at_most:,}")

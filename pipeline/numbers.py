"""Numbers as text."""

from __future__ import annotations


def describe_return(value: float) -> str:
    """A return with one decimal, or with three digits if it is too small or too large for that."""
    return f"{value:.1f}" if value == 0 or 1 <= abs(value) < 1e6 else f"{value:.3g}"

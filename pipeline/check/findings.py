"""Findings of a check, by severity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One sentence about the task.

    Attributes:
        severity: ``error``: training fails or learns something else than meant. ``warning``: probably a mistake, or
            costs much. ``note``: worth knowing.
        text: what was found, and what to do.
    """

    severity: Severity
    text: str


Findings = Iterator[Finding]


def verdict(findings: list[Finding]) -> str:
    """One line: how many errors and warnings there are."""
    counts = {kind: sum(one.severity == kind for one in findings) for kind in ("error", "warning")}
    parts = [f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in counts.items() if count]
    return f"found {' and '.join(parts)}" if parts else "no errors and no warnings: the task is ready to train"

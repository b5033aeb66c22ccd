"""Detectors: each finds one state of a run, from the rows of its tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

Row: TypeAlias = Mapping[str, float]
Progress: TypeAlias = Callable[[float, float], float]
"""The share of the run that is done, of its env steps and seconds so far."""


@dataclass
class State:
    """Whether a state holds. It begins and ends at different values, so that it does not flicker between them."""

    holds: bool = False

    def begins(self, entered: bool, left: bool) -> bool:
        """Update; return whether the state begins now."""
        begins = entered and not self.holds
        self.holds = entered or (self.holds and not left)
        return begins


class Detector:
    """Finds one state. The methods return a message if it begins, else an empty string."""

    def __init__(self) -> None:
        self.state = State()

    def metrics(self, row: Row) -> str:
        """Message after a row of training metrics."""
        return ""

    def evaluation(self, row: Row) -> str:
        """Message after a row of evaluation results."""
        return ""


class Failures(Detector):
    """Every world-step failed, so that rewards are 0 and observations do not change."""

    def metrics(self, row: Row) -> str:
        failed = row["unstable"] + row["nonfinite"] >= row["env_steps"]
        if not self.state.begins(failed, not failed):
            return ""
        return (
            f"every one of {row['env_steps']:,.0f} world-steps failed (unstable: {row['unstable']:,.0f}, not finite: "
            f"{row['nonfinite']:,.0f}): nothing can be learned from them. Check the task's functions, or lower its "
            "model's timestep"
        )


def mean(rows: Iterable[Row], name: str) -> float:
    """The mean of a column."""
    return fmean(row[name] for row in rows)

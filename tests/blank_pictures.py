"""Learning curves without a drawing: to draw one takes longer than a short run."""

from __future__ import annotations

from pathlib import Path

from pipeline.file_names import EVALUATIONS
from pipeline.tables import read_table


def draw_blank(run_dir: Path, _title: str) -> bytes | None:
    """Stand-in for `pipeline.plot._draw`: no picture, or None before the first evaluation."""
    return b"not drawn" if read_table(run_dir / EVALUATIONS) else None

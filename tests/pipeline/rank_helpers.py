"""The saved states of two ranks, for the tests that compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import checkpoint


def states(run_dir: Path) -> list[dict[str, Any]]:
    """Both ranks' states in the last checkpoint, without clocks."""
    *_, last = checkpoint.find(run_dir / "checkpoints")
    common = checkpoint.load(last)["state"]
    part = checkpoint.load_part(last, 1, common["save"])
    for name in ("seconds", "logged"):
        common.pop(name)
    assert common.pop("save") == part.pop("save")
    return [common, part]

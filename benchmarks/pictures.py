"""The pictures of the documents: one next to each result file whose learning curves they show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks import curves, learning
from benchmarks.result import Result
from saltus.errors import SaltusError


def draw(result: Result) -> Path | None:
    """Draw the learning curves of a result file next to it, and return the picture; None if there are no curves."""
    rows = learning.rows_of_panels(result)
    if not rows:
        return None
    path = result.path.with_suffix(".png")
    if path.exists() and curves.drawn_digest(path) is None:
        raise SaltusError(f"{path} is another picture: move it away, or name another result file with --output")
    curves.draw(path, rows)
    return path


def outdated(folder: Path, results: Sequence[Result]) -> list[Result]:
    """The results whose pictures in a folder were drawn from other data, or in another way.

    Raises:
        SaltusError: a picture without a result file that has learning curves.
    """
    found = {result.path.stem: (result, learning.rows_of_panels(result)) for result in results}
    changed = []
    for path in sorted(folder.glob("*.png")):
        result, rows = found.get(path.stem, (None, []))
        if result is None or not rows:
            raise SaltusError(f"{path} shows no result file with learning curves: remove it, or add {path.stem}.jsonl")
        if curves.drawn_digest(path) != curves.digest(rows):
            changed.append(result)
    return changed

"""Learning curve of a run."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from pipeline import files
from pipeline.file_names import EVALUATIONS, LEARNING_CURVE, METRICS
from pipeline.tables import read_table


def learning_curve(run_dir: Path, title: str) -> Path | None:
    """Plot returns over env steps and over wall-clock time; write learning_curve.png.

    Returns:
        The file. None before the first evaluation, or, with a warning, if it could not be written.
    """
    path = run_dir / LEARNING_CURVE
    try:
        picture = _draw(run_dir, title)
        if picture is not None:
            files.write(path, picture)
    except Exception as error:  # of the disk, of matplotlib: a run does not fail at its end
        warnings.warn(f"{path} cannot be written: {error}", stacklevel=2)
        return None
    return None if picture is None else path


def _draw(run_dir: Path, title: str) -> bytes | None:
    """The learning curve as PNG, or None before the first evaluation."""
    from matplotlib.figure import Figure  # not pyplot, whose backend is the program's

    training, evaluations = _columns(run_dir / METRICS), _columns(run_dir / EVALUATIONS)
    if not evaluations:
        return None
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    if training:
        left.plot(
            training["env_steps"],
            training["episode_return"],
            ".-",
            color="0.7",
            markersize=2,
            label="training episodes",
        )
    for axes, x in ((left, "env_steps"), (right, "seconds")):
        axes.plot(evaluations[x], evaluations["return_mean"], ".-", color="C0", label="evaluations: mean, 95% interval")
        axes.fill_between(evaluations[x], evaluations["return_low"], evaluations["return_high"], color="C0", alpha=0.2)
        axes.grid(alpha=0.3)
        axes.update_datalim([(0.0, 0.0)], updatey=False)  # for a margin at the right that is a share of the whole axis
        axes.autoscale_view(scaley=False)
        axes.set_xlim(left=0)
    left.set_xlabel("env steps")
    left.set_ylabel("return")
    right.set_xlabel("wall-clock time (s)")
    left.legend()
    figure.suptitle(title)
    content = io.BytesIO()
    figure.savefig(content, dpi=120)
    return content.getvalue()


def _columns(path: Path) -> dict[str, list[float]]:
    rows = read_table(path)
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}

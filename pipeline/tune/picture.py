"""A picture of a sweep: scores over the trials, and over each option."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from pipeline.search_ranges import Interval
from pipeline.tune.plan import Plan
from pipeline.tune.search import flag, show_value
from pipeline.tune.sweep import Sweep, original_number

COLUMNS = 3


def draw(plan: Plan, sweep: Sweep, trials: Sequence[FrozenTrial]) -> bytes:
    """A picture as PNG; pruned trials are crosses, at their last evaluation."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [*plan.space]
    columns = min(COLUMNS, len(names) + 1)
    rows = -(-(len(names) + 1) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4 * columns, 3 * rows), sharey=True, squeeze=False, layout="constrained"
    )
    try:
        history, *others = axes.flat
        _draw_history(history, trials)
        for axis, name in zip(others, names, strict=False):
            _draw_option(axis, plan, sweep, trials, name)
        for axis in others[len(names) :]:
            axis.set_axis_off()
        for axis in axes[:, 0]:
            axis.set_ylabel("score")
        figure.suptitle(f"{plan.config.task_name}, {plan.preset}: {len(trials)} trials")
        content = io.BytesIO()
        figure.savefig(content, dpi=120)
    finally:
        plt.close(figure)
    return content.getvalue()


def _draw_history(axis: Any, trials: Sequence[FrozenTrial]) -> None:
    complete = sorted(
        (original_number(trial), trial.value or 0.0) for trial in trials if trial.state == TrialState.COMPLETE
    )
    best = [*accumulate((value for _, value in complete), max)]
    axis.step([number for number, _ in complete], best, where="post", color="C1", label="best so far")
    _scatter(axis, [(original_number(trial), trial) for trial in trials])
    axis.set_xlabel("trial")
    axis.grid(alpha=0.3)
    axis.legend()


def _draw_option(axis: Any, plan: Plan, sweep: Sweep, trials: Sequence[FrozenTrial], name: str) -> None:
    values = plan.space[name]
    found = [(options[name], trial) for trial in trials if name in (options := sweep.options_of(trial))]
    if isinstance(values, Interval):
        _scatter(axis, found)
        axis.set_xscale("log" if values.log else "linear")
        middle = math.sqrt(values.low * values.high) if values.log else (values.low + values.high) / 2
        axis.minorticks_off()
        axis.set_xticks(
            [values.low, middle, values.high], [f"{tick:.3g}" for tick in (values.low, middle, values.high)]
        )
    else:
        _scatter(axis, [(values.values.index(value), trial) for value, trial in found])
        axis.set_xticks(range(len(values.values)), map(show_value, values.values))
        axis.set_xlim(-0.5, len(values.values) - 0.5)
    axis.set_xlabel(flag(name))
    axis.grid(alpha=0.3)


def _scatter(axis: Any, found: Sequence[tuple[float, FrozenTrial]]) -> None:
    """Draw the values of complete and of pruned trials."""
    for state, label, style in (
        (TrialState.COMPLETE, "complete", {"color": "C0"}),
        (TrialState.PRUNED, "pruned", {"color": "0.6", "marker": "x"}),
    ):
        shown = [(place, trial.value) for place, trial in found if trial.state == state]
        if shown:
            axis.scatter(*zip(*shown, strict=True), s=20, label=label, zorder=3, **style)

"""The kit's section of short training runs."""

from __future__ import annotations

import re
from tempfile import TemporaryDirectory

from benchmarks import json_result as result
from benchmarks.gpu.context import SectionContext
from benchmarks.training_run import train_for

EVALUATION = re.compile(r"evaluation at .*: return (-?[\d.]+) ")
LEVELS = (1000, 3000, 5000, 8000)
TIME_TO_SAVE = 40.0  # seconds that a training run has to save and end


def training(context: SectionContext) -> None:
    """Record short learning curves over wall-clock time from process start, evaluated on the CPU engine.

    What earlier sections compiled is not compiled again.
    """
    rows: list[list[result.Cell]] = []
    failed = []
    for task, seconds, options in context.sizes.training:
        with TemporaryDirectory(prefix="saltus-", ignore_cleanup_errors=True) as folder:
            arguments = [task, "--device", context.device.type, "--run-dir", f"{folder}/run", *options.split()]
            limit = min(seconds, context.seconds_left() - TIME_TO_SAVE - 10)
            exit_code, took, lines = train_for(limit, arguments, cache=None, grace=TIME_TO_SAVE)
        curve = [(when, float(found[1])) for when, line in lines if (found := EVALUATION.match(line))]
        output = [line.replace(folder, "RUN") for _, line in lines[-40:]]
        context.note(
            "training", task=task, options=options, exit_code=exit_code, seconds=took, curve=curve, output=output
        )
        reached = [next((when for when, value in curve if value >= level), None) for level in LEVELS]
        best = max((value for _, value in curve), default=None)
        rows.append([f"{task} {options}", len(curve), best, *reached])
        if exit_code != 0:
            failed.append(f"{task}: exit code {exit_code}: {output[-1] if output else 'no output'}")
    columns = ["run", "evaluations", "best return", *[f"s to {level:,}" for level in LEVELS]]
    context.table("Short training runs, seconds from process start", columns, rows)
    if failed:
        raise RuntimeError("; ".join(failed))

"""The kit's section of short training runs."""

from __future__ import annotations

import re
from tempfile import TemporaryDirectory

from benchmarks.gpu.context import SectionContext
from benchmarks.training_run import LINES_OF_FAILURE, train_for

EVALUATION = re.compile(r"evaluation at .*: return (-?[\d.]+(?:e[+-]\d+)?) ")
TIME_TO_SAVE = 40.0  # seconds that a training run has to save and end


def training(context: SectionContext) -> None:
    """Record short learning curves over wall-clock time from process start, evaluated on the CPU engine.

    What earlier sections compiled is not compiled again.
    """
    failed = []
    for task, seconds, options in context.sizes.training:
        with TemporaryDirectory(prefix="saltus-", ignore_cleanup_errors=True) as folder:
            arguments = [task, "--device", context.device.type, "--run-dir", f"{folder}/run", *options.split()]
            limit = min(seconds, context.seconds_left() - TIME_TO_SAVE - 10)
            exit_code, took, lines = train_for(limit, arguments, cache=None, grace=TIME_TO_SAVE)
        found = [(when, float(match[1])) for when, line in lines if (match := EVALUATION.match(line))]
        output = [line.replace(folder, "RUN") for _, line in lines if line.strip()][-LINES_OF_FAILURE:]
        context.note(
            "training", task=task, options=options, exit_code=exit_code, seconds=took,
            curve={"wall_seconds": [when for when, _ in found], "return": [value for _, value in found]},
            output=output if exit_code else [],
        )  # fmt: skip
        if exit_code != 0:
            failed.append(f"{task}: exit code {exit_code}: {output[-1] if output else 'no output'}")
    if failed:
        raise RuntimeError("; ".join(failed))

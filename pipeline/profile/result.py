"""The result of a profile: its numbers, its JSON file, its comparison with another one."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from pipeline.profile.measure import Measurement, Step, training_seconds
from pipeline.profile.phases import OUTSIDE, PHASES
from saltus.errors import SaltusError
from saltus.versions import versions

FORMAT = "saltus profile 1"
MIN_CHANGE = 0.03  # smaller changes are those from one process to the next

Result = dict[str, Any]


def summarize(measured: Measurement) -> Result:
    """The numbers of a measurement, as JSON has them.

    Phases have median and 90th percentile over vector steps, mean, share of all vector steps, and the mean of each
    block, in seconds per vector step. Evaluations and checkpoints are excluded, and have their totals.
    """
    steps, config = measured.steps, measured.config
    total = sum(training_seconds(step.phases) for step in steps)
    blocks = [[step for step in steps if step.block == block] for block in sorted({step.block for step in steps})]
    durations = sorted(training_seconds(step.phases) for step in steps)
    names = [name for name in PHASES if any(name in step.phases for step in steps)]
    accounted = sum(sum(step.phases.values()) for step in steps)
    return {
        "format": FORMAT,
        "task": config.task,
        "config": config.to_dict(),
        "versions": versions(),
        "machine": {
            "processor": _processor(),
            "device": measured.device,
            "threads": torch.get_num_threads(),
            "physics": measured.physics,
        },
        "cold_start": measured.cold_start,
        "vector_steps": len(steps),
        "updates": sum(step.updates for step in steps),
        "seconds": measured.wall_clock,
        "accounted": accounted / measured.wall_clock if measured.wall_clock else 1.0,
        "vector_step": {"median": median(durations), "p90": _p90(durations), "mean": total / len(steps)},
        "rates": {name: rate(steps) for name, rate in _rates(config.num_envs).items()},
        "block_rates": {name: [rate(block) for block in blocks] for name, rate in _rates(config.num_envs).items()},
        "phases": {name: _phase(name, steps, blocks, total, measured.roofs.get(name)) for name in names},
        "outside": {name: sum(step.phases.get(name, 0.0) for step in steps) for name in OUTSIDE},
        "failures": measured.failures,
        "waits": measured.waits,
        "waits_of_metrics": measured.waits_of_metrics,
        "launches": {"nodes": measured.nodes, "seconds": measured.nodes * measured.node_seconds},
        "round_seconds": measured.round_seconds,
    }


def _rates(num_envs: int) -> dict[str, Callable[[list[Step]], float]]:
    def seconds(steps: list[Step]) -> float:
        return sum(training_seconds(step.phases) for step in steps)

    return {
        "env_steps_per_second": lambda steps: num_envs * len(steps) / seconds(steps),
        "updates_per_second": lambda steps: sum(step.updates for step in steps) / seconds(steps),
    }


def _phase(name: str, steps: list[Step], blocks: list[list[Step]], total: float, roof: float | None) -> Result:
    values = [step.phases.get(name, 0.0) for step in steps]
    mean = sum(values) / len(values)
    return {
        "median": median(values),
        "p90": _p90(values),
        "mean": mean,
        "share": sum(values) / total,
        "roof": roof,
        "of_roof": None if roof is None or mean == 0 else roof / mean,
        "blocks": [sum(step.phases.get(name, 0.0) for step in block) / len(block) for block in blocks],
    }


def _p90(values: list[float]) -> float:
    return quantiles(values, n=10, method="inclusive")[-1] if len(values) > 1 else values[0]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def load(path: Path) -> Result:
    """Read a result that `--json` wrote.

    Raises:
        SaltusError: a missing or damaged file, or one of another format.
    """
    try:
        content = json.loads(path.read_text())
        written = content.get("format")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is damaged, or no JSON object"
        raise SaltusError(f"{path} cannot be read: {reason}. Name a file that `saltus profile --json` wrote") from None
    if written != FORMAT:
        raise SaltusError(
            f"{path} has format {written!r}, and this version reads {FORMAT!r}: write it anew with `saltus profile "
            "--json`"
        )
    if not _is_whole(content):
        raise SaltusError(f"{path} is damaged: parts of a profile are missing. Write it anew")
    return content


def _is_whole(content: Result) -> bool:
    """Whether a result has everything that `compare` reads."""
    try:
        numbers = [*content["block_rates"].values(), *(phase["blocks"] for phase in content["phases"].values())]
        kinds = isinstance(content["task"], str), isinstance(content["config"], dict), dict(content["machine"])
        complete = {*content["block_rates"]} == {*_rates(1)} and all(kinds)
        return complete and all(values and all(isinstance(one, int | float) for one in values) for values in numbers)
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def require_same_task(before: Result, task: str, path: Path) -> None:
    """Raise SaltusError if a result belongs to another task."""
    if before["task"] != task:
        raise SaltusError(f"{path} is a profile of {before['task']}, and this is {task}: compare profiles of one task")


def compare(before: Result, after: Result) -> tuple[list[str], bool]:
    """Lines on what became slower or faster, and whether anything became slower.

    A change counts if the ranges of the blocks do not overlap, and the medians differ by more than `MIN_CHANGE`: of the
    rate, or for a phase of the vector step.
    """
    lines = [f"settings differ: {change}" for change in _differences(before["config"], after["config"])]
    known = before["machine"].keys() & after["machine"].keys()  # an older result has fewer
    machines = [{name: one["machine"][name] for name in sorted(known)} for one in (before, after)]
    lines += [f"machine differs: {change}" for change in _differences(*machines)]
    slower = False
    for name, old in before["block_rates"].items():
        new = after["block_rates"][name]
        change = median(new) / median(old) - 1 if median(old) else 0.0
        if abs(change) > MIN_CHANGE and _disjoint(old, new):
            slower |= change < 0
            word = "slower" if change < 0 else "faster"
            lines.append(f"{name.replace('_', ' ')}: {word}, {median(old):,.0f} -> {median(new):,.0f} ({change:+.0%})")
    step = sum(median(phase["blocks"]) for phase in before["phases"].values())
    for name in dict.fromkeys([*before["phases"], *after["phases"]]):
        old, new = (one["phases"].get(name, {"blocks": [0.0]})["blocks"] for one in (before, after))
        change = median(new) - median(old)
        if abs(change) > MIN_CHANGE * step and _disjoint(old, new):
            slower |= change > 0
            word = "slower" if change > 0 else "faster"
            lines.append(f"{name}: {word}, {1e3 * median(old):.3f} -> {1e3 * median(new):.3f} ms per vector step")
    return lines, slower


def _disjoint(left: list[float], right: list[float]) -> bool:
    return max(left) < min(right) or max(right) < min(left)


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    names = dict.fromkeys([*before, *after])
    return [f"{name} {before.get(name)} -> {after.get(name)}" for name in names if before.get(name) != after.get(name)]

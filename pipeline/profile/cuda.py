"""Times on the GPU: by events between graphs, and by replaying the parts of a round that one graph hides."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from pipeline.learner import batches_at_once
from pipeline.profile.options import rounds_per_cycle
from pipeline.profile.phases import ROUND, PhaseTimer, update_name
from pipeline.run import Run
from saltus.device.cuda_graph import CapturedFunction
from saltus.device.sync_debug import find_synchronizations

_REPLAYS = 20
_NODES = 1000


class EventTimer(PhaseTimer):
    """Also records an event at every change of phase; `device_seconds` are the times between them on the GPU."""

    def __init__(self) -> None:
        self._spans: list[list[tuple[str, torch.cuda.Event, torch.cuda.Event]]] = []
        super().__init__()

    def begin(self) -> None:
        super().begin()
        self._last, self._spans = _event(), [[]]

    def end_step(self) -> dict[str, float]:
        seconds = super().end_step()
        self._spans.append([])
        return seconds

    def charge(self) -> None:
        phase = self._stack[-1]
        super().charge()
        if not torch.cuda.is_current_stream_capturing():
            event = _event()
            self._spans[-1].append((phase, self._last, event))
            self._last = event

    def device_seconds(self) -> list[dict[str, float]]:
        """Seconds of each phase on the GPU's time line, for every vector step since `begin`."""
        torch.cuda.synchronize()
        steps = []
        for spans in self._spans[:-1]:
            seconds: dict[str, float] = {}
            for phase, begin, end in spans:
                seconds[phase] = seconds.get(phase, 0.0) + begin.elapsed_time(end) / 1e3
            steps.append(seconds)
        return steps


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def split_rounds(run: Run, steps: list[dict[str, float]]) -> None:
    """Divide the time of captured rounds among sampling and updates, in proportion to replays of each part alone."""
    if not any(ROUND in step for step in steps):
        return
    parts = _part_seconds(run)
    total = sum(parts.values())
    for step in steps:
        seconds = step.pop(ROUND, 0.0)
        for name, part in parts.items():
            step[name] = step.get(name, 0.0) + seconds * part / total


def _part_seconds(run: Run) -> dict[str, float]:
    """Seconds of sampling and of each update per critic update, each captured alone; the run is not used afterwards."""
    config, updates = run.config, run.learner.updates
    batch = run.buffer.sample(config.batch_size)[0]

    def sample() -> dict[str, Tensor]:
        for count in batches_at_once(config.updates_per_round):
            batches = run.buffer.sample(config.batch_size, count)
        return {"observation": batches[-1]["observation"]}

    with run.learner.product_precision():
        parts = {"sample": _replay_seconds(sample, run) / config.updates_per_round}
        for index, (always, update) in enumerate(updates):
            one = _replay_seconds(partial(update, batch), run)
            parts[update_name(index, updates)] = one / (1 if always else config.policy_delay)
    return parts


def _replay_seconds(function: Callable[[], dict[str, Tensor]], run: Run) -> float:
    return _seconds(CapturedFunction(function, "a part of a round", run.device, run.buffer.generator))


def round_seconds(run: Run) -> float:
    """Seconds of a captured round until the GPU is done, with the run's mean number of actor updates."""
    cycle = rounds_per_cycle(run.config)

    def rounds() -> None:
        for _ in range(cycle):
            run.learner.round(run.buffer, run.config.updates_per_round)

    return _seconds(rounds) / cycle


def _seconds(call: Callable[[], Any]) -> float:
    """Median seconds of a call, until the GPU is done. The first calls, which capture, do not count."""
    durations = []
    for _ in range(3 + _REPLAYS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        durations.append(time.perf_counter() - start)
    return median(durations[3:])


def node_seconds(device: torch.device) -> float:
    """Seconds of a graph's node that does next to nothing."""
    value = torch.zeros(1, device=device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_NODES):
            value.add_(1)
    graph.replay()
    torch.cuda.synchronize()
    start = time.perf_counter()
    graph.replay()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / _NODES


def count_kernels(call: Callable[[], Any]) -> int:
    """Number of kernels and copies that a call runs on the GPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiler.events())


def find_waits(call: Callable[[], Any]) -> list[str]:
    """File and line of each place where a call waits for the GPU."""
    return list(dict.fromkeys(find_synchronizations(call)[1]))

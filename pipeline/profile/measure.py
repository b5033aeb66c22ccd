"""A profiled run: the loop of `saltus train`, with timed phases and interleaved roofs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from envs.environment import Environment
from envs.physics.cpu import CpuPhysics
from pipeline.config import Config
from pipeline.logger import Logger
from pipeline.profile.cuda import EventTimer, count_kernels, find_waits, node_seconds, round_seconds, split_rounds
from pipeline.profile.options import rounds_per_cycle, warmup_rounds
from pipeline.profile.phases import OUTSIDE, PhaseTimer, attached, worlds_of
from pipeline.profile.roofs import Roofs
from pipeline.profile.trace import traced
from pipeline.run import Run
from pipeline.run_dir import create, new_run
from pipeline.train import train
from saltus.errors import SaltusError

BLOCKS = 5  # parts of the measurement, whose spread is its noise; the roofs are measured between them
TRACED_STEPS = 20
FAILURES = "unstable", "nonfinite", "overflowed"


@dataclass
class Step:
    """A vector step: its block, seconds of each phase, number of updates."""

    block: int
    phases: dict[str, float]
    updates: int


@dataclass
class Measurement:
    """Vector steps, cold start, roofs and failures of a profiled run.

    Attributes:
        device: of the updates.
        physics: the engine that simulated, "cpu" or "warp".
        cold_start: seconds of each part of the time before the measurement.
        wall_clock: seconds of the blocks, by a clock of their own.
        roofs: seconds of each phase's roof per vector step.
        failures: failed world-steps, by kind.
        waits: places where the host waits for the GPU in a vector step with a round, with file and line.
        waits_of_metrics: places where it waits at a row of metrics.
        nodes: kernels and copies on the GPU, in the mean of vector steps with and without a round.
        node_seconds: duration of a graph's node that does next to nothing.
        round_seconds: duration on the GPU of a captured round that runs while the CPU simulates, else 0.
    """

    config: Config
    device: str
    physics: str
    cold_start: dict[str, float] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    wall_clock: float = 0.0
    roofs: dict[str, float] = field(default_factory=dict)
    failures: dict[str, float] = field(default_factory=dict)
    waits: list[str] = field(default_factory=list)
    waits_of_metrics: list[str] = field(default_factory=list)
    nodes: float = 0.0
    node_seconds: float = 0.0
    round_seconds: float = 0.0


class _TimedRun(Run):
    """A run that notes how long its worlds took to make."""

    worlds_seconds = 0.0

    def make_training_env(self) -> Environment:
        start = time.monotonic()
        env = super().make_training_env()
        self.worlds_seconds = time.monotonic() - start
        return env


def measure(
    config: Config,
    seconds: float,
    console: Console,
    started: float,
    *,
    with_roofs: bool = True,
    run_dir: Path | None = None,
    trace: Path | None = None,
) -> Measurement:
    """Run the training loop until `seconds` of it are measured.

    Args:
        config: the run's configuration.
        seconds: length of the measurement, evaluations and checkpoints excluded.
        console: displays the run's progress.
        started: when the process or this profile started, by `time.monotonic`.
        with_roofs: measure the roofs between the blocks.
        run_dir: keep the run here; None: in a temporary directory.
        trace: file to write a trace to.

    Raises:
        SaltusError: the run ended before a round was measured.
    """
    with ExitStack() as stack:
        imported = time.monotonic()
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="saltus_profile_")))
        run = _TimedRun(config, temporary)
        made, physics = time.monotonic(), worlds_of(run).physics
        result = Measurement(config, str(run.device), "cpu" if isinstance(physics, CpuPhysics) else "warp")
        kernels = getattr(physics, "load_seconds", 0.0)
        result.cold_start = {
            "imports": imported - started,
            "worlds": run.worlds_seconds - kernels,
            "Warp's kernels": kernels,
            "networks, replay buffer": made - imported - run.worlds_seconds,
        }
        if run_dir is None:
            create(config, temporary, run.env.model)
        else:
            run.run_dir = stack.enter_context(new_run(config, run_dir, run.env.model))
        logger = stack.enter_context(Logger(run.run_dir, config, 0, console))
        script = _script(run, logger, result, seconds, made, Roofs(run) if with_roofs else None, trace)
        if run_dir is None:
            script = _then_skip_saving(run, script)
        train(run, logger, _Stopping(run, script))
    if not sum(step.updates for step in result.steps):
        raise SaltusError(
            f"the run ended after {run.env_steps:,} env steps, before a round of updates was measured: raise "
            "total_env_steps"
        )
    return result


class _Stopping:
    """The loop asks before every vector step whether to stop: advance the script, until it ends."""

    def __init__(self, run: Run, script: Iterator[None]):
        self._run, self._script = run, script

    def __call__(self) -> bool:
        if self._run.evaluation_pending:  # an evaluation asks, as well
            return False
        return next(self._script, True) is True


def _then_skip_saving(run: Run, script: Iterator[None]) -> Iterator[None]:
    yield from script
    setattr(run, "save", lambda logger: None)  # noqa: B010 - the directory is about to be removed


def _script(
    run: Run,
    logger: Logger,
    result: Measurement,
    seconds: float,
    made: float,
    roofs: Roofs | None,
    trace: Path | None,
) -> Iterator[None]:
    """Warm up, measure block after block with the roofs in between, and trace. Each `yield` is a vector step."""
    yield from _warm_up(run, result, made)
    before = run.env.statistics()
    for block in range(BLOCKS):
        yield from _measure_block(run, logger, result, block, seconds / BLOCKS)
        if roofs is not None:
            roofs.turn()
    after = run.env.statistics()
    result.failures = {name: after[name] - before[name] for name in FAILURES}
    if roofs is not None:
        updates = sum(step.updates for step in result.steps) / len(result.steps)
        result.roofs = roofs.seconds_per_step(updates)
    if run.device.type == "cuda":
        _measure_graphs(run, logger, result)
    if trace is not None:
        with traced(run, logger, trace):
            for _ in range(TRACED_STEPS):
                yield


def _measure_graphs(run: Run, logger: Logger, result: Measurement) -> None:
    every = run.config.steps_per_round
    cycle = every * rounds_per_cycle(run.config)

    def vector_step() -> None:
        action = run.act()
        if run.vector_steps % every == 0:
            run.learn(logger)
        run.buffer.extend(run.step(action))

    def whole_rounds() -> None:
        for _ in range(cycle):
            vector_step()

    result.nodes = count_kernels(whole_rounds) / cycle
    result.waits = find_waits(vector_step)
    result.waits_of_metrics = find_waits(lambda: run.log(logger))
    result.node_seconds = node_seconds(run.device)
    if run.env.simulation_device.type == "cuda":
        split_rounds(run, [step.phases for step in result.steps])
    elif run.learner.captured:  # a round's time on the host is that of its launch
        result.round_seconds = round_seconds(run)


def _warm_up(run: Run, result: Measurement, made: float) -> Iterator[None]:
    config, begun = run.config, time.monotonic()
    while not run.learning:
        yield
    learning = time.monotonic()
    while run.learner.compiling or run.learner.gradient_steps < warmup_rounds(config) * config.updates_per_round:
        yield
    while run.vector_steps % config.steps_per_round:
        yield
    compilation = run.learner.compile_seconds
    result.cold_start |= {
        "run's files": begun - made,
        "random actions": learning - begun,
        "compilation": compilation,
        "warm-up": time.monotonic() - learning - compilation,
    }


def _measure_block(run: Run, logger: Logger, result: Measurement, block: int, seconds: float) -> Iterator[None]:
    """Time vector steps, whole rounds of them, until they took `seconds` without evaluations and checkpoints.

    With physics on the GPU the phases are times on the GPU, else on the host.
    """
    on_gpu, first, spent = run.env.simulation_device.type == "cuda", len(result.steps), 0.0
    timer = EventTimer() if on_gpu else PhaseTimer()
    with attached(run, logger, timer.wrap):
        start = time.monotonic()
        timer.begin()
        while spent < seconds or run.vector_steps % run.config.steps_per_round:
            updates = run.learner.gradient_steps
            yield
            step = Step(block, timer.end_step(), run.learner.gradient_steps - updates)
            result.steps.append(step)
            spent += training_seconds(step.phases)
        if isinstance(timer, EventTimer):
            for step, phases in zip(result.steps[first:], timer.device_seconds(), strict=True):
                step.phases = phases
        result.wall_clock += time.monotonic() - start


def training_seconds(phases: dict[str, float]) -> float:
    """Seconds of a vector step, without evaluation and checkpoint."""
    return sum(value for name, value in phases.items() if name not in OUTSIDE)

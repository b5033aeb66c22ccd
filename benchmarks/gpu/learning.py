"""The kit's sections of learning: updates, synchronisations, a profile, and the whole loop."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from tensordict import TensorDict

import envs
from benchmarks import peers, runner
from benchmarks.campaign import describe
from benchmarks.data import random_transitions
from benchmarks.gpu.context import SectionContext
from benchmarks.gpu.simulation import random_actions, warp_env
from benchmarks.update import BATCH_SIZE, HIDDEN, learning, make_learner
from envs.physics.cpu import available_cores
from saltus.device.sync_debug import find_synchronizations

PROFILED_ROUNDS = 5


@dataclass(frozen=True)
class UpdateCase:
    """An update to measure, with the sizes of a task's observations and actions.

    Attributes:
        table: the title of the case's table.
        preset: a preset of saltus; None: LeanRL's way.
        count: updates per round.
        options: other settings of the preset.
    """

    table: str
    name: str
    preset: str | None
    task: str
    batch_size: int
    count: int
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, context: SectionContext) -> runner.Work:
        """Its work; LeanRL's runs in a process of its own."""
        return runner.isolated(partial(self.make_here, context)) if self.preset is None else self.make_here(context)

    def make_here(self, context: SectionContext) -> runner.Work:
        """Its work, in this process."""
        if self.preset is None:
            return peers.leanrl(_data(context, self.task), self.batch_size, HIDDEN, self.count)
        options = {"batch_size": self.batch_size, "compile": context.sizes.compile, **self.options}
        return learning(self.task, _data(context, self.task), self.count, self.preset, **options)


SAC = "saltus sac"


def update_cases(context: SectionContext) -> list[UpdateCase]:
    """The cases of `updates`: all ways of updating for the first task and batch size, some for the others."""
    first, *others = context.sizes.updates
    task, *other_tasks = context.sizes.worlds
    cases = []
    for name, preset, options in (
        (SAC, "sac", {}),
        (f"{SAC}, TF32 products", "sac", {"matmul_dtype": "tf32"}),
        (f"{SAC}, bfloat16 products", "sac", {"matmul_dtype": "bfloat16"}),
        ("saltus fast", "fast", {}),
        ("LeanRL's way", None, {}),
    ):
        where = [(task, *first)]
        if name == SAC or "tf32" in options.values():
            where += [(task, *other) for other in others]
        if preset is not None and not options:
            where += [(other, *first) for other in other_tasks]
        for one, batch_size, count in where:
            table = f"{one}: updates/s, batch {batch_size}, {count} a round"
            if context.device.type == "cuda" or options.get("matmul_dtype") != "tf32":
                cases.append(UpdateCase(table, name, preset, one, batch_size, count, dict(options)))
    return cases


def updates(context: SectionContext) -> None:
    """Updates/s of sac and of LeanRL's way, over batch size and updates per round."""
    cases = update_cases(context)
    for table in dict.fromkeys(case.table for case in cases):
        made = {case.name: partial(case.make, context) for case in cases if case.table == table}
        context.compare("updates", table, made, SAC)


def compilation(context: SectionContext) -> None:
    """Compile the updates that other sections measure, all at once, each in a process of its own.

    One after another they would take most of the kit's time. Their code is cached on disk.
    """
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "2"  # of each process
    cases = update_cases(context)
    with ThreadPoolExecutor(min(len(cases), available_cores())) as pool:
        list(pool.map(partial(_compile, context), cases))


def _compile(context: SectionContext, case: UpdateCase) -> None:
    start = time.monotonic()
    try:
        runner.isolated(partial(_run_once, context, case))
    except Exception as error:
        context.failures.append(f"{case.table}: {case.name} failed: {describe(error)}")
    seconds = time.monotonic() - start
    context.note("compilation", table=case.table, case=case.name, seconds=seconds)


def _run_once(context: SectionContext, case: UpdateCase) -> runner.Work:
    case.make_here(context)()
    return lambda: 0


def _data(context: SectionContext, task: str) -> TensorDict:
    env = envs.make(task, 1)
    return random_transitions(context.sizes.buffer, env.observation_dim, env.action_dim).to(context.device)


def synchronization(context: SectionContext) -> None:
    """Find host synchronisations in a round of updates and in a control step, by torch's sync debug mode."""
    task, worlds = next(iter(context.sizes.worlds.items()))
    env = warp_env(task, worlds[0], context.device)
    batch_size, count = context.sizes.updates[0]
    options = {"batch_size": batch_size, "compile": context.sizes.compile}
    learner, buffer = make_learner(task, _data(context, task), "sac", **options)
    actions = itertools.cycle(random_actions(env))
    work: dict[str, Callable[[], Any]] = {
        "round of updates": lambda: learner.round(buffer, count),
        "control step": lambda: env.step(next(actions)),
    }
    for name, call in work.items():
        _repeat(call, 4)
        found = find_synchronizations(partial(_repeat, call, 3))[1] if context.device.type == "cuda" else []
        context.note("synchronization", work=name, count=len(found), places=found)


def _repeat(call: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        call()


def profile(context: SectionContext) -> None:
    """Count the kernels of a round, and the share of the time in which one runs."""
    batch_size, count = context.sizes.updates[0]
    task = next(iter(context.sizes.worlds))
    options = {"batch_size": batch_size, "compile": context.sizes.compile}
    for preset in ("sac", "fast"):
        learner, buffer = make_learner(task, _data(context, task), preset, **options)
        kernels, busy, seconds = _profiled(context, partial(learner.round, buffer, count))
        each = kernels / (PROFILED_ROUNDS * count)
        context.note("profile", preset=preset, kernels_per_update=each, busy_share=busy / seconds, seconds=seconds)


def _profiled(context: SectionContext, call: Callable[[], object]) -> tuple[int, float, float]:
    """Number of kernels of PROFILED_ROUNDS calls, the kernels' seconds, and the seconds of all."""
    device = context.device
    _repeat(call, context.sizes.warmup_calls)
    peers.synchronize(device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiled:
        start = time.perf_counter()
        _repeat(call, PROFILED_ROUNDS)
        peers.synchronize(device)
        seconds = time.perf_counter() - start
    kernels = [event for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return len(kernels), sum(event.time_range.elapsed_us() for event in kernels) / 1e6, seconds


def loop(context: SectionContext) -> None:
    """Time acting, stepping, storing and learning together, compared with stepping alone and learning alone."""
    count = context.sizes.updates[0][1]
    for task, numbers in context.sizes.worlds.items():
        worlds = numbers[-1]
        step, learn = _parts_of_the_loop(context, task, worlds, count)
        seconds = {
            "stepping": _seconds(context, step),
            "learning": _seconds(context, learn),
            "both": _seconds(context, step, learn),
        }
        ratio = (seconds["stepping"] + seconds["learning"]) / seconds["both"]
        context.note("loop", task=task, worlds=worlds, updates_a_step=count, ratio=ratio, **seconds)


def _parts_of_the_loop(
    context: SectionContext, task: str, worlds: int, count: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    """A function that acts, steps and stores, and one that learns."""
    env = warp_env(task, worlds, context.device)
    data = random_transitions(10 * worlds, env.observation_dim, env.action_dim).to(context.device)
    settings = {"batch_size": min(BATCH_SIZE, 5 * worlds), "num_envs": worlds, "utd_ratio": count / worlds}
    settings["compile"] = context.sizes.compile
    learner, buffer = make_learner(task, data, "sac", total_env_steps=10**9, **settings)
    observation = env.reset()

    def step() -> None:
        nonlocal observation
        action = learner.act(observation, torch.randn(worlds, env.action_dim, device=context.device))
        transition, observation = env.step(action)
        buffer.extend(transition)

    return step, lambda: learner.round(buffer, count)


def _seconds(context: SectionContext, *calls: Callable[[], object]) -> float:
    """Median duration of one call of each, in seconds."""
    for _ in range(4):
        for call in calls:
            call()
    peers.synchronize(context.device)
    times = []
    for _ in range(context.sizes.repeats):
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < context.sizes.seconds:
            for call in calls:
                call()
            peers.synchronize(context.device)
            done += 1
        times.append((time.perf_counter() - start) / done)
    return median(times)

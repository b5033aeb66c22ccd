"""The kit's section of the CPU: how its part of the work scales with the machine's cores."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

import envs
from benchmarks import runner
from benchmarks.data import random_transitions
from benchmarks.gpu.context import SectionContext
from benchmarks.gpu.simulation import random_actions
from benchmarks.update import learning
from envs.physics.cpu import available_cores

UPDATES = 8  # per round


def cores(context: SectionContext) -> None:
    """Measure env steps/s of the CPU engine and updates/s on the CPU, each with 1, 2, 4, ... threads."""
    counts = _thread_counts(available_cores())
    for task, worlds in context.sizes.cpu_worlds.items():
        cases = {_threads(count): partial(_env_steps, task, worlds, count) for count in counts}
        context.compare("cores", f"{task}, {worlds} worlds, CPU engine: env steps/s", cases, _threads(counts[-1]))
    task = next(iter(context.sizes.worlds))
    with ThreadPoolExecutor(len(counts)) as pool:  # compile at once
        built = pool.map(lambda count: runner.isolated(partial(_updates, context, task, count)), counts)
        made = dict(zip(map(_threads, counts), built, strict=True))
    ready = {name: partial(_same, work) for name, work in made.items()}
    context.compare("cores", f"{task}, fast on the CPU: updates/s", ready, _threads(counts[-1]))


def _thread_counts(available: int) -> list[int]:
    """Powers of two below the number of cores, and that number."""
    return [count for count in (1, 2, 4, 8, 16, 32, 64) if count < available] + [available]


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _env_steps(task: str, worlds: int, threads: int) -> runner.Work:
    env = envs.make(task, worlds, physics="cpu", num_threads=threads)
    env.reset()
    actions = itertools.cycle(random_actions(env))

    def step() -> int:
        env.step(next(actions))
        return worlds

    return step


def _updates(context: SectionContext, task: str, threads: int) -> runner.Work:
    """Rounds of updates in this process, after the first, which compiles."""
    torch.set_num_threads(threads)
    env = envs.make(task, 1)
    data = random_transitions(context.sizes.buffer, env.observation_dim, env.action_dim).to("cpu")
    work = learning(task, data, UPDATES, "fast", compile=context.sizes.compile)
    work()
    return work


def _same(work: runner.Work) -> runner.Work:
    return work

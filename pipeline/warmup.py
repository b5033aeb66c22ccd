"""``saltus warmup TASK``: compiles what a training runs into the caches on disk, before the training needs it.

Each update, and the worlds' Warp kernels, compile in a process of their own. The training finds the code by what it was
compiled from, so the options must be those of the training.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from tensordict import TensorDict

from envs import transition as transitions
from envs.environment_ref import resolve_environment
from envs.physics.cpu import available_cores
from envs.physics.warp_model import modules
from envs.simulation import Simulation
from envs.task_ref import TaskRef
from pipeline.agent import Agent
from pipeline.buffer import ReplayBuffer
from pipeline.config import Config
from pipeline.console import print_line
from pipeline.dimensions import Dimensions
from pipeline.learner import Learner
from pipeline.train_options import parse_options
from pipeline.worlds import environment_maker
from saltus.device import resolve_device
from saltus.device.warm_start import cache_folder, cache_lasts
from saltus.errors import SaltusError

_WORLDS = 64


@dataclass(frozen=True)
class Compiled:
    """Compiled code of one process.

    Attributes:
        name: what it is.
        seconds: duration, with loading or running it once.
        new: whether it was not in the cache.
        folder: the cache.
    """

    name: str
    seconds: float
    new: bool
    folder: str

    def __str__(self) -> str:
        return f"{self.name}: {'compiled in' if self.new else 'in the cache already, loaded in'} {self.seconds:.1f} s"


def warmup(arguments: list[str], console: Console) -> None:
    """Compile, and print what was compiled, how long it took and where it is.

    Raises:
        SaltusError: options that do not work, or code that cannot be compiled.
    """
    options = parse_options(arguments, "warmup")
    if options.run_dir is not None:
        raise SaltusError("--run-dir has no effect here: warmup makes no run")
    jobs, done = plan(options.config), []
    if not jobs:
        print_line(console, "nothing to compile: --no-compile, and the CPU simulates")
        return
    try:
        with ProcessPoolExecutor(min(len(jobs), available_cores()), get_context("spawn")) as pool:
            for future in as_completed([pool.submit(job) for job in jobs]):
                done.append(future.result())
                print_line(console, str(done[-1]))
    except BrokenProcessPool:
        raise SaltusError(
            "a process that compiled was killed (is the memory full?): free memory, or use one core: "
            "`taskset -c 0 saltus warmup ...`"
        ) from None
    print_line(console, f"caches: {', '.join(dict.fromkeys(one.folder for one in done))}")


def plan(config: Config) -> list[Callable[[], Compiled]]:
    """The compilations that a training needs, each for a process of its own.

    Raises:
        SaltusError: updates are to be compiled, and no folder for compiled code can be written; or as
            `Simulation.resolve`.
    """
    device = resolve_device(config.device)
    jobs: list[Callable[[], Compiled]] = []
    if config.compile:
        if not cache_lasts():
            raise SaltusError(
                "compiled code cannot be cached: set TORCHINDUCTOR_CACHE_DIR to a folder that can be written"
            )
        names = ["the update"] if config.policy_delay == 1 else ["the critics' update", "the actor's update"]
        jobs = [partial(compile_update, config, number, name) for number, name in enumerate(names)]
    simulated = isinstance(resolve_environment(config.task), TaskRef)
    if simulated and config.simulation.resolve(device, config.num_envs).physics == "warp":
        jobs.append(partial(compile_kernels, config))
    return jobs


def compile_update(config: Config, number: int, name: str) -> Compiled:
    """Compile one of the learner's updates, by running it on a batch of zeros.

    Raises:
        SaltusError: the compilation failed.
    """
    learner, batch = make_learner(config)
    update, start = learner.compiled_updates[number], time.monotonic()
    with warnings.catch_warnings(record=True) as caught, learner.product_precision():
        update(batch)
    if not update.compiled:
        raise SaltusError("; ".join(str(one.message) for one in caught) or f"{name} was not compiled")
    return Compiled(name, time.monotonic() - start, not update.cached, cache_folder())


def make_learner(config: Config) -> tuple[Learner, TensorDict]:
    """A learner like the training's, and a batch of the form that it samples."""
    device = resolve_device(config.device)
    env = environment_maker(config)(1, seed=config.seed, simulation=Simulation(physics="cpu"), check_task=False)
    dimensions = Dimensions.of(env)
    n_step = config.rewards_per_target(dimensions.action_dim)
    vector_steps = config.batch_size // _WORLDS + n_step + 1  # enough to sample a batch
    buffer = ReplayBuffer(vector_steps * _WORLDS, dimensions, device, n_step=n_step, capture=False)
    step = transitions.zeros(_WORLDS, env.observation_dim, env.action_dim, device, env.privileged_dim)
    for _ in range(vector_steps):
        buffer.extend(step)
    learner = Learner(Agent(config, dimensions, device))
    return learner, buffer.sample(config.batch_size)[0]


def compile_kernels(config: Config) -> Compiled:
    """Compile the kernels of a training's Warp worlds, by resetting and stepping them once."""
    device, (wp, _) = resolve_device(config.device), modules()
    folder = Path(wp.config.kernel_cache_dir)
    before, start = _num_files(folder), time.monotonic()
    env = environment_maker(config)(
        config.num_envs, device=device, seed=config.seed, simulation=config.simulation, check_task=False
    )
    env.reset()
    env.step(torch.zeros(config.num_envs, env.action_dim, device=device))
    return Compiled("Warp's kernels", time.monotonic() - start, _num_files(folder) > before, str(folder))


def _num_files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))

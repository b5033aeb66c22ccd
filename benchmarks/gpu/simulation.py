"""The kit's sections of simulation: parity of the two engines, and the rate of steps."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor

import envs
from benchmarks import peers, runner
from benchmarks.gpu.context import SectionContext
from benchmarks.parity import interval, random_episodes, step_differences
from envs.physics.warp import WarpPhysics
from saltus.device.memory import free_bytes, release_memory

Engine: TypeAlias = Literal["cpu", "warp"]
ENGINES: tuple[Engine, ...] = ("cpu", "warp")
QUANTILES = {"median": 0.5, "99%": 0.99, "worst": 1.0}


def parity(context: SectionContext) -> None:
    """Compare Warp with the CPU engine: one control step from the same states, and statistics of random episodes."""
    _compare_steps(context)
    _compare_episodes(context)


def _compare_steps(context: SectionContext) -> None:
    sizes = context.sizes

    def compare(reference: envs.BatchEnv, other: envs.BatchEnv, **labels: str) -> None:
        errors = step_differences(reference, other, sizes.parity_steps)
        found = {name: float(torch.quantile(errors, share)) for name, share in QUANTILES.items()}
        context.note("parity", **labels, **found, states=len(errors))

    for task, solvers in sizes.parity.items():
        make = partial(envs.make, task, sizes.parity_worlds, seed=3)
        for solver in solvers:
            pair = make(physics="cpu", solver=solver), make(physics="warp", device=context.device)
            compare(*pair, task=task, solver=solver)
        if len(solvers) > 1:
            pair = make(physics="cpu", solver="model"), make(physics="cpu", solver="newton")
            compare(*pair, task=task, solver="newton against model on the CPU")


def _compare_episodes(context: SectionContext) -> None:
    sizes = context.sizes
    for task in sizes.parity:
        for engine in ENGINES:
            device = context.device if engine == "warp" else torch.device("cpu")
            env = envs.make(task, sizes.rollout_worlds, seed=5, physics=engine, device=device)
            found = {name: interval(values) for name, values in random_episodes(env, sizes.rollout_steps).items()}
            context.note("rollouts", task=task, engine=engine, **found)


def steps(context: SectionContext) -> None:
    """Env steps/s of BatchEnv, compared with mujoco_warp's own captured step of the same model in the same states."""
    at_once = context.sizes.steps_per_call
    for task, worlds in [(task, count) for task, counts in context.sizes.worlds.items() for count in counts]:
        free = free_bytes(context.device)
        ours, bare = (warp_env(task, worlds, context.device) for _ in range(2))
        spread(ours, context.sizes.spreading_steps)
        bare.set_state(ours.get_state())
        cases = {"saltus": partial(_env_steps, ours, at_once), "bare mujoco_warp": partial(_bare_steps, bare, at_once)}
        context.compare("steps", f"{task}, {worlds} worlds: env steps/s", cases, "saltus")
        engines = [env.physics for env in (ours, bare) if isinstance(env.physics, WarpPhysics)]
        announced = sum(engine.num_bytes + engine.working_bytes for engine in engines)
        taken = free - free_bytes(context.device)
        context.note("memory", task=task, worlds=worlds, announced=announced, taken=taken)
        iterations = [int(engine.solver_iterations().max()) for engine in engines]
        context.note("solver", task=task, worlds=worlds, most_iterations=max(iterations))
        del ours, bare, cases, engines
        release_memory(context.device)  # the environments' graphs are reference cycles, which only a collection frees


def warp_env(task: str, worlds: int, device: torch.device) -> envs.BatchEnv:
    """An environment with Warp physics, after its reset."""
    env = envs.make(task, worlds, physics="warp", device=device)
    env.reset()
    return env


def random_actions(env: envs.BatchEnv) -> Tensor:
    """Uniform actions in [-1, 1] for 16 vector steps, (16, N, action_dim), to repeat."""
    generator = torch.Generator(env.device).manual_seed(0)
    return 2 * torch.rand(16, env.num_envs, env.action_dim, generator=generator, device=env.device) - 1


def spread(env: envs.BatchEnv, steps: int) -> None:
    """Step until worlds are at all stages of episodes with random actions; states at starts are cheaper to simulate."""
    for _, action in zip(range(steps), itertools.cycle(random_actions(env)), strict=False):
        env.step(action)


def _env_steps(env: envs.BatchEnv, at_once: int) -> runner.Work:
    actions = itertools.cycle(random_actions(env))

    def step() -> int:
        for _ in range(at_once):
            env.step(next(actions))
        peers.synchronize(env.device)
        return at_once * env.num_envs

    return step


def _bare_steps(env: envs.BatchEnv, at_once: int) -> runner.Work:
    """The engine's captured control step alone: no reading, no reward, no reset.

    Every second step starts from the same states: worlds that are never reset fall, and contacts slow the solver down.
    The rate includes the time of setting them.
    """
    physics, frame_skip = env.physics, env.task.frame_skip
    assert isinstance(physics, WarpPhysics)
    center, half_range = (env.control_high + env.control_low) / 2, (env.control_high - env.control_low) / 2
    controls = itertools.cycle(center + half_range * random_actions(env))
    start = physics.get_state()

    def step() -> int:
        for done in range(at_once):
            if done % 2 == 0:
                physics.set_state(start)
            physics.simulate(next(controls), frame_skip)
        peers.synchronize(env.device)
        return at_once * env.num_envs

    return step

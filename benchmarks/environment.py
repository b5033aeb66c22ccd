"""Env steps per second: saltus, its physics alone, and other vector environments.

All cases simulate the same version of the same task with the same actions, in the actuators' units, and count control
steps. A call in which a vector environment only resets a world does not count as a step of that world.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import mujoco
import numpy as np
import torch
from mujoco.batch import Batch

import envs
from benchmarks import checkout, rates, result, runner
from benchmarks.baseline import against
from benchmarks.campaign import Campaign
from benchmarks.code import code_hash
from benchmarks.table import Table, show
from envs.physics.cpu import available_cores
from envs.task import load_model

SALTUS, BARE, ENVPOOL, GYMNASIUM = "saltus", "bare mujoco.batch", "EnvPool", "Gymnasium SyncVectorEnv"
BARE_WITH_FORCES = "bare mujoco.batch with contact forces"
PEERS = (BARE, BARE_WITH_FORCES, ENVPOOL, GYMNASIUM)
AS_GYMNASIUM, AS_TORCHRL = "saltus as GymnasiumVectorEnv", "saltus as TorchRLEnv"
INTERFACES = (AS_GYMNASIUM, AS_TORCHRL)
TARGETS = {
    "Hopper-v5": {BARE: 0.9, ENVPOOL: 1.1, GYMNASIUM: 2.0},
    "Humanoid-v5": {BARE: 0.85, BARE_WITH_FORCES: 0.85, ENVPOOL: 1.0, GYMNASIUM: 2.0},
}
OTHER_TARGETS = {ENVPOOL: 1.0}
ACTIONS_AHEAD = 64  # vector steps of random actions, drawn before the measurement and then repeated


Name = Literal[
    "Ant-v5", "HalfCheetah-v5", "Hopper-v5", "Humanoid-v5", "HumanoidStandup-v5", "InvertedDoublePendulum-v5",
    "InvertedPendulum-v5", "Pusher-v5", "Reacher-v5", "Swimmer-v5", "Walker2d-v5",
]  # fmt: skip


def environment(
    tasks: tuple[Name, ...] = ("Hopper-v5", "Humanoid-v5"),
    num_envs: int = 256,
    num_threads: int = 0,
    repeats: int = 10,
    seconds: float = 3.0,
    warmup_steps: int = 100,
    interfaces: bool = False,
    baseline: Path | None = None,
    output: Path | None = None,
) -> None:
    """Env steps/s with random actions, compared with EnvPool, Gymnasium and, on two tasks, bare mujoco.batch.

    The result file is written after each turn. The same command, given again, does the turns that are missing.

    Args:
        tasks: the tasks to simulate.
        num_envs: number of worlds.
        num_threads: threads of each case (Gymnasium's SyncVectorEnv has only one); 0 uses every core.
        repeats: turns of each case.
        seconds: length of a turn.
        warmup_steps: vector steps before the first turn, so that episodes are at mixed stages.
        interfaces: measure saltus also through the interfaces of Gymnasium and TorchRL.
        baseline: another checkout of saltus, to measure too; then both checkouts run in processes of their own.
        output: the file to write or to continue; by default benchmarks/results/environment-cpu<cores>.jsonl.
    """
    threads = num_threads or available_cores()
    torch.set_num_threads(threads)
    settings = {
        "num_envs": num_envs,
        "num_threads": threads,
        "repeats": repeats,
        "seconds": seconds,
        "warmup_steps": warmup_steps,
        "mujoco_clock": "stopped",  # by saltus, for all cases in its process
        "baseline": baseline and checkout.commit(baseline),
        "code": code_hash("envs", "saltus", "benchmarks/environment.py"),
    }
    served = {"benchmark": "environment", "num_envs": num_envs, "threads": threads}
    baselines = {task: against(SALTUS, baseline, served | {"task": task}) for task in tasks}
    campaign = Campaign(
        output or result.default_path("environment"), "environment", settings,
        rates.jobs({
            task: [*({SALTUS: None} | baselines[task]), *(INTERFACES if interfaces else ()), *_peers(task)]
            for task in tasks
        }),
        complete=lambda row: rates.is_complete(row, repeats), every=rates.PROGRESS_EVERY,
    )  # fmt: skip
    with campaign.interruptible(lambda: rates.describe_progress(campaign, repeats, seconds)):
        for task in tasks:
            actions = _actions(task, num_envs)
            makers: dict[str, Callable[[], runner.Work]] = {
                SALTUS: partial(_saltus, task, num_envs, threads, actions),
                **baselines[task],
                ENVPOOL: partial(_envpool, task, num_envs, threads, actions),
                GYMNASIUM: partial(_gymnasium, task, num_envs, actions),
            }
            if interfaces:
                makers[AS_GYMNASIUM] = partial(_as_gymnasium, task, num_envs, threads, actions)
                makers[AS_TORCHRL] = partial(_as_torchrl, task, num_envs, threads, actions)
            for name, loop in _BARE.get(task, {}).items():
                makers[name] = partial(loop, task, num_envs, threads, actions)
            rates.measure(campaign, task, makers, repeats, seconds, warmup_steps)
    show(tables(campaign.result), campaign.path)


def tables(found: result.Result) -> list[Table]:
    """The env steps/s of each task's cases."""
    worlds, threads = found.settings["num_envs"], found.settings["num_threads"]
    title = f"{worlds} worlds, {threads} threads: env steps/s"
    return [
        rates.comparison(f"{task}, {title}", rows, SALTUS, TARGETS.get(task, OTHER_TARGETS))
        for task, rows in rates.by_task(found).items()
    ]


def _peers(task: str) -> list[str]:
    """The cases that saltus is compared with; the bare loops know the end of two tasks' episodes only."""
    return [*_BARE.get(task, {}), ENVPOOL, GYMNASIUM]


def _actions(task: str, num_envs: int) -> np.ndarray:
    """Uniform actions in the actuators' units, (ACTIONS_AHEAD, num_envs, action_dim) float32."""
    env = envs.make(task, 1, normalized_actions=False)
    size = (ACTIONS_AHEAD, num_envs, env.action_dim)
    low, high = env.action_low.numpy(), env.action_high.numpy()
    return np.random.default_rng(0).uniform(low, high, size).astype(np.float32)


def _saltus(task: str, num_envs: int, threads: int, actions: np.ndarray) -> runner.Work:
    env = envs.make(task, num_envs, num_threads=threads, normalized_actions=False)
    return _stepping(env, torch.from_numpy(actions))


def _as_gymnasium(task: str, num_envs: int, threads: int, actions: np.ndarray) -> runner.Work:
    from envs.gymnasium_env import GymnasiumVectorEnv

    return _stepping(GymnasiumVectorEnv(task, num_envs, num_threads=threads), actions)


def _stepping(env: Any, actions: Iterable[Any]) -> runner.Work:
    upcoming = itertools.cycle(actions)
    env.reset()

    def step() -> int:
        env.step(next(upcoming))
        return int(env.num_envs)

    return step


def _as_torchrl(task: str, num_envs: int, threads: int, actions: np.ndarray) -> runner.Work:
    """Steps and resets as in TorchRL's collectors."""
    from envs.torchrl_env import TorchRLEnv

    env = TorchRLEnv(task, num_envs, num_threads=threads)
    upcoming = itertools.cycle(torch.from_numpy(actions))
    state = env.reset()

    def step() -> int:
        nonlocal state
        _, state = env.step_and_maybe_reset(state.set("action", next(upcoming)))
        return num_envs

    return step


def _bare(task: str, num_envs: int, threads: int, actions: np.ndarray, contact_forces: bool = False) -> runner.Work:
    """mujoco.batch with Gymnasium's termination and resets: no observation and no reward.

    A step of MuJoCo computes no contact forces. `contact_forces` has them computed after it where bodies touch, one
    world after another, because mujoco.batch offers no other way.
    """
    definition: Any = envs.find_task(task)()
    healthy = _HEALTHY[task]
    model = load_model(definition)
    batch = Batch(model, num_envs, threads, persistent=contact_forces)
    qpos, qvel, ctrl, contacts = (batch.bind(field) for field in ("qpos", "qvel", "ctrl", "ncon"))
    one = mujoco.MjData(model)
    forces = np.zeros((num_envs, *one.cfrc_ext.shape))
    first, elapsed = batch.state[0].copy(), np.zeros(num_envs, dtype=np.int64)
    generator, scale = np.random.default_rng(0), definition.reset_noise_scale
    upcoming = itertools.cycle(actions)

    def reset(mask: np.ndarray) -> None:
        count = np.count_nonzero(mask)
        batch.state[mask] = first
        qpos[mask] += generator.uniform(-scale, scale, (count, model.nq))
        qvel[mask] += generator.uniform(-scale, scale, (count, model.nv))
        batch.forward(mask)
        elapsed[mask] = 0

    def compute_forces() -> None:
        forces[...] = 0
        for world in np.flatnonzero(contacts):
            batch.get_data(world, one)
            mujoco.mj_rnePostConstraint(model, one)
            forces[world] = one.cfrc_ext

    def step() -> int:
        ctrl[...] = next(upcoming)
        batch.step(nstep=definition.frame_skip)
        if contact_forces:
            compute_forces()
        elapsed[...] += 1
        done = ~healthy(qpos, qvel) | (elapsed >= definition.max_episode_steps)
        if done.any():
            reset(done)
        return num_envs

    reset(np.ones(num_envs, dtype=bool))
    return step


def _hopper_healthy(qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    rest = (np.abs(qpos[:, 2:]) < 100).all(axis=1) & (np.abs(qvel) < 100).all(axis=1)
    return rest & (qpos[:, 1] > 0.7) & (np.abs(qpos[:, 2]) < 0.2)


def _humanoid_healthy(qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    return (qpos[:, 2] > 1.0) & (qpos[:, 2] < 2.0)


_HEALTHY: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "Hopper-v5": _hopper_healthy,
    "Humanoid-v5": _humanoid_healthy,
}
_BARE: dict[str, dict[str, Callable[..., runner.Work]]] = {
    "Hopper-v5": {BARE: _bare},
    "Humanoid-v5": {BARE: _bare, BARE_WITH_FORCES: partial(_bare, contact_forces=True)},  # its observation has them
}


def _envpool(task: str, num_envs: int, threads: int, actions: np.ndarray) -> runner.Work:
    """EnvPool's build of the same task, with the MuJoCo that it contains (EnvPool 1.2.5: MuJoCo 3.6.0)."""
    import envpool

    env = envpool.make(task, env_type="gymnasium", num_envs=num_envs, num_threads=threads, seed=0)
    return _vector_steps(env, itertools.cycle(actions.astype(env.action_space.dtype)))


def _gymnasium(task: str, num_envs: int, actions: np.ndarray) -> runner.Work:
    import gymnasium

    env = gymnasium.make_vec(task, num_envs, vectorization_mode="sync")
    return _vector_steps(env, itertools.cycle(actions))


def _vector_steps(env: Any, actions: Iterator[np.ndarray]) -> runner.Work:
    """Steps of an environment that resets a world in the step after its episode's end."""
    env.reset()
    resetting = 0

    def step() -> int:
        nonlocal resetting
        _, _, terminated, truncated, _ = env.step(next(actions))
        stepped = len(terminated) - resetting
        resetting = int(np.count_nonzero(terminated | truncated))
        return stepped

    return step

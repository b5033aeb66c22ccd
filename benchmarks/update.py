"""SAC updates per second: saltus, compiled and plain, and Stable-Baselines3."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

import envs
from benchmarks import result, runner
from benchmarks.data import random_transitions
from envs.physics.cpu import available_cores
from pipeline import presets
from pipeline.buffer import ReplayBuffer
from pipeline.learner import Learner

SAC, PLAIN, CROSSQ, SB3 = "saltus sac", "saltus sac, not compiled", "saltus crossq", "Stable-Baselines3 SAC"
BATCH_SIZE, HIDDEN = 256, (256, 256)


def update(
    tasks: tuple[str, ...] = ("Hopper-v5",),
    updates_per_round: int = 8,
    buffer_size: int = 100_000,
    repeats: int = 10,
    seconds: float = 5.0,
    warmup_rounds: int = 10,
    output: Path | None = None,
) -> None:
    """SAC updates/s from a filled replay buffer, sampling included: batch 256, 2x256 networks, all cores.

    crossq stands there for information: its critics differ, and its actor learns at every third update only.

    Args:
        tasks: the tasks whose observation and action sizes to take.
        updates_per_round: updates of one call.
        buffer_size: transitions in the buffer.
        repeats: turns of every case.
        seconds: length of a turn.
        warmup_rounds: calls of every case before the first turn; the first compiles.
        output: the file to write; by default benchmarks/results/update-<hardware>.json.
    """
    threads = available_cores()
    torch.set_num_threads(threads)
    measurements, tables = [], []
    for task in tasks:
        env = envs.make(task, 1)
        data = random_transitions(buffer_size, env.observation_dim, env.action_dim)
        cases, missing = runner.build(
            {
                SAC: partial(_saltus, "sac", True, task, data, updates_per_round),
                PLAIN: partial(_saltus, "sac", False, task, data, updates_per_round),
                CROSSQ: partial(_saltus, "crossq", True, task, data, updates_per_round),
                SB3: partial(_stable_baselines, data, updates_per_round),
            }
        )
        measured = runner.measure(cases, repeats, seconds, warmup_rounds)
        sizes = f"observation {env.observation_dim}, action {env.action_dim}, batch {BATCH_SIZE}"
        title = f"{task}: updates/s, {sizes}, {threads} threads"
        measurements += result.rows_of(measured, task=task)
        tables.append(result.comparison(title, measured, SAC, missing, {}))
    settings = {
        "batch_size": BATCH_SIZE,
        "hidden": HIDDEN,
        "num_threads": threads,
        "updates_per_round": updates_per_round,
        "buffer_size": buffer_size,
        "repeats": repeats,
        "seconds": seconds,
        "warmup_rounds": warmup_rounds,
    }
    result.publish("update", output, settings, measurements, tables)


def _saltus(preset: str, compiled: bool, task: str, data: TensorDict, updates: int) -> runner.Work:
    config = presets.preset(
        preset, task, compile=compiled, batch_size=BATCH_SIZE, actor_hidden=HIDDEN, critic_hidden=HIDDEN
    )
    dimensions = data["observation"].shape[1], data["action"].shape[1]
    buffer = ReplayBuffer(len(data), *dimensions)
    buffer.extend(data)
    learner = Learner(config, *dimensions)

    def round() -> int:
        learner.round(buffer, updates)
        return updates

    return round


def _stable_baselines(data: TensorDict, updates: int) -> runner.Work:
    from stable_baselines3 import SAC as Model
    from stable_baselines3.common.logger import Logger

    env = _sizes_only(data["observation"].shape[1], data["action"].shape[1])
    model = Model("MlpPolicy", env, buffer_size=len(data), policy_kwargs={"net_arch": list(HIDDEN)}, device="cpu")
    model.set_logger(Logger(None, []))
    buffer: Any = model.replay_buffer
    buffer.observations[:, 0] = data["observation"]
    buffer.actions[:, 0] = data["action"]
    buffer.next_observations[:, 0] = data["next", "observation"]
    buffer.rewards[:] = data["next", "reward"]
    buffer.dones[:] = data["next", "terminated"]
    buffer.full = True

    def train() -> int:
        model.train(gradient_steps=updates, batch_size=BATCH_SIZE)
        return updates

    return train


def _sizes_only(observation_dim: int, action_dim: int) -> Any:
    """A Gymnasium environment that has spaces of these sizes and is never stepped."""
    import gymnasium

    env: Any = gymnasium.Env()
    env.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (observation_dim,), np.float32)
    env.action_space = gymnasium.spaces.Box(-1, 1, (action_dim,), np.float32)
    return env

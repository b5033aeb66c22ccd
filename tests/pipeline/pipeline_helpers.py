"""Small configurations, transitions, agents and runs for the tests of `pipeline`."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from forked_saltus import finish as finish
from rich.console import Console
from tensordict import TensorDict
from torch import Tensor

from envs import transition as transitions
from pipeline import cli
from pipeline.agent import Agent
from pipeline.buffer import ReplayBuffer
from pipeline.config import Config
from pipeline.dimensions import Dimensions
from pipeline.learner import Learner
from pipeline.presets import preset as preset_config
from pipeline.torchrl_adapter import Loss, critic_parameters, value_parameters

OBSERVATION_DIM, ACTION_DIM, PRIVILEGED_DIM = 5, 3, 2
DIMENSIONS = Dimensions(OBSERVATION_DIM, ACTION_DIM)

# Every loss and network. flashsac-parallel has those of flashsac.
POSITIVE = ["utd_ratio", "actor_lr", "critic_lr", "alpha_init", "value_range"]
"""Settings above 0 that need not be whole numbers."""
PRESETS = ["fast", "sac", "sac-v1", "redq", "droq", "crossq", "xqc", "flashsac"]
WITH_TARGETS = ["sac", "sac-v1", "redq", "droq", "xqc", "flashsac"]

SMALL: dict[str, Any] = {
    "device": "cpu",
    "compile": False,
    "num_envs": 4,
    "num_threads": 1,
    "total_env_steps": 400,
    "learning_starts": 40,
    "utd_ratio": 0.25,
    "batch_size": 16,
    "actor_hidden": (8,),
    "critic_hidden": (8,),
    "log_every": 100,
    "eval_every": 200,
    "eval_episodes": 2,
    "checkpoint_every": 100,
}


def small_config(task: str = "InvertedPendulum-v5", preset: str = "crossq", **overrides: Any) -> Config:
    """A preset with `SMALL` and the overrides, which may be without effect."""
    return replace(preset_config(preset, task), **{**SMALL, **overrides})


def small_arguments(preset: str = "crossq", **overrides: Any) -> list[str]:
    """The settings of `small_config` as command line arguments."""
    arguments = []
    for name, value in {"preset": preset, **SMALL, **overrides}.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments += [f"--{flag}" if value else f"--no-{flag}"]
        else:
            arguments += [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
    return arguments


def random_transition(size: int, seed: int = 0, observation_dim: int = OBSERVATION_DIM) -> TensorDict:
    """A transition of random numbers. Some worlds terminated, some were truncated, some both."""
    generator = torch.Generator().manual_seed(seed)
    observation, next_obs = torch.randn(2, size, observation_dim, generator=generator)
    action = torch.rand(size, ACTION_DIM, generator=generator) * 2 - 1
    reward = torch.randn(size, generator=generator)
    terminated, truncated = torch.rand(2, size, generator=generator) < 0.3
    return transitions.make(observation, action, next_obs, reward, terminated, truncated)


def with_privileged(transition: TensorDict, seed: int = 0) -> TensorDict:
    """The transition with random privileged observations."""
    generator = torch.Generator().manual_seed(seed)
    for part in (transition, transition["next"]):
        part["privileged"] = torch.randn(*transition.batch_size, PRIVILEGED_DIM, generator=generator)
    return transition


def make_agent(
    preset: str, seed: int = 0, privileged_dim: int = 0, action_choices: tuple[int, ...] = (), **overrides: Any
) -> Agent:
    """A small agent with networks that depend on the seed alone."""
    torch.manual_seed(seed)
    overrides = {"actor_hidden": (16,), "critic_hidden": (16,), "policy_delay": 2, **overrides}
    config = small_config(preset=preset, **overrides)
    return Agent(config, replace(DIMENSIONS, privileged_dim=privileged_dim, action_choices=action_choices))


def copied_parameters(loss: Loss) -> dict[str, Tensor]:
    """The parameters that target networks copy: the state-value network's if there is one, else the critics'."""
    return value_parameters(loss) or critic_parameters(loss)


def make_learner(preset: str, seed: int = 0, capture: bool | None = None, **overrides: Any) -> Learner:
    return Learner(make_agent(preset, seed, **overrides), capture)


def filled_buffer(size: int = 256, seed: int = 0, **options: Any) -> ReplayBuffer:
    buffer = ReplayBuffer(size, DIMENSIONS, seed=seed, **options)
    buffer.extend(random_transition(size, seed=seed + 1))
    return buffer


def clone_state(state: Any) -> Any:
    """A copy of a nested state that shares no tensor with it."""
    if isinstance(state, torch.Tensor):
        return state.clone()
    return {name: clone_state(value) for name, value in state.items()} if isinstance(state, dict) else state


def differing(left: Any, right: Any, path: str = "") -> list[str]:
    """Paths where two nested states differ in a type, a key or a bit."""
    if type(left) is not type(right):
        return [f"{path}: {type(left).__name__} and {type(right).__name__}"]
    if isinstance(left, torch.Tensor):
        same = left.dtype == right.dtype and left.shape == right.shape
        same = same and torch.equal(left.nan_to_num(nan=12345.0), right.nan_to_num(nan=12345.0))
        return [] if same and torch.equal(left.isnan(), right.isnan()) else [f"{path}: {left} and {right}"]
    if isinstance(left, dict):
        if left.keys() != right.keys():
            return [f"{path}: keys {sorted(map(str, left))} and {sorted(map(str, right))}"]
        return [line for key in left for line in differing(left[key], right[key], f"{path}/{key}")]
    if isinstance(left, list | tuple):
        if len(left) != len(right):
            return [f"{path}: lengths {len(left)} and {len(right)}"]
        return [
            line for i, pair in enumerate(zip(left, right, strict=True)) for line in differing(*pair, f"{path}/{i}")
        ]
    equal = left == right or (left != left and right != right)
    return [] if equal else [f"{path}: {left!r} and {right!r}"]


def saltus(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    """Start the `saltus` command in a new process, with stderr in stdout."""
    command = [str(Path(sys.executable).with_name("saltus")), *map(str, arguments)]
    # Passive waiting: spinning threads slow these short runs down tenfold on busy cores.
    threads = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    environment = {**os.environ, **threads, "COLUMNS": "300", **environment}
    return subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def read_csv(path: Path) -> list[dict[str, str]]:
    text = path.read_text() if path.exists() else ""  # at once, without the last line: a run may be writing the file
    return list(csv.DictReader(text.split("\n")[:-1]))


def train_here(run_dir: Path, task: str = "InvertedPendulum-v5", *flags: str, **overrides: Any) -> str:
    """Run ``saltus train`` in this process; return its output."""
    console = Console(file=io.StringIO(), width=200)
    cli.train([task, *small_arguments(**overrides), "--run-dir", str(run_dir), *flags], console)
    return console.file.getvalue()

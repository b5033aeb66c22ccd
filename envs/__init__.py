"""Batched environments: action in, transition out.

``make("Hopper-v5", num_envs=256)`` returns a `BatchEnv`. Subclass `Task` to use a model of your own.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch

import envs.opengl  # noqa: F401  (first, for its message)
from envs.batch_env import BatchEnv
from envs.randomization import scale_masses
from envs.simulation import Simulation
from envs.task import State, Task
from envs.task_ref import find_task, list_tasks, register
from saltus.errors import SaltusError

__all__ = ["BatchEnv", "Simulation", "State", "Task", "find_task", "list_tasks", "make", "register", "scale_masses"]


def make(
    task: str | Task | type[Task],
    num_envs: int,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    normalized_actions: bool = True,
    **options: Any,
) -> BatchEnv:
    """Make a BatchEnv of a task.

    Args:
        task: a registered name (``"Hopper-v5"``), ``"path/to/file.py:ClassName"``, a Task class, or a Task.
        num_envs: number of worlds.
        device: where actions come from and transitions go.
        seed: seeds the initial states of all episodes of all worlds. Different seeds share no random stream.
        normalized_actions: whether actions lie in [-1, 1] (see `BatchEnv`).
        **options: fields of `Simulation` (``physics="warp"``, ``num_threads=2``, ...) and options of the task
            (``reset_noise_scale=0.01``, ...).

    Raises:
        SaltusError: an unknown task or option, or an error of `BatchEnv`.
    """
    names = {field.name for field in dataclasses.fields(Simulation)}
    simulation = Simulation(**{name: options.pop(name) for name in names & set(options)})
    if not isinstance(task, Task):
        task = _instantiate(find_task(task) if isinstance(task, str) else task, options)
    elif options:
        raise SaltusError(f"pass the options {sorted(options)} to {type(task).__name__}(...) itself, not to make()")
    return BatchEnv(
        task, num_envs, device=device, seed=seed, normalized_actions=normalized_actions, simulation=simulation
    )


def _instantiate(task: type[Task], options: dict[str, Any]) -> Task:
    try:
        inspect.signature(task).bind(**options)
    except TypeError as error:
        known = ", ".join(getattr(task, "__dataclass_fields__", {})) or "none"
        raise SaltusError(f"task {task.__name__}: {error}; its options are {known}") from error
    return task(**options)

"""Batched environments: action in, transition out.

``make("Hopper-v5", num_envs=256)`` returns a `BatchEnv`. Subclass `Task` to use a model of your own.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch

import envs.opengl  # noqa: F401  (first, for its message)
from envs import rewards
from envs.batch_env import BatchEnv
from envs.field_change import offset, scale
from envs.randomization import draw_fields, scale_masses
from envs.simulation import Simulation
from envs.state import State
from envs.task import Task
from envs.task_class import check_class
from envs.task_options import check_options
from envs.task_ref import find_task, is_task, list_tasks, register
from saltus.errors import SaltusError, did_you_mean

__all__ = [
    "BatchEnv", "Simulation", "State", "Task", "draw_fields", "find_task", "list_tasks", "make", "offset", "register",
    "rewards", "scale", "scale_masses",
]  # fmt: skip


def make(
    task: str | Task | type[Task],
    num_envs: int,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    normalized_actions: bool = True,
    check_task: bool = True,
    **options: Any,
) -> BatchEnv:
    """Make a BatchEnv of a task.

    Args:
        task: a registered name (``"Hopper-v5"``), ``"path/to/file.py:ClassName"``, a Task class, or a Task.
        num_envs: number of worlds.
        device: where actions come from and transitions go.
        seed: seeds the initial states of all episodes of all worlds. Different seeds share no random stream.
        normalized_actions: whether actions lie in [-1, 1] (see `BatchEnv`).
        check_task: whether to try the task's functions for mistakes (see `BatchEnv`).
        **options: fields of `Simulation` (``physics="warp"``, ``num_threads=2``, ...) and options of the task
            (``reset_noise_scale=0.01``, ...).

    Raises:
        SaltusError: an unknown task or option, or an error of `BatchEnv`.
    """
    names = {field.name for field in dataclasses.fields(Simulation)}
    simulation = Simulation(**{name: options.pop(name) for name in names & set(options)})
    if isinstance(task, str):
        task = find_task(task)
    if isinstance(task, Task):
        check_class(type(task))
        if options:
            raise SaltusError(f"pass the options {sorted(options)} to {type(task).__name__}(...) itself, not to make()")
    elif is_task(task):
        check_class(task)
        task = _instantiate(task, options)
    else:
        raise SaltusError(
            f"{task!r} is not a task; expected a name such as 'Hopper-v5', path/to/file.py:ClassName, a subclass of "
            "saltus.Task, or an object of one"
        )
    return BatchEnv(
        task,
        num_envs,
        device=device,
        seed=seed,
        normalized_actions=normalized_actions,
        simulation=simulation,
        check_task=check_task,
    )


def as_batch_env(task: str | Task | type[Task] | BatchEnv, num_envs: int | None, options: dict[str, Any]) -> BatchEnv:
    """The BatchEnv that an environment of another library's interface steps: a given one, or one that `make` makes.

    Actions are in the actuators' units by default, as in Gymnasium.

    Raises:
        SaltusError: options for a BatchEnv that exists, no number of worlds for another task, or an error of `make`.
    """
    if isinstance(task, BatchEnv):
        given = sorted(options if num_envs is None else {"num_envs": num_envs, **options})
        if given:
            raise SaltusError(f"pass {given} to the BatchEnv itself, or a task in its place")
        return task
    if num_envs is None:
        raise SaltusError("num_envs is missing: pass the number of worlds after the task, or a BatchEnv")
    return make(task, num_envs, **{"normalized_actions": False, **options})


def _instantiate(task: type[Task], options: dict[str, Any]) -> Task:
    signature = inspect.signature(task)
    try:
        signature.bind(**options)
    except TypeError as error:
        known = ", ".join(signature.parameters) or "none (options are the annotated fields of a class with @dataclass)"
        simulation = [field.name for field in dataclasses.fields(Simulation)]
        every = [*signature.parameters, *simulation]
        near = "".join(did_you_mean(name, every) for name in options if name not in signature.parameters)
        raise SaltusError(
            f"task {task.__name__}: {error}; its options are {known}; those of the simulation are "
            f"{', '.join(simulation)}{near}"
        ) from error
    check_options(task, options)
    return task(**options)

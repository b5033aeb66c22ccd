"""Worlds: action in, transition out.

``envs.make("Hopper-v5", num_envs=256)`` gives a `BatchEnv`; `Task` is the class to write for a model of one's own.
"""

from __future__ import annotations

import difflib
import importlib.util
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from envs.batch_env import BatchEnv
from envs.task import State, Task
from envs.tasks import BUILT_IN

__all__ = ["BatchEnv", "State", "Task", "find_task", "list_tasks", "make", "register"]

_registry: dict[str, type[Task]] = dict(BUILT_IN)


def register(name: str, task: type[Task]) -> None:
    """Make a Task class known under `name` to `make`, and to `saltus` if it runs in this process.

    Raises:
        ValueError: the name is taken.
    """
    if name in _registry:
        raise ValueError(f"there is a task {name!r} already; choose another name")
    _registry[name] = task


def list_tasks() -> list[str]:
    """The registered names."""
    return sorted(_registry)


def find_task(name: str) -> type[Task]:
    """The Task class of a registered name, or of ``path/to/file.py:ClassName``.

    Raises:
        ValueError: no such name (near matches are listed), file or class.
    """
    if ".py:" in name:
        return _load_task(name)
    if name not in _registry:
        close = difflib.get_close_matches(name, _registry, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"there is no task {name!r}: {hint}There are {', '.join(list_tasks())}; "
            "a task of your own is given as path/to/file.py:ClassName"
        )
    return _registry[name]


def _load_task(name: str) -> type[Task]:
    file, _, class_name = name.rpartition(":")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"there is no file {path} (from task {name!r}, looked up from the current folder)")
    module_name = f"saltus_task_{path.stem}_{zlib.crc32(bytes(path)):08x}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    task = getattr(module, class_name, None)
    if not (isinstance(task, type) and issubclass(task, Task)):
        tasks = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, Task) and value is not Task
        ]
        raise ValueError(f"{path} has no Task class {class_name!r}; it has {', '.join(tasks) or 'none'}")
    return task


def make(
    task: str | Task | type[Task],
    num_envs: int,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    physics: Literal["cpu", "warp"] | None = None,
    num_threads: int = 0,
    solver: Literal["model", "newton"] = "model",
    max_contacts: int = 0,
    max_constraints: int = 0,
    announce: Callable[[str], None] = lambda _: None,
    **task_options: Any,
) -> BatchEnv:
    """Make `num_envs` worlds of a task.

    Args:
        task: a registered name (``"Hopper-v5"``), ``"path/to/file.py:ClassName"``, a Task class, or a Task.
        num_envs: how many worlds.
        device: where actions come from and transitions go.
        seed: seeds the first states of all episodes of all worlds; another seed shares no stream with it.
        physics, num_threads, solver, max_contacts, max_constraints, announce: see `BatchEnv`.
        **task_options: the task's options, e.g. ``reset_noise_scale=0.01``.

    Raises:
        ValueError: an unknown task or option, or what `BatchEnv` refuses.
    """
    options: dict[str, Any] = {
        "device": device,
        "seed": seed,
        "physics": physics,
        "num_threads": num_threads,
        "solver": solver,
        "max_contacts": max_contacts,
        "max_constraints": max_constraints,
        "announce": announce,
    }
    if isinstance(task, Task):
        if task_options:
            raise ValueError(f"give options {sorted(task_options)} to {type(task).__name__}(...) itself, not to make()")
        return BatchEnv(task, num_envs, **options)
    cls = find_task(task) if isinstance(task, str) else task
    try:
        instance = cls(**task_options)
    except TypeError as error:
        known = [name for name in getattr(cls, "__dataclass_fields__", {})]
        raise ValueError(f"task {cls.__name__}: {error}; its options are {', '.join(known) or 'none'}") from error
    return BatchEnv(instance, num_envs, **options)

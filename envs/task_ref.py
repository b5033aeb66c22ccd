"""Find a task by its registered name or by its file."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeGuard

from envs import task_files
from envs.task import Task
from envs.tasks import BUILT_IN
from saltus.errors import SaltusError

_registry: dict[str, type[Task]] = dict(BUILT_IN)


@dataclass(frozen=True)
class TaskRef:
    """A task that was found by its name.

    Attributes:
        name: the registered name, or ``/absolute/path/to/file.py:ClassName``.
        task: the class.
        file: the absolute path of the task's file. None: a registered task.
        text: the text of that file, as it was executed.
    """

    name: str
    task: type[Task]
    file: Path | None
    text: str | None


def register(name: str, task: type[Task]) -> None:
    """Register a Task class under a name, for `make`, in this process.

    Raises:
        SaltusError: the name is registered already.
    """
    if name in _registry:
        raise SaltusError(f"a task {name!r} is registered already; choose another name")
    _registry[name] = task


def list_tasks() -> list[str]:
    """The registered names, sorted."""
    return sorted(_registry)


def find_task(name: str) -> type[Task]:
    """The Task class of a registered name, or of ``path/to/file.py:ClassName``.

    Raises:
        SaltusError: an unknown name (similar ones are listed), or a missing file or class.
    """
    return resolve_task(name).task


def resolve_task(name: str) -> TaskRef:
    """Find a task by name. Its file, if it has one, is executed once per path and process.

    Raises:
        SaltusError: an unknown name (similar ones are listed), or a missing file or class.
    """
    file = task_file(name)
    if file is None:
        return TaskRef(name, _registered(name), None, None)
    class_name = name.rpartition(":")[2]
    if not file.is_file():
        raise SaltusError(f"there is no file {file} (from task {name!r}, relative to the current folder)")
    task = _task_of(task_files.execute(file), class_name, file)
    return TaskRef(f"{file}:{class_name}", task, file, task_files.text_of(file))


def task_file(name: str) -> Path | None:
    """The absolute path in ``path/to/file.py:ClassName``, without executing it. None: not the name of a file."""
    return Path(name.rpartition(":")[0]).expanduser().resolve() if ".py:" in name else None


def _registered(name: str) -> type[Task]:
    if name not in _registry:
        close = difflib.get_close_matches(name, _registry, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise SaltusError(
            f"there is no task {name!r}: {hint}The registered tasks are {', '.join(list_tasks())}; "
            "name a task of your own as path/to/file.py:ClassName"
        )
    return _registry[name]


def _task_of(module: ModuleType, class_name: str, file: Path) -> type[Task]:
    task = getattr(module, class_name, None)
    if not _is_task(task):
        tasks = [key for key, value in vars(module).items() if _is_task(value)]
        raise SaltusError(f"{file} has no Task class {class_name!r}; it has {', '.join(tasks) or 'none'}")
    return task


def _is_task(value: object) -> TypeGuard[type[Task]]:
    return isinstance(value, type) and issubclass(value, Task) and value is not Task

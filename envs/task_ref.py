"""Find a task by its registered name or by its file."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

from envs import task_files
from envs.task import Task
from envs.task_class import check_class
from envs.tasks import BUILT_IN
from saltus.errors import SaltusError, did_you_mean

GYMNASIUM = "gym:"
"""Begins the names of Gymnasium's environments."""

MODEL_SUFFIXES = (".xml", ".urdf", ".mjb")

_registry: dict[str, type[Task]] = dict(BUILT_IN)


@dataclass(frozen=True)
class TaskRef:
    """A task that was found by its name.

    Attributes:
        name: the registered name, or ``/absolute/path/to/file.py:ClassName``.
        task: the class.
        file: the absolute path of the task's file. None: a registered task.
        text: the text of that file, as it was executed. None: a registered task.
    """

    name: str
    task: type[Task]
    file: Path | None
    text: str | None


def register(name: str, task: type[Task]) -> None:
    """Register a Task class under a name, for `make`, in this process.

    Registering a class again replaces it, so that a cell of a notebook can run twice.

    Raises:
        SaltusError: a name that is no name or another class's, or no correct Task class.
    """
    if not isinstance(name, str) or not name.strip() or split_name(name) or name.startswith(GYMNASIUM):
        raise SaltusError(
            f"a task cannot be registered as {name!r}; expected a name such as 'SwingUp-v0', not a file's path"
        )
    if not is_task(task):
        raise SaltusError(f"{name!r} cannot be registered for {task!r}; expected a subclass of saltus.Task")
    check_class(task)
    registered = _registry.get(name, task)
    if (registered.__module__, registered.__qualname__) != (task.__module__, task.__qualname__):
        raise SaltusError(f"a task {name!r} is registered already; choose another name")
    _registry[name] = task


def list_tasks() -> list[str]:
    """The registered names, sorted."""
    return sorted(_registry)


def find_task(name: str) -> type[Task]:
    """The Task class of a registered name, or of ``path/to/file.py:ClassName``.

    Raises:
        SaltusError: as `resolve_task`.
    """
    return resolve_task(name).task


def resolve_task(name: str) -> TaskRef:
    """Find a task by name. Its file, if it has one, is executed once per path and process.

    Raises:
        SaltusError: an unknown name (similar ones are listed), a missing file or class, or a faulty class.
    """
    parts = split_name(name)
    reference = TaskRef(name, _registered(name), None, None) if parts is None else _from_file(name, *parts)
    check_class(reference.task)
    return reference


def name_task(task: str | type[Task]) -> str:
    """The name of a task: a built-in one's, or ``/path/to/file.py:ClassName``. Returns a name unchanged.

    Raises:
        SaltusError: not a name or a Task class, or a class that no file defines under its name, as in a notebook.
    """
    if isinstance(task, str):
        return task
    if not is_task(task):
        raise SaltusError(
            f"{task!r} is not a task; expected a name such as 'Hopper-v5', gym:ID, path/to/file.py:ClassName, or a "
            "subclass of saltus.Task, whose options are task_options"
        )
    for name, built_in in BUILT_IN.items():
        if task is built_in:
            return name
    module = sys.modules.get(task.__module__)
    file = getattr(module, "__file__", None) or ""
    if not file.endswith(".py") or getattr(module, task.__name__, None) is not task:
        raise SaltusError(
            f"no Python file has the task {task.__qualname__} at its top level, and a run keeps its task as a file: "
            f"move the class to a file, and pass 'path/to/file.py:{task.__name__}' or the imported class"
        )
    return f"{_absolute(file)}:{task.__name__}"


def task_file(name: str) -> Path | None:
    """The absolute path in ``path/to/file.py:ClassName``, without executing it. None: not the name of a file."""
    parts = split_name(name)
    return _absolute(parts[0]) if parts else None


def split_name(name: str) -> tuple[str, str] | None:
    """File and class of ``path/to/file.py:ClassName``; the class is "" if it is missing. None: not a file's name."""
    file, _, class_name = (name, "", "") if name.endswith(".py") else name.rpartition(":")
    return (file, class_name) if file.endswith(".py") else None


def is_task(value: object) -> TypeGuard[type[Task]]:
    """Whether a value is a subclass of Task."""
    return isinstance(value, type) and issubclass(value, Task) and value is not Task


def is_function(value: object) -> bool:
    """Whether a value can be called, and is no class."""
    return callable(value) and not isinstance(value, type)


def find_in_file(name: str, file: str, attribute: str) -> tuple[Path, str, Any]:
    """The absolute path of a file, which is executed once, its text, and the object of this name in it, or None.

    Raises:
        SaltusError: there is no such file.
    """
    path = _absolute(file)
    if not path.is_file():
        raise SaltusError(f"there is no file {path} (from task {name!r}, relative to the current folder)")
    module = task_files.execute(path)
    return path, task_files.text_of(path), getattr(module, attribute, None)


def _absolute(file: str) -> Path:
    return Path(file).expanduser().resolve()


def _registered(name: str) -> type[Task]:
    if name.startswith(GYMNASIUM):
        raise _no_task(f"{name} is an ID of Gymnasium")
    if Path(name).suffix in MODEL_SUFFIXES:
        raise SaltusError(f"{name} is a model: `saltus new {name}` writes a task's file for it")
    if name not in _registry:
        raise SaltusError(
            f"there is no task {name!r}{did_you_mean(name, list_tasks()) or '.'} The registered tasks are "
            f"{', '.join(list_tasks())}; name a task of your own as path/to/file.py:ClassName"
        )
    return _registry[name]


def _from_file(name: str, file: str, class_name: str) -> TaskRef:
    path, text, task = find_in_file(name, file, class_name)
    if is_function(task):
        raise _no_task(f"{path}:{class_name} is a function")
    if not is_task(task):
        names = _tasks_in(task_files.execute(path))
        wrong = f"has no Task class {class_name!r}"
        if not class_name:
            wrong = f"is a file: name a class in it, as in {file}:{(names or ['ClassName'])[0]}"
        raise SaltusError(f"{path} {wrong}; it has {', '.join(names) or 'none'}")
    return TaskRef(f"{path}:{class_name}", task, path, text)


def _no_task(found: str) -> SaltusError:
    return SaltusError(
        f"{found}, which makes an environment of another library: `saltus train` takes it. Expected a task of saltus: "
        "a registered name, or path/to/file.py:ClassName"
    )


def _tasks_in(module: ModuleType) -> list[str]:
    """Names of the Task classes that a module defines."""
    return [name for name, value in vars(module).items() if is_task(value) and value.__module__ == module.__name__]

"""Find a task by its registered name or by its file."""

from __future__ import annotations

import difflib
import importlib.util
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

from envs.task import Task
from envs.tasks import BUILT_IN
from saltus.errors import SaltusError

_registry: dict[str, type[Task]] = dict(BUILT_IN)


@dataclass(frozen=True)
class TaskRef:
    """A task's name, class, and its file with its text, if it has one."""

    name: str
    task: type[Task]
    file: Path | None
    text: str | None


def resolve_task(name: str) -> TaskRef:
    """Find a task, with its file's absolute path and text.

    Raises:
        SaltusError: see `find_task`.
    """
    file = task_file(name)
    task = find_task(name)
    return TaskRef(name, task, file, None if file is None else file.read_text())


def task_file(name: str) -> Path | None:
    """The absolute path of the file in ``path/to/file.py:ClassName``; None for a registered name."""
    return Path(name.rpartition(":")[0]).expanduser().resolve() if ".py:" in name else None


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
    if ".py:" in name:
        return _load_task(name)
    if name not in _registry:
        close = difflib.get_close_matches(name, _registry, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise SaltusError(
            f"there is no task {name!r}: {hint}The registered tasks are {', '.join(list_tasks())}; "
            "name a task of your own as path/to/file.py:ClassName"
        )
    return _registry[name]


def _load_task(name: str) -> type[Task]:
    file, _, class_name = name.rpartition(":")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise SaltusError(f"there is no file {path} (from task {name!r}, relative to the current folder)")
    module_name = f"saltus_task_{path.stem}_{zlib.crc32(bytes(path)):08x}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look up their module by name
    spec.loader.exec_module(module)
    task = getattr(module, class_name, None)
    if not (isinstance(task, type) and issubclass(task, Task)):
        tasks = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, Task) and value is not Task
        ]
        raise SaltusError(f"{path} has no Task class {class_name!r}; it has {', '.join(tasks) or 'none'}")
    return task

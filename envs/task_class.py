"""Checks of a Task class, before an object is made of it."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import linecache
import re
from collections.abc import Iterator

from envs.simulation import Simulation
from envs.task import Task
from envs.whole_numbers import is_whole
from saltus.errors import SaltusError, warn_once

MAKE_ARGUMENTS = (
    "task", "num_envs", "device", "seed", "normalized_actions", "check_task",
    *(item.name for item in dataclasses.fields(Simulation)),
)  # fmt: skip
BOUND = ("model", "data0", "qpos0", "qvel0", "ctrl0", "dt")
SIGNATURES = {
    "reset": ("num_envs", "generator"),
    "observation": ("state",),
    "reward": ("state", "action", "next_state"),
    "terminated": ("state",),
    "advance": ("state", "action", "generator"),
    "control": ("state", "action"),
    "randomize": ("num_envs", "generator"),
    "bind": ("model", "dtype", "device"),
}
ATTRIBUTES = (
    "mjcf", "frame_skip", "max_episode_steps", "fields", "recompute_derived", "home", "settle_steps", "model_variants",
    "action_low", "action_high", *SIGNATURES,
)  # fmt: skip
ALIASES = {
    "done": "terminated", "is_done": "terminated", "is_terminated": "terminated", "termination": "terminated",
    "obs": "observation", "get_obs": "observation", "get_observation": "observation", "get_reward": "reward",
    "reset_model": "reset", "randomize_model": "randomize", "domain_randomization": "randomize",
    "apply_action": "control",
    "max_steps": "max_episode_steps", "episode_length": "max_episode_steps", "time_limit": "max_episode_steps",
    "keyframe": "home", "action_range": "action_low and action_high", "action_bounds": "action_low and action_high",
    "xml": "mjcf", "model_path": "mjcf", "substeps": "frame_skip",
}  # fmt: skip
"""Names that other libraries, or other tasks, give to attributes of Task."""


def check_class(task: type[Task]) -> None:
    """Check a Task class.

    Covers names, options, `fields`, step counts and signatures. Warns about names that look like misspelt
    attributes of Task.

    Raises:
        SaltusError: a mistake that would fail later, or do something else without a word.
    """
    _check_option_names(task)
    _check_init_vars(task)
    _check_bound_names(task)
    _check_inherited_options(task)
    _check_fields(task)
    _check_step_counts(task)
    for name, arguments in SIGNATURES.items():
        _check_signature(task, name, arguments)
    _warn_of_near_misses(task)


def _own_classes(task: type[Task]) -> Iterator[type]:
    """The class and its bases, down to Task."""
    return (cls for cls in task.__mro__ if issubclass(cls, Task) and cls is not Task)


def _defines(task: type[Task], name: str) -> bool:
    return any(name in vars(cls) for cls in _own_classes(task))


def _options_of(cls: type) -> set[str]:
    return {item.name for item in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()


def _check_option_names(task: type[Task]) -> None:
    for name in {**inspect.signature(task).parameters, **dict.fromkeys(_options_of(task))}:
        if name in MAKE_ARGUMENTS:
            raise SaltusError(
                f"task {task.__name__} has an option {name!r}, which is an argument of saltus.make: choose another name"
            )
        if name in SIGNATURES:
            raise SaltusError(
                f"task {task.__name__} has an option {name!r}, which is a function of Task: choose another name"
            )


def _check_init_vars(task: type[Task]) -> None:
    """Refuse ``InitVar``: an object does not keep its value, so a run could not either."""
    pseudo_fields = getattr(task, "__dataclass_fields__", {}).keys() - _options_of(task)
    for name in inspect.signature(task).parameters:
        if name in pseudo_fields:
            raise SaltusError(
                f"task {task.__name__} has the InitVar {name!r}, whose value a run cannot keep: make it a field, such "
                f"as {name}: float = 0.0, and read self.{name} in __post_init__"
            )


def _check_bound_names(task: type[Task]) -> None:
    for name in BOUND:
        if _defines(task, name) or name in _options_of(task):
            raise SaltusError(
                f"task {task.__name__} defines {name!r}, which saltus sets when it compiles the model: choose another "
                "name" + (", and set the time step in the MJCF and frame_skip" if name == "dt" else "")
            )


def _check_inherited_options(task: type[Task]) -> None:
    """Refuse new defaults of inherited options that have no effect."""
    for cls in _own_classes(task):
        bases = [base for base in cls.__bases__ if dataclasses.is_dataclass(base)]
        hints = {item.name: item.type for base in bases for item in dataclasses.fields(base)}
        annotated = inspect.get_annotations(cls) if "__dataclass_fields__" in vars(cls) else {}
        unused = [name for name in vars(cls) if name in hints.keys() - annotated]
        if unused:
            types = {name: getattr(hints[name], "__name__", hints[name]) for name in unused}
            lines = "; ".join(f"{name}: {types[name]} = ..." for name in unused)
            raise SaltusError(
                f"{cls.__name__} sets {', '.join(unused)} without effect: these are options that it inherits, and its "
                f"constructor sets their inherited defaults. Decorate the class with @dataclass, and write {lines}"
            )


def _check_fields(task: type[Task]) -> None:
    fields = task.fields
    if isinstance(fields, str):
        raise SaltusError(f"{task.__name__}.fields is the string {fields!r}; expected a tuple: fields = ({fields!r},)")
    if not (isinstance(fields, tuple | list) and all(isinstance(name, str) for name in fields)):
        raise SaltusError(
            f"{task.__name__}.fields is {fields!r}; expected a tuple of names of MjData fields, such as "
            "('qpos', 'qvel', 'xpos')"
        )


def _check_step_counts(task: type[Task]) -> None:
    for name in ("frame_skip", "max_episode_steps", "settle_steps", "model_variants"):
        value = inspect.getattr_static(task, name)
        if isinstance(value, int | float | str | None) and not is_whole(value):
            unit = "" if name == "model_variants" else " of steps"
            raise SaltusError(f"{task.__name__}.{name} is {value!r}; expected a whole number{unit}")


def _check_signature(task: type[Task], name: str, arguments: tuple[str, ...]) -> None:
    static, function = inspect.getattr_static(task, name), getattr(task, name)
    expected = f"def {name}({', '.join(('self', *arguments))})"
    if not callable(function):
        raise SaltusError(f"{task.__name__}.{name} is a {type(function).__name__}; expected a function: {expected}")
    is_method = hasattr(static, "__get__") and not isinstance(static, staticmethod | classmethod)
    try:
        signature = inspect.signature(function)
    except ValueError:  # of code that is not Python's
        return
    try:
        signature.bind(*[None] * (len(arguments) + is_method))
    except TypeError as error:
        raise SaltusError(
            f"{task.__name__}.{name}{signature} cannot be called with {', '.join(arguments)} ({error}); "
            f"expected: {expected}"
        ) from None


def _warn_of_near_misses(task: type[Task]) -> None:
    for cls in _own_classes(task):
        for name in {**vars(cls), **inspect.get_annotations(cls)}:
            if name.startswith("_") or hasattr(Task, name):
                continue
            meant = ALIASES.get(name)
            if meant and not reads(task, name):
                warn_once(f"saltus does not use {cls.__name__}.{name}; did you mean {meant}?")
            for close in difflib.get_close_matches(name, ATTRIBUTES, n=1, cutoff=0.85):
                is_unused = inspect.isfunction(vars(cls).get(name)) and not reads(task, name)
                if not _defines(task, close) or is_unused:
                    warn_once(f"saltus does not use {cls.__name__}.{name}; did you mean {close}?")


def reads(task: type[Task], name: str) -> bool:
    """Whether the files of a task's classes read an attribute of this name, or cannot be read themselves."""
    try:
        files = {inspect.getfile(cls) for cls in _own_classes(task)}
    except (OSError, TypeError):  # an interactive session
        return True
    sources = ["".join(linecache.getlines(file)) for file in files]
    return not all(sources) or any(re.search(rf"\.{name}\b", source) for source in sources)


def uncalled_methods(task: type[Task]) -> list[str]:
    """Public methods whose first argument is ``state``, and which neither saltus nor the task's files call."""
    names = {
        name: None
        for cls in _own_classes(task)
        for name, method in vars(cls).items()
        if inspect.isfunction(method) and [*inspect.signature(method).parameters][1:2] == ["state"]
    }
    return [name for name in names if not (name.startswith("_") or hasattr(Task, name) or reads(task, name))]

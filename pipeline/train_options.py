"""Options of ``saltus train``: a preset's settings, the options given, the task's own options."""

from __future__ import annotations

import argparse
import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import tyro

import envs
from envs import Task
from envs.task_options import encode_options, is_same, option_hints
from envs.task_ref import resolve_task
from pipeline import presets
from pipeline.config import Config
from saltus.errors import SaltusError

# Options and values of saltus 0.1.0, with their names today.
RENAMED_OPTIONS = {
    "--policy-average": "--eval-policy-averaging",
    "--lr-final": "--lr-final-fraction",
    "--unit-weights": "--weight-normalization",
}
RENAMED_VALUES = {("--critic-loss", "squared"): "mse", ("--reward-scaling", "deviation"): "std"}


def parse_train(arguments: list[str]) -> tuple[Config, Path | None]:
    """Parse the arguments of ``saltus train``.

    Returns:
        The run's configuration, and its directory if one was given.

    Raises:
        SaltusError: no task, an unknown task or preset, or invalid settings.
        SystemExit: help was asked for (code 0), or tyro refused an option (code 2).
    """
    _refuse_old_names(arguments)
    task_name, preset, rest = _split(arguments)
    reference = resolve_task(task_name)
    task = reference.task
    default = presets.preset(preset, task=reference.name)
    options: Any = tyro.cli(
        _options_type(task, default, preset),
        args=rest,
        prog=f"saltus train {task_name}",
        description=f"Train a policy. Tasks: {_tasks()}.",
    )
    _refuse_unused(options.config, default)
    task_options = encode_options(task, _changed_options(task, options.task)) if option_hints(task) else {}
    return dataclasses.replace(options.config, task_options=task_options), options.run_dir


def _split(arguments: list[str]) -> tuple[str, str, list[str]]:
    """Task, preset and other arguments: the first two decide which options and defaults there are."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default=presets.DEFAULT)
    known, rest = parser.parse_known_args(arguments)
    if rest and not rest[0].startswith("-"):
        return rest[0], known.preset, rest[1:]
    if {"-h", "--help"} & set(rest):
        return "Hopper-v5", known.preset, ["--help"]
    raise SaltusError(f"name the task first, as in `saltus train Hopper-v5 ...`. Tasks: {_tasks()}")


def _tasks() -> str:
    return f"{', '.join(envs.list_tasks())}, or path/to/file.py:ClassName"


def _options_type(task: type[Task], default: Config, preset: str) -> type:
    """A dataclass for tyro: configuration, preset, run directory, and the task's options as ``--task.name``."""
    preset_help = tyro.conf.arg(help=f"Recipe that sets the other defaults: {', '.join(presets.names())}.")
    run_dir_help = tyro.conf.arg(
        help="The run's directory.", metavar="PATH", help_behavior_hint="(default: runs/<task>-s<seed>-<time>)"
    )
    fields: list[Any] = [
        ("config", Annotated[Config, tyro.conf.arg(name="")], dataclasses.field(default=default)),
        ("preset", Annotated[str, preset_help], dataclasses.field(default=preset)),
        ("run_dir", Annotated[Path | None, run_dir_help], dataclasses.field(default=None)),
    ]
    if option_hints(task):
        fields.insert(0, ("task", _options_class(task)))
    return dataclasses.make_dataclass("Train", fields)


def _refuse_old_names(arguments: list[str]) -> None:
    words = [word for argument in arguments for word in argument.split("=", 1)]
    for option, following in pairwise([*words, ""]):
        name = option.replace("_", "-")
        if name in RENAMED_OPTIONS:
            raise SaltusError(f"{name} is now {RENAMED_OPTIONS[name]}")
        if (name, following) in RENAMED_VALUES:
            raise SaltusError(f"{name} {following} is now {name} {RENAMED_VALUES[name, following]}")


def _refuse_unused(config: Config, default: Config) -> None:
    """Raise SaltusError if an option was set that has no effect with the others."""
    for name, needed in config.unused_settings().items():
        if getattr(config, name) != getattr(default, name):
            raise SaltusError(f"--{name.replace('_', '-')} has no effect here: it needs {needed}")


def _options_class(task: Any) -> type:
    """A dataclass with the fields of a task, which keeps the values that it is given: no ``__post_init__`` runs."""
    return dataclasses.make_dataclass(
        task.__name__,
        [],
        bases=(task,),
        namespace={"__doc__": task.__doc__, "__post_init__": lambda self, *_: None},
        frozen=task.__dataclass_params__.frozen,
    )


def _changed_options(task: Any, options: Any) -> dict[str, Any]:
    """The task's options that differ from their defaults."""
    fields = [item for item in dataclasses.fields(task) if item.init]
    values = {item.name: getattr(options, item.name) for item in fields}
    return {item.name: values[item.name] for item in fields if not is_same(values[item.name], _default(item))}


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()

"""Options of ``saltus train``: a preset's settings, the options given, the task's own options."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection, Mapping
from copy import copy
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro

import envs
from envs.environment_ref import EnvironmentRef, options_class, refuse_simulation, resolve_environment
from envs.task_options import coerce_options, encode_options, is_same, option_hints
from envs.task_ref import TaskRef, resolve_task
from envs.tasks.gymnasium_task import GymnasiumTask, is_gymnasium_model
from pipeline import presets
from pipeline.config import Config
from pipeline.config_checks import coerce_setting, refuse_unused
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
    options = parse_options(arguments)
    return options.config, options.run_dir


def parse_options(
    arguments: list[str], command: str = "train", extra: Any = None, run_dir: str = "a temporary directory"
) -> Any:
    """Parse the options of training, and those of a command that trains.

    Args:
        arguments: the arguments of the command.
        command: its name.
        extra: default options of the command itself, as a dataclass.
        run_dir: the default of ``--run-dir`` of a command with `extra`, for its help.

    Returns:
        An object with `config`, `preset`, `run_dir` and `extra`.

    Raises:
        SaltusError, SystemExit: as `parse_train`.
    """
    _refuse_empty_run_dir(arguments)
    _refuse_old_names(arguments)
    run_dir = "runs/<task>-s<seed>-<time>" if extra is None else run_dir
    task_name, preset, rest = _split(arguments, command, extra, run_dir)
    reference = resolve_environment(task_name)
    task = options_class(reference)
    default = presets.preset(preset, task=reference.name)
    task_defaults = _default_options(task) if option_hints(task) else None
    options_type = _options_type(default, preset, task_defaults, extra, run_dir)
    options = _parse(rest, f"saltus {command} {task_name}", options_type)
    given = {word[2:].replace("-", "_") for word in split_words(rest) if word.startswith("--")}
    task_options = {} if task_defaults is None else _values(options.task)
    options.config = _complete(options.config, default, given, reference, task_options, task_defaults)
    return options


def configure(task: str, preset: str, settings: Mapping[str, Any], task_options: Mapping[str, Any]) -> Config:
    """The configuration that `parse_train` makes of the same settings.

    Args:
        task: its name.
        preset: the preset's name.
        settings: fields of `Config` that differ from the preset, by name.
        task_options: the task's own options, by name.

    Raises:
        SaltusError: as `parse_train`, also for a setting of another type.
    """
    reference = resolve_environment(task)
    own = options_class(reference)
    default = presets.preset(preset, task=reference.name)
    hints = {name: hint for name, hint in get_type_hints(Config).items() if name not in ("task", "task_options")}
    for name in settings:
        if name not in hints and name in option_hints(own):
            raise SaltusError(f"{name} is an option of the task: pass task_options={{{name!r}: ...}}")
        if name not in hints:
            raise presets.unknown_setting(name, hints)
    if not isinstance(task_options, Mapping):
        raise SaltusError(f"task_options is {task_options!r}; it must be a dictionary of options by name, or None")
    values = {name: coerce_setting(name, hints[name], value) for name, value in settings.items()}
    config = dataclasses.replace(default, **values)
    task_defaults = _default_options(own) if option_hints(own) else None
    return _complete(config, default, values, reference, coerce_options(own, task_options), task_defaults)


def _complete(
    config: Config,
    default: Config,
    given: Collection[str],
    reference: EnvironmentRef,
    task_options: Mapping[str, Any],
    task_defaults: Any,
) -> Config:
    """Refuse settings without effect; add the options of the task that differ from their defaults."""
    _refuse_two_lengths(config, given)
    refuse_unused(config, default)
    refuse_simulation(reference, config)
    task = options_class(reference)
    changed = _changed_options(task, task_options, task_defaults)
    return dataclasses.replace(config, task_options=encode_options(task, changed))


def parse_task(arguments: list[str], command: str, extra: Any) -> tuple[TaskRef, dict[str, Any], Any]:
    """Parse the arguments of a command on a task that does not train.

    Args:
        arguments: the arguments of the command.
        command: its name.
        extra: default options of the command itself, as a dataclass.

    Returns:
        The task, its options that differ from their defaults, and the options of the command.

    Raises:
        SaltusError, SystemExit: as `parse_train`.
    """
    fields: list[Any] = [("extra", Annotated[type(extra), tyro.conf.arg(name="")], dataclasses.field(default=extra))]
    if not arguments or arguments[0].startswith("-"):
        if {"-h", "--help"} & set(arguments):
            _parse(arguments, f"saltus {command} TASK", dataclasses.make_dataclass("Options", fields))
        raise _no_task(command)
    reference = resolve_task(arguments[0])
    defaults = _default_options(reference.task) if option_hints(reference.task) else None
    if defaults is not None:
        fields.insert(0, ("task", type(defaults), dataclasses.field(default_factory=lambda: defaults)))
    parsed = _parse(arguments[1:], f"saltus {command} {arguments[0]}", dataclasses.make_dataclass("Options", fields))
    changed = {} if defaults is None else _changed_options(reference.task, _values(parsed.task), defaults)
    return reference, changed, parsed.extra


def _no_task(command: str) -> SaltusError:
    return SaltusError(f"name the task first, as in `saltus {command} Hopper-v5 ...`. Tasks: {_tasks(command)}")


def _split(arguments: list[str], command: str, extra: Any, run_dir: str) -> tuple[str, str, list[str]]:
    """Task, preset and other arguments: the first two decide which options and defaults there are."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default=presets.DEFAULT, nargs="?")
    known, rest = parser.parse_known_args(arguments)
    if known.preset is None:
        raise SaltusError(f"--preset needs a name: one of {', '.join(presets.names())}")
    if rest and not rest[0].startswith("-"):
        return rest[0], known.preset, rest[1:]
    if {"-h", "--help"} & set(rest):
        default = presets.preset(known.preset, task="")
        _parse(rest, f"saltus {command} TASK", _options_type(default, known.preset, None, extra, run_dir))
    raise _no_task(command)


def _parse(arguments: list[str], command: str, options_type: type) -> Any:
    name = command.split()[1]
    return tyro.cli(
        options_type,
        args=arguments,
        prog=command,
        description=f"Tasks: {_tasks(name)}. The options of a task: saltus {name} <task> --help.",
    )


def _tasks(command: str) -> str:
    others = ", gym:ID of Gymnasium, or path/to/file.py:function" if command in ("train", "tune", "warmup") else ""
    return f"{', '.join(envs.list_tasks())}, or path/to/file.py:ClassName{others}"


def _options_type(default: Config, preset: str, task_defaults: Any, extra: Any, run_dir: str) -> type:
    """A dataclass for tyro: configuration, preset, run directory, options of the task (``--task.name``), `extra`."""
    preset_help = tyro.conf.arg(help=f"Recipe that sets the other defaults: {', '.join(presets.names())}.")
    run_dir_help = tyro.conf.arg(
        help="The run's directory.", metavar="PATH", help_behavior_hint=f"(default: {run_dir})"
    )
    fields: list[Any] = [
        ("config", Annotated[Config, tyro.conf.arg(name="")], dataclasses.field(default=default)),
        ("preset", Annotated[str, preset_help], dataclasses.field(default=preset)),
        ("run_dir", Annotated[Path | None, run_dir_help], dataclasses.field(default=None)),
    ]
    if extra is not None:
        fields.insert(0, ("extra", Annotated[type(extra), tyro.conf.arg(name="")], dataclasses.field(default=extra)))
    if task_defaults is not None:
        fields.insert(0, ("task", type(task_defaults), dataclasses.field(default_factory=lambda: task_defaults)))
    return dataclasses.make_dataclass("Train", fields)


def _default_options(task: Any) -> Any:
    """The default options of a task, as an object.

    Its class has no ``__post_init__``, so options stay as the user gives them. Required options are ``tyro.MISSING``.
    """
    subclass = dataclasses.make_dataclass(
        task.__name__,
        [],
        bases=(task,),
        namespace={"__doc__": task.__doc__, "__post_init__": lambda self: None},
        frozen=task.__dataclass_params__.frozen,
    )
    return subclass(**{item.name: _default(item) for item in dataclasses.fields(task) if item.init})


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return tyro.MISSING if field.default is dataclasses.MISSING else field.default


def split_words(arguments: list[str]) -> list[str]:
    """Options and values as words of their own, also those of ``--option=value``."""
    return [
        word for argument in arguments for word in (argument.split("=", 1) if argument.startswith("-") else [argument])
    ]


def _refuse_empty_run_dir(arguments: list[str]) -> None:
    if ("--run-dir", "") in pairwise(word.replace("_", "-") for word in split_words(arguments)):
        raise SaltusError("--run-dir is empty: name a directory, or leave the option out (is a shell variable unset?)")


def _refuse_old_names(arguments: list[str]) -> None:
    for option, following in pairwise([*split_words(arguments), ""]):
        name = option.replace("_", "-")
        if name in RENAMED_OPTIONS:
            raise SaltusError(f"{name} is now {RENAMED_OPTIONS[name]}")
        if (name, following) in RENAMED_VALUES:
            raise SaltusError(f"{name} {following} is now {name} {RENAMED_VALUES[name, following]}")


def _refuse_two_lengths(config: Config, given: Collection[str]) -> None:
    """Raise SaltusError if both minutes and env steps were given."""
    if config.minutes is not None and "total_env_steps" in given:
        raise SaltusError(
            "--minutes and --total-env-steps both set the length of the run: give one of them. With --minutes the run "
            "takes as many env steps as it can"
        )


def _values(options: Any) -> dict[str, Any]:
    """The options of a task by name, from an object of them."""
    return {item.name: getattr(options, item.name) for item in dataclasses.fields(options) if item.init}


def _changed_options(task: type, values: Mapping[str, Any], defaults: Any) -> dict[str, Any]:
    """The options that differ from their defaults, with absolute paths."""
    changed = {name: value for name, value in values.items() if not _is_default(value, getattr(defaults, name))}
    return {
        name: value if _is_name_of_a_model(task, name, value) else _absolute(value) for name, value in changed.items()
    }


def _is_name_of_a_model(task: type, name: str, value: Any) -> bool:
    """Whether an option names one of Gymnasium's models, although the current folder may have such a file."""
    return issubclass(task, GymnasiumTask) and name == "xml_file" and is_gymnasium_model(value)


def _is_default(value: Any, default: Any) -> bool:
    """Whether an option has its default, or what tyro makes of it: a nested dataclass of the same fields."""
    if is_same(value, default):
        return True
    return dataclasses.is_dataclass(default) and is_same(value, dataclasses.replace(default))  # type: ignore[type-var]


def _absolute(value: Any) -> Any:
    """A value with the absolute paths of existing files and folders (in strings: of XML files), at any depth."""
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(map(_absolute, value))
    if type(value) is dict:
        return {key: _absolute(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value):
        changed = copy(value)  # dataclasses.replace would call __post_init__ again
        for item in dataclasses.fields(value):
            object.__setattr__(changed, item.name, _absolute(getattr(value, item.name)))
        return changed
    if isinstance(value, Path) or (isinstance(value, str) and value.endswith(".xml")):
        path = Path(value).expanduser().absolute()
        return type(value)(path) if path.exists() else value
    return value

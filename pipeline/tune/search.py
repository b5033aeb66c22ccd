"""The options that a sweep searches: ranges of the preset, and those of ``--search``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pipeline.config import Config
from pipeline.search_ranges import LOG_SCALE, Choices, Interval, Range, search_ranges
from saltus.errors import SaltusError

# Settings that say how trials run, how long, or how they are judged.
NOT_SEARCHED = frozenset({
    "task", "task_options", "seed", "device", "compile", "num_threads", "total_env_steps", "minutes", "log_every",
    "eval_every", "eval_episodes", "checkpoint_every", "wandb",
})  # fmt: skip
_SCALES = {"log": True, "linear": False}


def search_space(texts: Iterable[str], config: Config, preset: str, fixed: Iterable[str]) -> dict[str, Range]:
    """The ranges of a sweep, by the names of settings.

    Args:
        texts: those of ``--search``: ``name=low..high``, ``name=value,value`` or ``name``. None: all of the preset.
        config: the configuration of the options that are fixed.
        preset: its preset.
        fixed: settings that the user has fixed.

    Raises:
        SaltusError: a setting that does not exist, has no effect or is fixed, or a range that does not work.
    """
    declared, fixed, texts = search_ranges(preset), {*fixed}, [*texts]
    if not texts:
        usable = {name: _usable(name, values, config) for name, values in declared.items() if name not in fixed}
        space = {name: values for name, values in usable.items() if values is not None}
        if not space:
            raise SaltusError("every option that the preset searches is fixed: name one to search, with --search")
        return space
    space = {}
    for text in texts:
        name = text.partition("=")[0].strip().removeprefix("--").replace("-", "_")
        try:
            _require_searchable(name, config, fixed)
            if name in space:
                raise SaltusError("the option is named twice")
            space[name] = _parse(name, text.partition("=")[2], declared) if "=" in text else _declared(name, declared)
            for value in _values_to_try(space[name]):
                dataclasses.replace(config, **{name: value})
        except SaltusError as error:
            raise SaltusError(f"--search {text}: {error}") from None
    return space


def _usable(name: str, values: Range, config: Config) -> Range | None:
    """A declared range without the choices that do not work with the fixed options; None if fewer than two do."""
    if name in config.unused_settings():
        return None
    works = [value for value in _values_to_try(values) if _works(config, name, value)]
    if isinstance(values, Choices):
        return Choices(tuple(works)) if len(works) > 1 else None
    return values if len(works) == 2 else None


def _works(config: Config, name: str, value: Any) -> bool:
    try:
        dataclasses.replace(config, **{name: value})
    except SaltusError:
        return False
    return True


def _require_searchable(name: str, config: Config, fixed: set[str]) -> None:
    names = {item.name for item in dataclasses.fields(Config)}
    if name not in names:
        listed = ", ".join(sorted(flag(one) for one in names - NOT_SEARCHED))
        raise SaltusError(f"{flag(name)!r} is no option that can be searched; these can: {listed}")
    if name in NOT_SEARCHED:
        raise SaltusError(f"{flag(name)} does not change how a trial learns: fix it with --{flag(name)}")
    if name in fixed:
        raise SaltusError(f"--{flag(name)} fixes the option: leave out one of the two")
    if name in config.unused_settings():
        raise SaltusError(f"the option has no effect here: it needs {config.unused_settings()[name]}")


def _declared(name: str, declared: Mapping[str, Range]) -> Range:
    if name not in declared:
        raise SaltusError(f"the preset has no range for it: give one, as in {flag(name)}=LOW..HIGH or VALUE,VALUE")
    return declared[name]


def _parse(name: str, text: str, declared: Mapping[str, Range]) -> Range:
    """A range of the form ``low..high``, perhaps with ``:log`` or ``:linear``, or ``value,value``."""
    if not text.strip():
        raise SaltusError("the range is empty: give LOW..HIGH or VALUE,VALUE (is a shell variable unset?)")
    if ".." in text:
        return _parse_interval(name, text, declared.get(name))
    values = tuple(parse_value(name, part) for part in text.split(","))
    if len(values) < 2:
        raise SaltusError(f"one value is no range: fix it with --{flag(name)} {text}, or give several, as in A,B")
    if len({*values}) < len(values):
        raise SaltusError("a value is given twice")
    return Choices(values)


def _parse_interval(name: str, text: str, declared: Range | None) -> Interval:
    bounds, _, scale = text.partition(":")
    if scale and scale not in _SCALES:
        raise SaltusError(f"there is no scale {scale!r}: it is log or linear")
    low, high = (parse_value(name, part) for part in bounds.split("..", 1))
    for bound in (low, high):
        if isinstance(bound, bool | str | tuple):
            raise SaltusError(f"{bound!r} is no number, and LOW..HIGH needs numbers: list the values, as in A,B")
        if not math.isfinite(bound):
            raise SaltusError(f"{bound} is not finite")
    if low >= high:
        problem = f"the low end, {low:g}, is above the high end, {high:g}" if low > high else "both ends are equal"
        raise SaltusError(f"{problem}: give LOW..HIGH with LOW below HIGH")
    log = _SCALES[scale] if scale else declared.log if isinstance(declared, Interval) else name in LOG_SCALE
    if log and low <= 0:
        raise SaltusError(
            f"the scale is logarithmic, and {low:g} has no logarithm: raise the low end above 0, or append :linear"
        )
    return Interval(low, high, log)


def parse_value(name: str, text: str) -> Any:
    """A value of a setting.

    Raises:
        SaltusError: it is none; the message says which values there are.
    """
    text, hint = text.strip(), get_type_hints(Config)[name]
    kinds = get_args(hint) if get_origin(hint) not in (Literal, tuple) and get_args(hint) else (hint,)
    for kind in kinds:
        value = _read(kind, text)
        if value is not None:
            return value
    raise SaltusError(f"{text!r} is no value of {flag(name)}: give {' or '.join(map(_describe, kinds))}")


def _read(kind: Any, text: str) -> Any:
    """A value of a kind; None if the text is none."""
    try:
        if get_origin(kind) is Literal:
            return text if text in get_args(kind) else None
        if get_origin(kind) is tuple:
            return tuple(map(int, text.split())) or None
        if kind is bool:
            return {"true": True, "false": False}.get(text.lower())
        if kind is int:
            return (
                int(text) if not {*"e."} & {*text.lower()} else int(float(text)) if float(text).is_integer() else None
            )
        return float(text) if kind is float else None
    except ValueError:
        return None


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}" if len(get_args(kind)) > 1 else get_args(kind)[0]
    if get_origin(kind) is tuple:
        return "whole numbers, such as '256 256'"
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "none")


def _values_to_try(values: Range) -> tuple[Any, ...]:
    return values.values if isinstance(values, Choices) else (values.low, values.high)


def flag(name: str) -> str:
    """A setting's name on the command line, without dashes before it."""
    return name.replace("_", "-")


def words(options: Mapping[str, Any]) -> list[str]:
    """Settings as words of a command line."""
    found = []
    for name, value in options.items():
        if isinstance(value, bool):
            found.append(f"--{flag(name)}" if value else f"--no-{flag(name)}")
        else:
            found += [f"--{flag(name)}", *map(str, value if isinstance(value, tuple) else (value,))]
    return found


def show(options: Mapping[str, Any]) -> str:
    """Settings in one line of text."""
    return ", ".join(f"{flag(name)} {show_value(value)}" for name, value in options.items())


def show_value(value: Any) -> str:
    """A setting's value as text."""
    return (
        " ".join(map(str, value))
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def own_values(space: Mapping[str, Range], config: Config, action_dim: int, control_step: float) -> dict[str, Any]:
    """The values that the searched options have without a search; empty if a range leaves out one of them.

    Args:
        space: the ranges.
        config: the configuration of the options that are fixed.
        action_dim: width of actions, on which values that are ``"auto"`` depend.
        control_step: length of a control step, in seconds of simulated time.
    """
    automatic = {
        "n_step": config.rewards_per_target(action_dim),
        "alpha_init": config.initial_temperature(action_dim),
        "noise_repeat": config.longest_repeat(control_step),
    }
    values = {name: automatic.get(name, getattr(config, name)) for name in space}
    return values if all(_contains(space[name], value) for name, value in values.items()) else {}


def _contains(values: Range, value: Any) -> bool:
    if isinstance(values, Choices):
        return value in values.values
    return isinstance(value, int | float) and values.low <= value <= values.high

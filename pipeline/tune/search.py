"""The options that a sweep searches: ranges of the preset, and those of ``--search``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from itertools import combinations, product
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pipeline.config import Config
from pipeline.config_checks import describe_values
from pipeline.search_ranges import LOG_SCALE, Choices, Interval, Range, search_ranges
from saltus.errors import SaltusError

# Settings that say how trials run, how long, or how they are judged.
NOT_SEARCHED = frozenset({
    "task", "task_options", "seed", "device", "compile", "num_threads", "total_env_steps", "minutes", "log_every",
    "eval_every", "eval_episodes", "checkpoint_every", "wandb",
})  # fmt: skip
INNER = (0.13, 0.31, 0.5, 0.69, 0.87)  # shares of an interval at which numbers are tried
MOST_OF_PAIR = 20  # values of an option that are tried with those of another
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
            if "=" in text:
                space[name] = _parse(name, text.partition("=")[2], declared)
                _require_configurations(name, space[name], config)
            else:
                space[name] = _declared(name, declared, config)
        except SaltusError as error:
            raise SaltusError(f"--search {text}: {error}") from None
    _require_pairs(space, config)
    return space


def _usable(name: str, values: Range, config: Config) -> Range | None:
    """A declared range without the choices that do not work with the fixed options; None if fewer than two do."""
    if name in config.unused_settings():
        return None
    tried = _values_to_try(values)
    works = tuple(value for value in tried if _problem(config, {name: value}) is None)
    if isinstance(values, Choices):
        return Choices(works) if len(works) > 1 else None
    return values if works == tried else None


def _problem(config: Config, options: Mapping[str, Any]) -> SaltusError | None:
    """Why options make no configuration; None if they do."""
    try:
        dataclasses.replace(config, **options)
    except SaltusError as error:
        return error
    return None


def _require_configurations(name: str, values: Range, config: Config) -> None:
    for value in _values_to_try(values):
        error = _problem(config, {name: value})
        if error is None:
            continue
        if isinstance(values, Interval) and values.low < value < values.high:
            raise SaltusError(f"not every number of the range works ({error}): list the values, as in A,B")
        raise error


def _require_pairs(space: Mapping[str, Range], config: Config) -> None:
    """Raise SaltusError if values of two options do not work together, as far as a few values of each show."""
    for (name, values), (other, others) in combinations(space.items(), 2):
        for pair in product(_values_to_try(values)[:MOST_OF_PAIR], _values_to_try(others)[:MOST_OF_PAIR]):
            options = dict(zip((name, other), pair, strict=True))
            error = _problem(config, options)
            if error is not None:
                raise SaltusError(
                    f"the searched {flag(name)} and {flag(other)} depend on each other: {show(options)} do not work "
                    f"together ({error}). Fix one of them, or list values that all work together"
                )


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


def _declared(name: str, declared: Mapping[str, Range], config: Config) -> Range:
    if name not in declared:
        raise SaltusError(f"the preset has no range for it: give one, as in {flag(name)}=LOW..HIGH or VALUE,VALUE")
    usable = _usable(name, declared[name], config)
    if usable is None:
        raise SaltusError(
            f"fewer than two values of the preset's range ({declared[name]}) work with the fixed options: give "
            f"another, as in {flag(name)}=LOW..HIGH or VALUE,VALUE"
        )
    return usable


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
            return _read_whole(text)
        return float(text) if kind is float else None
    except ValueError:
        return None


def _read_whole(text: str) -> int | None:
    """A whole number, such as 100000 or 1e5; None if it is another number. Raises ValueError if it is none."""
    if not {*"e."} & {*text.lower()}:
        return int(text)
    return int(float(text)) if float(text).is_integer() else None


def _describe(kind: Any) -> str:
    return "whole numbers, such as '256 256'" if get_origin(kind) is tuple else describe_values(kind)


def _values_to_try(values: Range) -> tuple[Any, ...]:
    """All choices; of an interval both ends, and some numbers between them."""
    if isinstance(values, Choices):
        return values.values
    low, high = values.low, values.high
    if values.log:
        inner = [low ** (1 - share) * high**share for share in INNER]
    else:
        inner = [low + share * (high - low) for share in INNER]
    if isinstance(low, int) and isinstance(high, int):
        inner = [*dict.fromkeys(number for one in inner if low < (number := round(one)) < high)]
    return (low, high, *inner)


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
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def own_values(space: Mapping[str, Range], config: Config, action_dim: int, control_step: float) -> dict[str, Any]:
    """The values that the searched options have without a search; empty if a range leaves out one of them.

    Args:
        space: the ranges.
        config: the configuration of the options that are fixed.
        action_dim: width of actions, on which values that are ``"auto"`` depend.
        control_step: length of a control step, in seconds of simulated time.
    """
    automatic = {
        "gamma": _own_discount(config, space, control_step),
        "n_step": config.rewards_per_target(action_dim),
        "alpha_init": config.initial_temperature(action_dim),
        "noise_repeat": config.longest_repeat(control_step),
    }
    values = {name: automatic.get(name, getattr(config, name)) for name in space}
    return values if all(_contains(space[name], value) for name, value in values.items()) else {}


def _own_discount(config: Config, space: Mapping[str, Range], control_step: float) -> float | str:
    """`Config.gamma`; a number in place of ``"auto"`` if that is not in the range, and it does not grow."""
    end = config.total_env_steps if config.minutes is None else math.inf
    first, last = (config.discount(steps, control_step) for steps in (0, end))
    return first if first == last and not _contains(space.get("gamma", Choices(())), "auto") else config.gamma


def _contains(values: Range, value: Any) -> bool:
    if isinstance(values, Choices):
        return value in values.values
    return isinstance(value, int | float) and values.low <= value <= values.high

"""The options of a task as JSON data, and back by the type hints of its fields."""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import json
import types
from collections.abc import Callable, Mapping
from contextlib import suppress
from numbers import Integral, Real
from pathlib import Path, PurePath
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch

from saltus.errors import SaltusError

KEPT = "numbers, strings, bytes, paths, enums, dataclasses, and lists, tuples, sets and dicts of them"

# Collections by type hint: the type that is rebuilt.
_SEQUENCES: dict[Any, Callable[[list[Any]], Any]] = {
    list: list,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
    collections.abc.Sequence: list,
    collections.abc.Set: set,
}
# Types of values that fit a type hint, where these are others than the hint.
_ACCEPTED: dict[type, tuple[type, ...]] = {
    bool: (np.bool_,),
    int: (Integral,),
    float: (Real, np.ndarray, torch.Tensor),
    Path: (PurePath, str),
}
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def encode_options(task: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Encode options of a task as JSON data.

    `decode_options` rebuilds equal values from the data.

    Raises:
        SaltusError: an unknown option, or one whose value would not come back; the message names the field.
    """
    hints = option_hints(task)
    _require_known(task, options, hints)
    return {name: _encode_option(task, name, hints[name], value) for name, value in options.items()}


def decode_options(task: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Rebuild options from the data of `encode_options`.

    The type hints of the task's fields say what the data mean.

    Raises:
        SaltusError: an unknown option, or data that do not fit the field's type hint.
    """
    hints = option_hints(task)
    _require_known(task, values, hints)
    return {name: _decode_option(task, name, hints[name], value) for name, value in values.items()}


def coerce_options(task: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as the type hints of their fields have them: a list becomes a tuple, a whole number a float.

    Raises:
        SaltusError: an unknown option, or a value that cannot be meant.
    """
    hints = option_hints(task)
    _require_known(task, options, hints)
    values = dict(options)
    for name, value in options.items():
        with suppress(TypeError, ValueError):  # `encode_options` refuses what has no data
            values[name] = coerce(hints[name], value)
    check_options(task, values)
    return values


def coerce(hint: Any, value: Any) -> Any:
    """A value as a type hint has it, rebuilt from its JSON data.

    Raises:
        TypeError, ValueError: a value of another type, or of one that has no data.
    """
    return _decode(hint, json.loads(json.dumps(_encode(value))))


def check_options(task: type, options: Mapping[str, Any]) -> None:
    """Check options against the type hints of their fields.

    Raises:
        SaltusError: a value that cannot be meant, such as a string for a number.
    """
    hints = option_hints(task)
    for name, value in options.items():
        if not _fits(hints.get(name, Any), value):
            raise SaltusError(
                f"option {name!r} of task {task.__name__} is {value!r}; expected a value of type "
                f"{_describe(hints[name])}"
            )


def option_hints(task: type) -> dict[str, Any]:
    """The type hints of a task's options, by name. No options: the class is not a dataclass."""
    if not dataclasses.is_dataclass(task):
        return {}
    return _field_hints(task)


def _field_hints(cls: Any) -> dict[str, Any]:
    """The type hints of the constructor's fields. Any: a hint that cannot be resolved."""
    try:
        hints = get_type_hints(cls)
    except Exception:  # names that exist for type checkers only
        hints = {}
    return {item.name: hints.get(item.name, Any) for item in dataclasses.fields(cls) if item.init}


def is_same(one: Any, other: Any) -> bool:
    """Whether two values are equal, and of one type.

    NaN equals NaN, numbers of different types are compared by value, arrays by content.
    """
    if one is other:
        return True
    if _is_number(one) and _is_number(other):
        return bool(one == other or (one != one and other != other))
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        return is_same(vars(one), vars(other)) if hasattr(one, "__dict__") else one == other
    return bool(one == other)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value may be of a type. Arrays pass for numbers and sequences, and sequences for each other."""
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(choice, value) for choice in arguments)
    if hint in (Any, object):
        return True
    if origin is Literal:
        return any(is_same(choice, value) for choice in arguments)
    if origin in _SEQUENCES:
        return _fits_sequence(origin, arguments, value)
    if origin in _MAPPINGS:
        return isinstance(value, Mapping)
    if not isinstance(origin, type):
        return True
    if isinstance(value, bool):
        return origin is bool
    try:
        return isinstance(value, _ACCEPTED.get(origin, origin))
    except TypeError:  # of classes that have no instances, such as protocols
        return True


def _fits_sequence(kind: Any, hints: tuple[Any, ...], value: Any) -> bool:
    if not isinstance(value, list | tuple | set | frozenset):
        return isinstance(value, np.ndarray | torch.Tensor)
    if kind is tuple and hints and hints[-1] is not Ellipsis:
        return len(value) == len(hints) and all(map(_fits, hints, value))
    return not hints or all(_fits(hints[0], item) for item in value)


def _require_known(task: type, options: Mapping[str, Any], hints: dict[str, Any]) -> None:
    unknown = [name for name in options if name not in hints]
    if unknown:
        raise SaltusError(
            f"task {task.__name__} has no option {', '.join(map(repr, unknown))}; its options are "
            f"{', '.join(hints) or 'none'}"
        )


def _encode_option(task: type, name: str, hint: Any, value: Any) -> Any:
    try:
        data = json.loads(json.dumps(_encode(value)))
        rebuilt = _decode(hint, data)
    except (TypeError, ValueError) as error:
        raise _cannot_keep(task, name, value, str(error)) from error
    if not is_same(value, rebuilt):
        raise _cannot_keep(task, name, value, f"by the field's type hint, it would come back as {rebuilt!r}")
    return data


def _cannot_keep(task: type, name: str, value: Any, reason: str) -> SaltusError:
    return SaltusError(
        f"option {name!r} of task {task.__name__} cannot be kept for resuming the run: {value!r}, of type "
        f"{type(value).__name__}: {reason}. Options that are kept are {KEPT}, with a type hint that says so"
    )


def _decode_option(task: type, name: str, hint: Any, value: Any) -> Any:
    try:
        return _decode(hint, value)
    except (TypeError, ValueError) as error:
        raise SaltusError(
            f"the run has {value!r} as option {name!r} of task {task.__name__}, which does not fit the field's type "
            f"hint: {error}. Has the task's file been changed since?"
        ) from error


def _encode(value: Any) -> Any:
    """JSON data of a value. NaN becomes a string, a dict with keys other than strings a list of pairs.

    Raises:
        TypeError: a value of another type than `KEPT` says.
    """
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.generic):
        return _encode(value.item())
    if isinstance(value, float):
        return "nan" if value != value else value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((_encode(item) for item in value), key=json.dumps)
    if isinstance(value, dict):
        pairs = [(key, _encode(item)) for key, item in value.items()]
        return dict(pairs) if all(type(key) is str for key in value) else [[_encode(key), item] for key, item in pairs]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _encode(getattr(value, item.name)) for item in dataclasses.fields(value) if item.init}
    raise TypeError("no such value can be written to a file")


def _decode(hint: Any, value: Any) -> Any:
    """Rebuild a value of a type from its JSON data; sequences may be lists or tuples.

    Raises:
        TypeError, ValueError: the data do not describe a value of that type.
    """
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, types.UnionType):
        return _decode_union(arguments, value)
    if origin is Literal:
        return _decode_literal(arguments, value)
    if origin in _SEQUENCES:
        return _decode_sequence(origin, arguments, value)
    if origin in _MAPPINGS:
        key_hint, item_hint = arguments or (Any, Any)
        pairs = value.items() if isinstance(value, Mapping) else _require(list | tuple, value)
        return {_decode(key_hint, key): _decode(item_hint, item) for key, item in pairs}
    if isinstance(origin, type) and origin not in (Any, object):
        return _decode_class(origin, value)
    return tuple(_decode(Any, item) for item in value) if isinstance(value, list | tuple) else value


def _decode_union(hints: tuple[Any, ...], value: Any) -> Any:
    for hint in hints:
        try:
            return _decode(hint, value)
        except (TypeError, ValueError):
            continue
    raise TypeError(f"{value!r} is none of {' | '.join(map(_describe, hints))}")


def _decode_literal(choices: tuple[Any, ...], value: Any) -> Any:
    for choice in choices:
        if is_same(_encode(choice), value):
            return choice
    raise ValueError(f"{value!r} is none of {', '.join(map(repr, choices))}")


def _decode_sequence(kind: Any, hints: tuple[Any, ...], value: Any) -> Any:
    items = _require(list | tuple, value)
    if kind is tuple and hints and hints[-1] is not Ellipsis:
        if len(items) != len(hints):
            raise ValueError(f"{value!r} has {len(items)} items in place of {len(hints)}")
        return tuple(_decode(hint, item) for hint, item in zip(hints, items, strict=True))
    return _SEQUENCES[kind]([_decode(hints[0] if hints else Any, item) for item in items])


def _decode_class(cls: type, value: Any) -> Any:
    if issubclass(cls, enum.Enum):
        if value not in cls.__members__:
            raise ValueError(f"{value!r} is none of {', '.join(cls.__members__)}")
        return cls[value]
    if cls is float:
        return float("nan") if value == "nan" else float(_require(int | float, value))
    if issubclass(cls, PurePath):
        return cls(_require(str, value))
    if cls is bytes:
        return bytes.fromhex(_require(str, value))
    if dataclasses.is_dataclass(cls):
        hints = _field_hints(cls)
        fields = _require(Mapping, value)
        return cls(**{name: _decode(hints.get(name, Any), item) for name, item in fields.items()})
    if cls in (bool, int, str, types.NoneType):
        return _require(cls, value)
    raise TypeError(f"a {cls.__name__} cannot be rebuilt from data")


def _require(kind: Any, value: Any) -> Any:
    """The value, if it is of a type; a bool is not a number."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{value!r} is not of type {_describe(kind)}")
    return value


def _describe(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)

"""FieldChange: a random change of one field of MjModel, as `scale` and `offset` describe it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real

from saltus.errors import SaltusError


@dataclass(frozen=True)
class FieldChange:
    """A random change of one field of MjModel; made by `scale` and `offset`, drawn by `draw_fields`."""

    function: str
    field: str
    low: float
    high: float
    names: tuple[str, ...] | None
    shared: bool

    def __str__(self) -> str:
        return f"{self.function}({self.field!r}, {self.low:g}, {self.high:g})"


def scale(
    field: str, low: float, high: float, names: str | Sequence[str] | None = None, shared: bool = False
) -> FieldChange:
    """Multiply a field of MjModel by random factors, uniform in [low, high].

    All numbers of an object have one factor: the three frictions of a geom, the three entries of ``opt.gravity``.
    ``body_mass`` scales ``body_inertia`` too, as a change of density does. ``actuator_gainprm`` scales
    ``actuator_biasprm`` too: all of the actuator's force, so that a servo's target stays.

    Args:
        field: a field of float64 numbers, such as ``"geom_friction"`` or ``"dof_damping"``; of MjOption
            ``"opt.gravity"``.
        low, high: the factors' range; not negative, and above 0 for masses, inertias and sizes.
        names: names of the objects to change: bodies, joints (also for ``dof_...``), geoms, ...; None: all.
        shared: whether the objects of a model have one factor in common.

    Raises:
        SaltusError: an impossible range or names. Unknown fields and names are found by `draw_fields`.
    """
    change = _change("scale", field, low, high, names, shared)
    if change.low < 0:
        raise SaltusError(f"{change}: factors must not be negative; offset adds negative numbers")
    return change


def offset(
    field: str, low: float, high: float, names: str | Sequence[str] | None = None, shared: bool = False
) -> FieldChange:
    """Add random numbers, uniform in [low, high], to a field of MjModel; each number of an object has its own.

    No other field follows: an offset of ``body_mass`` is a point mass at the body's centre of mass.

    Args:
        field, names: as in `scale`.
        low, high: the range, in the field's units.
        shared: whether the objects of a model have one offset in common.

    Raises:
        SaltusError: an impossible range or names. Unknown fields and names are found by `draw_fields`.
    """
    return _change("offset", field, low, high, names, shared)


def _change(
    function: str, field: str, low: float, high: float, names: str | Sequence[str] | None, shared: bool
) -> FieldChange:
    call = f"{function}({field!r}, {low!r}, {high!r})"
    if not all(isinstance(end, Real) and math.isfinite(end) for end in (low, high)):
        raise SaltusError(f"{call}: the ends of the range must be two finite numbers")
    if low > high:
        raise SaltusError(f"{call}: the range is reversed; write {function}({field!r}, {high!r}, {low!r})")
    return FieldChange(function, field, float(low), float(high), _checked_names(call, names), shared)


def _checked_names(call: str, names: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not isinstance(names, str | Iterable):
        raise SaltusError(f"{call} has names={names!r}: it must be a name, a list of names, or None for all")
    names = (names,) if isinstance(names, str) else tuple(names)
    if not (names and all(isinstance(name, str) and name for name in names)):
        raise SaltusError(f"{call} has names={list(names)}: name one object or more, or leave names out for all")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise SaltusError(f"{call} has names={list(names)}: name {', '.join(repeated)} once")
    return names

"""State: what a task's functions read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import mujoco
import numpy as np
from mujoco.batch import DATA_FIELDS
from torch import Tensor

from envs.drawn_fields import DrawnFields
from saltus.errors import SaltusError, did_you_mean


class NameIndex:
    """Locations of named objects' values within MjData fields, cached by name."""

    def __init__(self, model: mujoco.MjModel, fields: tuple[str, ...]):
        self.fields = fields
        self._model = model
        self._data = mujoco.MjData(model)
        # Field, address, bytes and dtype of MjData's arrays. A named view is a slice of one of them.
        self._arrays = [
            (field, values.ctypes.data, values.nbytes, values.dtype)
            for field in dir(self._data)
            if not field.startswith("_") and isinstance(values := getattr(self._data, field, None), np.ndarray)
        ]
        self._slices: dict[tuple[str, str | int, str], tuple[str, int, tuple[int, ...]]] = {}

    def locate(self, kind: str, name: str | int, attribute: str) -> tuple[str, int, tuple[int, ...]]:
        """Field, offset in the field's flattened row, and shape of ``data.<kind>(<name or index>).<attribute>``.

        Raises:
            AttributeError: no such object or attribute; the message lists those that exist.
        """
        key = (kind, name, attribute)
        if key not in self._slices:
            self._slices[key] = self._find(kind, name, attribute)
        return self._slices[key]

    def _find(self, kind: str, name: str | int, attribute: str) -> tuple[str, int, tuple[int, ...]]:
        try:
            view = getattr(self._data, kind)(name)
        except (KeyError, IndexError) as error:
            raise AttributeError(f"the model has no {kind} {name!r}. MuJoCo: {error.args[0]}") from None
        part = getattr(view, attribute, None)
        if not isinstance(part, np.ndarray):
            names = [item for item in dir(view) if isinstance(getattr(view, item, None), np.ndarray)]
            of_model = getattr(self._model, kind)(name)
            hint = f". self.model.{kind}({name!r}) has it" if hasattr(of_model, attribute) else ""
            raise AttributeError(f"a {kind} has no {attribute!r}; it has {', '.join(names)}{hint}")
        address = part.ctypes.data
        for field, start, size, dtype in self._arrays:
            if part.size and dtype == part.dtype and start <= address and address + part.nbytes <= start + size:
                return field, (address - start) // dtype.itemsize, part.shape
        raise AttributeError(f"{attribute!r} of {kind} {name!r} is not stored in a field of MjData")


class State:
    """MjData fields of N worlds as batched tensors, by MuJoCo's names, and the task's own tensors.

    ``state.qpos`` is (N, nq), ``state.body("torso").xpos`` (N, 3), ``state.sensor("imu")`` (N, sensor's dim).
    A state has the fields that the task declares in `Task.fields`, and the own tensors that `Task.reset` returns.
    """

    def __init__(self, values: Mapping[str, Tensor], names: NameIndex, drawn: DrawnFields):
        self._values = values
        self._names = names
        self._drawn = drawn

    def __len__(self) -> int:
        for values in self._values.values():
            return len(values)
        raise SaltusError("the task has no fields, and no tensors of its own: name the fields that its functions read")

    def __getattr__(self, field: str) -> Tensor:
        if field.startswith("_"):
            raise AttributeError(field)
        try:
            return self._values[field]
        except KeyError:
            raise AttributeError(_missing_field(field, self._names.fields, self._values)) from None

    @property
    def drawn(self) -> DrawnFields:
        """Fields of the worlds' models that `Task.randomize` drew: ``state.drawn["body_mass"]`` is (N, nbody)."""
        return self._drawn

    def values(self) -> Mapping[str, Tensor]:
        """The tensors by name."""
        return self._values

    def body(self, name: str) -> NamedView:
        """A body's ``xpos``, ``xquat``, ``xipos``, ``cvel``, ..."""
        return NamedView(self, "body", name)

    def joint(self, name: str) -> NamedView:
        """A joint's ``qpos`` and ``qvel``, ..."""
        return NamedView(self, "joint", name)

    def geom(self, name: str) -> NamedView:
        """A geom's ``xpos``, ``xmat``."""
        return NamedView(self, "geom", name)

    def site(self, name: str) -> NamedView:
        """A site's ``xpos``, ``xmat``."""
        return NamedView(self, "site", name)

    def camera(self, name: str) -> NamedView:
        """A camera's ``xpos``, ``xmat``."""
        return NamedView(self, "camera", name)

    def actuator(self, name: str) -> NamedView:
        """An actuator's ``ctrl``, ``force``, ``length``, ``velocity``."""
        return NamedView(self, "actuator", name)

    def tendon(self, name: str) -> NamedView:
        """A tendon's ``length``, ``velocity``."""
        return NamedView(self, "tendon", name)

    def sensor(self, name: str) -> Tensor:
        """A sensor's values, (N, dim)."""
        return NamedView(self, "sensor", name).data

    def slice(self, kind: str, name: str, attribute: str) -> Tensor:
        """``data.<kind>(<name>).<attribute>`` of every world."""
        field, offset, shape = self._names.locate(kind, name, attribute)
        rows = getattr(self, field).flatten(1)
        return rows[:, offset : offset + math.prod(shape)].reshape(len(self), *shape)


_NAMED = ("body", "joint", "geom", "site", "camera", "actuator", "tendon", "sensor")


def _missing_field(field: str, fields: tuple[str, ...], values: Iterable[str]) -> str:
    """The message for ``state.<field>`` that is neither among the task's fields nor its own tensors."""
    own = [name for name in values if name not in fields]
    problem = f"the task reads state.{field}, which is not among its fields {fields}"
    if field in DATA_FIELDS:
        return f"{problem}: add {field!r} to `fields`"
    if own:
        problem += f", nor among its own tensors ({', '.join(own)})"
    hint = did_you_mean(field, sorted({*DATA_FIELDS, *_NAMED, *own}))
    return (
        f"{problem}, nor a field of MjData that can be read in a batch{hint or '.'} Named objects are read by "
        f"{', '.join(f'state.{kind}(name)' for kind in _NAMED)}; constants of the model by self.model"
    )


class NamedView:
    """A named object in every world. Its attributes are batched tensors."""

    def __init__(self, state: State, kind: str, name: str):
        self._state, self._kind, self._name = state, kind, name

    def __getattr__(self, attribute: str) -> Tensor:
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        return self._state.slice(self._kind, self._name, attribute)

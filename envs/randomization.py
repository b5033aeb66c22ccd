"""Fields of models for `Task.randomize`."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
import torch
from torch import Tensor

from envs.field_change import FieldChange
from envs.object_names import actuator_label, label
from envs.physics.model_fields import field_fault, wrong_signs
from envs.whole_numbers import require_whole
from saltus.errors import SaltusError

# The kind of named object that a field belongs to, by the first word of its name.
_KINDS = {
    "actuator": "actuator", "body": "body", "cam": "camera", "dof": "joint", "eq": "equality", "geom": "geom",
    "jnt": "joint", "light": "light", "mat": "material", "pair": "pair", "sensor": "sensor", "site": "site",
    "tendon": "tendon",
}  # fmt: skip

_CALL = "draw_fields(self.model, num_envs, generator, change, ...)"

# Fields that have a row for each control, or for each force output, of an actuator, which may have several.
_OF_CONTROLS = frozenset({"actuator_ctrlrange"})
_OF_OUTPUTS = frozenset({"actuator_acc0", "actuator_gear", "actuator_length0", "actuator_lengthrange"})


def scale_masses(model: mujoco.MjModel, factor: Tensor) -> dict[str, Tensor]:
    """Scale the bodies' masses and inertias by one factor each, as a change of density does.

    MuJoCo does not derive inertias from masses: a new ``body_mass`` alone changes the mass and keeps the inertia.

    Args:
        model: the model, ``self.model`` in a task.
        factor: positive factors: (N,), one per world, or (N, nbody), one per world and body.

    Returns:
        ``body_mass`` (N, nbody) and ``body_inertia`` (N, nbody, 3) in float64, on the factor's device.

    Raises:
        SaltusError: not a model; factors of another shape, or not positive.
    """
    if not isinstance(model, mujoco.MjModel):
        raise SaltusError(
            f"scale_masses got a {type(model).__name__} as model; expected scale_masses(self.model, factor)"
        )
    shapes = f"(N,) or (N, {model.nbody})"
    if not (isinstance(factor, Tensor) and (factor.dim() == 1 or tuple(factor.shape[1:]) == (model.nbody,))):
        described = tuple(factor.shape) if isinstance(factor, Tensor) else f"a {type(factor).__name__}"
        raise SaltusError(f"scale_masses got factors of shape {described}; expected a tensor of shape {shapes}")
    if not (factor > 0).all():
        raise SaltusError(f"scale_masses got a factor of {float(factor.min())}; factors must be positive")
    factor = factor.double().reshape(len(factor), -1)
    mass, inertia = (torch.as_tensor(values, device=factor.device) for values in (model.body_mass, model.body_inertia))
    return {"body_mass": factor * mass, "body_inertia": factor.unsqueeze(-1) * inertia}


def draw_fields(
    model: mujoco.MjModel, num_models: int, generator: torch.Generator, *changes: FieldChange
) -> dict[str, Tensor]:
    """Draw fields of models for `Task.randomize`. Changes of one field apply one after the other.

    Args:
        model: the model that they vary, ``self.model`` in a task.
        num_models: number of models, ``num_envs`` in `Task.randomize`.
        generator: a CPU generator.
        changes: results of `scale` and `offset`.

    Returns:
        The changed fields, (num_models, ...) float64 each, by name.

    Raises:
        SaltusError: an argument of a wrong type, or no changes; a field or a name that the model does not have; a field
            that a change would spoil (indices, unit quaternions, parameters of muscles); a factor of numbers that are
            all 0; a change that can make a mass, a friction or the like negative, or a mass, an inertia or a size 0.
    """
    _check_arguments(model, num_models, generator, changes)
    fields: dict[str, Tensor] = {}
    for change in changes:
        rows = _rows(model, change)
        names = change.field, *_followers(model, change, rows)
        values, *followers = (_objects(model, change, name, num_models, fields) for name in names)
        size = num_models, 1 if change.shared else len(rows), values.shape[2] if change.function == "offset" else 1
        drawn = torch.empty(size, dtype=torch.float64).uniform_(change.low, change.high, generator=generator)
        if change.function == "scale" and not values[:, rows].any():
            raise SaltusError(f"{change} has no effect: these numbers are all 0. Use offset, or set them in the MJCF")
        _require_signs(model, change, values, rows)
        if change.function == "offset":
            values[:, rows] += drawn
            continue
        for scaled in (values, *followers):
            scaled[:, rows] *= drawn
    return fields


def _check_arguments(model: Any, num_models: Any, generator: Any, changes: tuple[Any, ...]) -> None:
    """Raise SaltusError unless the arguments of `draw_fields` have their types."""
    for name, value, expected in (
        ("model", model, mujoco.MjModel),
        ("generator", generator, torch.Generator),
        *(("a change", change, FieldChange) for change in changes),
    ):
        if not isinstance(value, expected):
            raise SaltusError(
                f"draw_fields got a {type(value).__name__} as {name}; expected {_CALL}, with changes by saltus.scale "
                "and saltus.offset"
            )
    require_whole("num_models of draw_fields", num_models, at_least=1)
    if not changes:
        raise SaltusError(f"draw_fields got no changes, and would draw nothing; expected {_CALL}")


def _objects(
    model: mujoco.MjModel, change: FieldChange, name: str, num_models: int, fields: dict[str, Tensor]
) -> Tensor:
    """A view of a field of `fields`, (num_models, objects, numbers of an object); enters the field if it is new."""
    if name not in fields:
        original = torch.as_tensor(_original(model, change, name))
        fields[name] = original.repeat(num_models, *[1] * original.dim())
    return fields[name].view(num_models, 1 if name.startswith("opt.") else fields[name].shape[1], -1)


def _followers(model: mujoco.MjModel, change: FieldChange, rows: list[int]) -> tuple[str, ...]:
    """Fields that scale with the field of a change."""
    if change.function == "offset" or change.field not in ("actuator_gainprm", "body_mass"):
        return ()
    if change.field == "body_mass":
        return ("body_inertia",)
    linear = int(mujoco.mjtGain.mjGAIN_FIXED), int(mujoco.mjtGain.mjGAIN_AFFINE)
    for row in rows:
        if model.actuator_gaintype[row] not in linear:
            raise SaltusError(
                f"{change}: the parameters of actuator {actuator_label(model, row)} are not gains that can be scaled. "
                "Name the other actuators, or return its actuator_gainprm from randomize yourself"
            )
    return ("actuator_biasprm",)


def _require_signs(model: mujoco.MjModel, change: FieldChange, values: Tensor, rows: list[int]) -> None:
    """Refuse a change that can make numbers of these rows negative or 0, in fields where this has no meaning.

    Args:
        values: (num_models, objects, numbers of an object) before the change.
    """
    before = values.numpy()
    ends = [before + change.low] if change.function == "offset" else [before * change.low, before * change.high]
    lowest = np.minimum(ends[0], ends[-1])
    wrong = wrong_signs(model, change.field, lowest.reshape(len(values), *_original(model, change, change.field).shape))
    wrong = wrong.reshape(before.shape)[:, rows]
    if not wrong.any():
        return
    one, place, number = np.unravel_index(np.where(wrong, lowest[:, rows], np.inf).argmin(), wrong.shape)
    row, named = rows[place], not change.field.startswith("opt.")
    owner = f" of {_name_of_row(model, change.field, row)}" if named else ""
    advice = ["raise the lower end", *(["name other objects"] if named else [])]
    if change.function == "offset":
        advice.append("use scale")
    raise SaltusError(
        f"{change}: {change.field}{owner} is {before[one, row, number]:g}, and could become "
        f"{lowest[one, row, number]:g}, which has no meaning: {' or '.join(advice)}"
    )


def _name_of_row(model: mujoco.MjModel, field: str, row: int) -> str:
    prefix = field.split("_")[0]
    index = int(model.dof_jntid[row]) if prefix == "dof" else row
    return f"{_KINDS[prefix]} {label(getattr(model, _KINDS[prefix])(index).name, index)}"


def _original(model: mujoco.MjModel, change: FieldChange, name: str) -> np.ndarray:
    """A field's values in the model."""
    owner, attribute = (model.opt, name[4:]) if name.startswith("opt.") else (model, name)
    values = np.asarray(getattr(owner, attribute, None))
    if fault := field_fault(model, name):
        raise SaltusError(f"{change}: {fault}")
    if values.dtype != np.float64:
        raise SaltusError(
            f"{change}: {name} holds {values.dtype} numbers, which only pictures depend on. Policies do not see them"
        )
    if name.endswith("quat"):
        raise SaltusError(f"{change}: {name} holds unit quaternions; return rotated ones from randomize yourself")
    if not values.size:
        raise SaltusError(f"{change}: {name} is empty in this model")
    return values


def _rows(model: mujoco.MjModel, change: FieldChange) -> list[int]:
    """Rows of a field that a change applies to."""
    values = _original(model, change, change.field)
    if change.names is None:
        return [0] if change.field.startswith("opt.") else list(range(len(values)))
    prefix = change.field.split("_")[0]
    if prefix not in _KINDS:
        raise SaltusError(f"{change} has names={list(change.names)}, and {change.field} has no named objects")
    return [row for name in change.names for row in _rows_of(model, change, prefix, name)]


def _rows_of(model: mujoco.MjModel, change: FieldChange, prefix: str, name: str) -> list[int]:
    kind = _KINDS[prefix]
    try:
        index = getattr(model, kind)(name).id
    except KeyError as error:
        raise SaltusError(f"{change}: the model has no {kind} {name!r}. MuJoCo: {error.args[0]}") from None
    if prefix == "dof":
        return np.flatnonzero(model.dof_jntid == index).tolist()
    if change.field in _OF_CONTROLS:
        first, count = int(model.actuator_ctrladr[index]), int(model.actuator_ctrlnum[index])
        if not count:
            raise SaltusError(f"{change}: actuator {name!r} has no control")
    elif change.field in _OF_OUTPUTS:
        first, count = int(model.actuator_outadr[index]), int(model.actuator_outnum[index])
    else:
        first, count = index, 1
    return list(range(first, first + count))

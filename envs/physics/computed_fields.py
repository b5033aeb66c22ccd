"""Fields of MjData that steps of a model do not compute."""

from __future__ import annotations

import copy
from collections.abc import Collection

import mujoco
import numpy as np

from envs.home import HOME_FIELDS
from envs.physics import INPUTS, POST_CONSTRAINT
from saltus.errors import SaltusError

_STATE = {*HOME_FIELDS, *INPUTS, "qacc_warmstart"}
_NEVER = ("qfrc_inverse", "solver_fwdinv")  # <flag fwdinv="enable"/> sets them in states with constraints alone
_ENERGIES = {int(mujoco.mjtSensor.mjSENS_E_POTENTIAL), int(mujoco.mjtSensor.mjSENS_E_KINETIC)}
_SENSED = ("sensordata", "subtree_angmom", "subtree_linvel")
_WAYS = {
    "energy": 'add <option><flag energy="enable"/></option>',
    "subtree_angmom": 'add <sensor><subtreeangmom body="..."/></sensor>',
    "subtree_linvel": 'add <sensor><subtreelinvel body="..."/></sensor>',
}


def require_computed(model: mujoco.MjModel, fields: Collection[str]) -> None:
    """Raise SaltusError for fields of MjData that would read as zeros: a step of the model does not compute them."""
    sensors = not model.opt.disableflags & int(mujoco.mjtDisableBit.mjDSBL_SENSOR)
    missing = _untouched(model, {*fields} - _STATE - {*POST_CONSTRAINT, *_NEVER})
    missing += [field for field in _NEVER if field in fields]
    has_energy = model.opt.enableflags & int(mujoco.mjtEnableBit.mjENBL_ENERGY)
    if "energy" in fields and not has_energy and not (sensors and {*model.sensor_type.tolist()} >= _ENERGIES):
        missing.append("energy")  # mj_step sets it to 0
    if not missing:
        return
    ways = {**_WAYS, **({} if sensors else dict.fromkeys(_SENSED, 'remove <flag sensor="disable"/>'))}
    advice = [f"for {field} {ways[field]}" for field in missing if field in ways]
    raise SaltusError(
        f"steps of this model do not compute {', '.join(missing)}: the values would be zeros. Remove them from `fields`"
        + (f", or change the model: {'; '.join(advice)}" if advice else "")
    )


def _untouched(model: mujoco.MjModel, fields: Collection[str]) -> list[str]:
    """The floating-point fields that a step leaves as they were; none if MuJoCo raises in it."""
    awake = copy.copy(model)  # a step does not compute the fields of bodies that sleep
    awake.opt.enableflags &= ~int(mujoco.mjtEnableBit.mjENBL_SLEEP)
    data, arrays = mujoco.MjData(awake), dict[str, np.ndarray]()
    for field in sorted(fields):
        values = getattr(data, field, None)
        if isinstance(values, np.ndarray) and values.size and values.dtype.kind == "f":
            arrays[field] = values
            values[...] = np.nan
    try:
        mujoco.mj_step(awake, data)
    except mujoco.FatalError:
        return []
    return [field for field, values in arrays.items() if np.isnan(values).all()]

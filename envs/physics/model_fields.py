"""Fields of models that differ between worlds, and the constants that MuJoCo derives from them."""

from __future__ import annotations

from collections.abc import Mapping

import mujoco
import numpy as np
from mujoco.batch import MODEL_FIELDS, Batch, SimulationError
from torch import Tensor

from saltus.errors import SaltusError, did_you_mean

HIDDEN_STATE = {"sleep": mujoco.mjtEnableBit.mjENBL_SLEEP, "ipc": mujoco.mjtEnableBit.mjENBL_IPC}
"""Features whose bookkeeping MuJoCo keeps in MjData, outside the integration state."""
_SIZES = frozenset({"geom_size", "site_size"})
_POSITIVE = _SIZES | {"body_inertia", "body_mass"}
_NOT_NEGATIVE = _POSITIVE | {
    "actuator_armature", "dof_armature", "dof_frictionloss", "geom_friction", "opt.density", "opt.viscosity",
    "pair_friction", "tendon_armature", "tendon_frictionloss",
}  # fmt: skip


def needs_persistence(model: mujoco.MjModel) -> bool:
    """Whether `mujoco.batch` must keep an MjData of each world, for bookkeeping that is not state."""
    return any(model.opt.enableflags & int(bit) for bit in HIDDEN_STATE.values())


def bare_batch(model: mujoco.MjModel, num_worlds: int, num_threads: int) -> Batch:
    """`mujoco.batch` alone, to compare its rate with an environment's."""
    return Batch(model, num_worlds, num_threads, needs_persistence(model))


def restore(batch: Batch, state: Tensor) -> None:
    """Continue a bare batch from the integration states of its worlds, with all bodies awake, as `CpuPhysics` does."""
    if batch.persistent:
        batch.reset(stage=int(mujoco.mjtStage.mjSTAGE_NONE))
    batch.state[...] = state.numpy()


def wrong_signs(model: mujoco.MjModel, name: str, values: np.ndarray) -> np.ndarray:
    """Find numbers of a field that have no meaning, because they are negative or 0.

    Masses, inertias and sizes are positive, apart from those that are 0 in the model: of bodies that do not move, and
    sizes that a shape does not have. Armature, friction, density and viscosity are not negative. Stiffness and damping
    have both signs: MuJoCo compiles springs that push and joints that excite themselves.

    Args:
        model: the model.
        name: a field of MjModel or, as ``opt.<name>``, of MjOption.
        values: numbers in its place, (K, ...).

    Returns:
        A mask of `values`.
    """
    if name not in _NOT_NEGATIVE:
        return np.zeros(values.shape, dtype=bool)
    if name not in _POSITIVE:
        return values < 0
    used = getattr(model, name) != 0
    return np.where(used, values <= 0, (values < 0) & (name not in _SIZES))


def changed_field(model: mujoco.MjModel, before: mujoco.MjModel) -> str | None:
    """The first field of a model, also as ``opt.<name>``, that differs from its copy `before`; None if none does."""
    for prefix, owner, other in (("", model, before), ("opt.", model.opt, before.opt)):
        for name in dir(owner):
            value = None if name.startswith("_") else getattr(owner, name)
            is_field = isinstance(value, np.ndarray | int | float)
            if is_field and np.asarray(value).tobytes() != np.asarray(getattr(other, name)).tobytes():
                return prefix + name
    return None


def field_fault(model: mujoco.MjModel, name: str) -> str | None:
    """Why a field of MjModel or, as ``opt.<name>``, of MjOption cannot differ between worlds; None if it can."""
    if name == "opt.timestep":
        return "worlds share one timestep, which Task.dt follows from"
    owner, attribute = (model.opt, name[4:]) if name.startswith("opt.") else (model, name)
    values = getattr(owner, attribute, None)
    if hasattr(mujoco.MjData, name) and not hasattr(model, name):
        return f"{name} is a field of MjData, not of MjModel: draw initial states in `reset`"
    if not isinstance(values, np.ndarray) and not (owner is model.opt and isinstance(values, int | float)):
        return f"MjModel has no such field{did_you_mean(name, sorted(MODEL_FIELDS))}"
    if not np.issubdtype(np.asarray(values).dtype, np.floating):
        return f"{name} holds indices, types or flags, which MuJoCo trusts: only floating-point fields can differ"
    if name not in MODEL_FIELDS:
        return f"all worlds share {name}: it cannot differ between them"
    return None


def with_constants(model: mujoco.MjModel, fields: Mapping[str, Tensor], num_threads: int = 1) -> dict[str, np.ndarray]:
    """Add the constants that mj_setConst derives, in float64, to the fields of K models.

    Args:
        model: the model that they vary.
        fields: fields of MjModel or, as ``opt.<name>``, of MjOption, (K, ...) by name.
        num_threads: threads to compute with.

    Returns:
        `fields` and the derived constants that differ from those of `model`, (K, ...) by name.

    Raises:
        SaltusError: a field that cannot differ between worlds; MuJoCo raised for the fields of a model.
    """
    if unknown := sorted(set(fields) - MODEL_FIELDS):
        raise SaltusError(f"model fields that cannot differ between worlds: {', '.join(unknown)}")
    if not fields:
        return {}
    batch = Batch(model, len(next(iter(fields.values()))), num_threads, needs_persistence(model))
    for name, values in fields.items():
        batch.expand(name)[...] = values.cpu().numpy()
    try:
        batch.set_const()
    except SimulationError as error:
        text = " ".join(batch.error(int(error.ids[0])).split())
        raise SaltusError(f"MuJoCo refuses the drawn values of {', '.join(sorted(fields))}: {text}") from error
    tables = {name: batch.expanded(name) for name in sorted(MODEL_FIELDS)}
    return {name: values.copy() for name, values in tables.items() if values is not None}

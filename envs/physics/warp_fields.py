"""Fields of MjData in Warp: which there are, and which of them steps and forward passes need or compute."""

from __future__ import annotations

from collections.abc import Collection

import mujoco
import numpy as np
from mujoco.batch import DATA_FIELDS

from envs.physics.warp_model import batched_fields, modules
from saltus.errors import SaltusError

_STATE = (
    "time", "qpos", "qvel", "act", "history", "plastic", "qacc_warmstart", "ctrl", "qfrc_applied", "xfrc_applied",
    "eq_active", "mocap_pos", "mocap_quat", "userdata",
)  # fmt: skip
# Fields that the first stages of mj_forward compute. All other fields need the whole of it.
FROM_KINEMATICS = {
    "xpos", "xquat", "xmat", "xipos", "ximat", "xanchor", "xaxis", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat",
    "cam_xpos", "cam_xmat", "light_xpos", "light_xdir", "subtree_com", "cdof", "cinert", "ten_length",
}  # fmt: skip
FROM_ACTUATION = {
    "actuator_length", "actuator_velocity", "ten_velocity", "cvel", "cdof_dot", "actuator_force", "qfrc_actuator",
}  # fmt: skip
# Fields that Warp computes in another form than MuJoCo, or for some models only.
_OTHER_FORM = {"nidof", "nisland", "qH", "qHDiagInv", "qLD", "qLDiagInv", "qLU", "solver_niter"}


def lagging_fields(model: mujoco.MjModel) -> tuple[str, ...]:
    """Derived fields that Warp reads in a step before it computes them.

    Its connect and weld constraints use the velocities of the physics step before.
    """
    kinds = (mujoco.mjtEq.mjEQ_CONNECT, mujoco.mjtEq.mjEQ_WELD)
    return ("cvel", "cdof_dot") if np.isin(model.eq_type, kinds).any() else ()


def state_fields(model: mujoco.MjModel) -> tuple[str, ...]:
    """Everything that the next step depends on."""
    return (*_STATE, *lagging_fields(model))


def readable_fields() -> set[str]:
    """Fields of MjData that Warp holds for each world, in MuJoCo's form."""
    _, mjw = modules()
    return batched_fields(mjw.Data, "nworld") & DATA_FIELDS - _OTHER_FORM


def require_readable(fields: Collection[str]) -> None:
    """Raise SaltusError for fields of MjData that Warp does not hold for each world in MuJoCo's form."""
    readable = readable_fields()
    if unknown := sorted(set(fields) - readable):
        raise SaltusError(
            f"not readable fields of MjData in Warp: {', '.join(unknown)}; readable are {', '.join(sorted(readable))}"
        )

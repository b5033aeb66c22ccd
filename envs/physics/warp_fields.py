"""Fields of MjData in Warp: which there are, and which of them steps and forward passes need or compute."""

from __future__ import annotations

import dataclasses
from typing import Any

import mujoco
import numpy as np
from mujoco.batch import DATA_FIELDS

from envs.physics.warp_model import modules

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


def readable_fields(data: Any, mj_data: mujoco.MjData) -> list[str]:
    """Names of MjData's fields that a ``mujoco_warp.Data`` holds for each world, in MuJoCo's form."""
    wp, _ = modules()
    names = {item.name for item in dataclasses.fields(data)} & DATA_FIELDS - _OTHER_FORM
    return sorted(
        name
        for name in names
        if hasattr(mj_data, name)
        and isinstance(array := getattr(data, name), wp.array)
        and array.shape[:1] == (data.nworld,)
    )

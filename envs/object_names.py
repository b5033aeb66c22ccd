"""Names of a model's objects, for messages, comments and exported policies."""

from __future__ import annotations

import mujoco

_TARGETS = {
    mujoco.mjtTrn.mjTRN_JOINT: "joint",
    mujoco.mjtTrn.mjTRN_JOINTINPARENT: "joint",
    mujoco.mjtTrn.mjTRN_TENDON: "tendon",
    mujoco.mjtTrn.mjTRN_SITE: "site",
    mujoco.mjtTrn.mjTRN_BODY: "body",
}


def one_line(text: str) -> str:
    """The text with single spaces between its words."""
    return " ".join(text.split())


def label(name: str, index: int) -> str:
    """A name on one line, or the index of an object without one."""
    return one_line(name) or f"#{index}"


def actuator_target(model: mujoco.MjModel, index: int) -> str:
    """The name of the joint, tendon, site or body that an actuator moves; empty if it has none."""
    kind = _TARGETS.get(mujoco.mjtTrn(int(model.actuator_trntype[index])))
    return "" if kind is None else getattr(model, kind)(int(model.actuator_trnid[index, 0])).name


def actuator_label(model: mujoco.MjModel, index: int) -> str:
    """An actuator's name, or its index and the name of what it moves, if that has one."""
    name, target = model.actuator(index).name, one_line(actuator_target(model, index))
    return label(name, index) if name or not target else f"#{index} of {target}"

"""Names of a model's objects, for messages, comments and exported policies."""

from __future__ import annotations

import mujoco
import numpy as np

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


def joint_label(model: mujoco.MjModel, index: int) -> str:
    """A joint's name, or its index and its body's name."""
    name, body = model.joint(index).name, model.body(int(model.jnt_bodyid[index])).name
    return label(name, index) if name or not body else f"#{index} of {one_line(body)}"


def actuator_target(model: mujoco.MjModel, index: int) -> str:
    """The name of the joint, tendon, site or body that an actuator moves; empty if it has none."""
    transmission = mujoco.mjtTrn(int(model.actuator_trntype[index]))
    kind = _TARGETS.get(transmission)
    if transmission == mujoco.mjtTrn.mjTRN_SO3:  # of a ball joint, or of a site relative to another one
        kind = "joint" if model.actuator_trnid[index, 1] < 0 else "site"
    return "" if kind is None else getattr(model, kind)(int(model.actuator_trnid[index, 0])).name


def actuator_label(model: mujoco.MjModel, index: int) -> str:
    """An actuator's name, or its index and the name of what it moves, if that has one."""
    name, target = model.actuator(index).name, one_line(actuator_target(model, index))
    return label(name, index) if name or not target else f"#{index} of {target}"


def find_control(model: mujoco.MjModel, control: int) -> tuple[int, int]:
    """The actuator of a control, and the control's place among those of the actuator, which may have several or none.

    Args:
        model: the model.
        control: index into ``ctrl``.
    """
    places = control - model.actuator_ctrladr
    actuator = int(np.flatnonzero((places >= 0) & (places < model.actuator_ctrlnum))[0])
    return actuator, int(places[actuator])


def with_input(model: mujoco.MjModel, control: int, actuator_name: str) -> str:
    """An actuator's name for one of its controls: followed by MuJoCo's name of the input, if it has several."""
    actuator, place = find_control(model, control)
    if model.actuator_ctrlnum[actuator] == 1:
        return actuator_name
    return f"{actuator_name} {mujoco.mj_actuatorInputName(model, actuator, place) or place}"


def range_attribute(model: mujoco.MjModel, control: int) -> str:
    """The attribute of MJCF that sets the range of a control."""
    actuator, place = find_control(model, control)
    if model.actuator_gaintype[actuator] != mujoco.mjtGain.mjGAIN_PID:
        return "ctrlrange"
    name = mujoco.mj_actuatorInputName(model, actuator, place)
    return "ctrlrange" if name == "pos" else f"{name}range"


def control_label(model: mujoco.MjModel, control: int) -> str:
    """The label of a control's actuator, followed by the name of the input if the actuator has several."""
    return with_input(model, control, actuator_label(model, find_control(model, control)[0]))

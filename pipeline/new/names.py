"""Comments that list the names in a model."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import mujoco

from envs.object_names import actuator_label, control_label, joint_label, label, range_attribute

LINES = 2  # of a list, at most

_KINDS = {
    mujoco.mjtJoint.mjJNT_FREE: " (free)",
    mujoco.mjtJoint.mjJNT_BALL: " (ball)",
    mujoco.mjtJoint.mjJNT_SLIDE: " (slide)",
    mujoco.mjtJoint.mjJNT_HINGE: "",
}


def names_comment(model: mujoco.MjModel, width: int) -> str:
    """Comment lines with the names, sizes and ranges of a model's parts, each line at most `width` wide if possible."""
    bodies = [index for index in range(model.nbody) if model.body_mocapid[index] >= 0]
    parts = {
        "Joints (rad, m)": [_joint(model, index) for index in range(model.njnt)],
        "Actuators": [text for index in range(model.nactuator) for text in _controls(model, index)],
        "Sensors (size)": [
            f"{label(model.sensor(index).name, index)} ({model.sensor_dim[index]})" for index in range(model.nsensor)
        ],
        "Cameras": [label(model.camera(index).name, index) for index in range(model.ncam)],
        "Keyframes": [label(model.key(index).name, index) for index in range(model.nkey)],
        "Mocap bodies": [label(model.body(index).name, index) for index in bodies],
    }
    return "".join(_list(kind, items, width) + "\n" for kind, items in parts.items() if items)


def shortened(items: Sequence[str], length: int) -> str:
    """The items separated by commas: as many as fit into `length` characters, and the number of the others."""
    for shown in range(len(items), 0, -1):
        text = _joined(items, shown)
        if len(text) <= length:
            return text
    return _joined(items, 1)


def _joined(items: Sequence[str], shown: int) -> str:
    more = f" and {len(items) - shown} more" if shown < len(items) else ""
    return ", ".join(items[:shown]) + more


def _list(kind: str, items: Sequence[str], width: int) -> str:
    unbroken = [item.replace(" ", "\xa0") for item in items]  # lines break between items only
    for shown in range(len(items), 0, -1):
        text = f"{kind}: {_joined(unbroken, shown)}"
        rows = textwrap.wrap(text, width - 4, break_long_words=False, break_on_hyphens=False)
        if len(rows) <= LINES:
            break
    return "# " + "\n#   ".join(rows).replace("\xa0", " ")


def _joint(model: mujoco.MjModel, index: int) -> str:
    low, high = model.jnt_range[index]
    limits = f" {low:.3g}..{high:.3g}" if model.jnt_limited[index] else ""
    return f"{joint_label(model, index)}{_KINDS[mujoco.mjtJoint(model.jnt_type[index])]}{limits}"


def _controls(model: mujoco.MjModel, actuator: int) -> list[str]:
    """The controls of an actuator with their ranges, or the actuator itself if it has none."""
    first, count = int(model.actuator_ctrladr[actuator]), int(model.actuator_ctrlnum[actuator])
    if not count:
        return [f"{actuator_label(model, actuator)} (no control)"]
    return [f"{control_label(model, index)} {_limits(model, index)}" for index in range(first, first + count)]


def _limits(model: mujoco.MjModel, control: int) -> str:
    low, high = model.actuator_ctrlrange[control]
    if not model.actuator_ctrllimited[control]:
        return f"(no {range_attribute(model, control)})"
    return f"{low:.3g}..{high:.3g}"

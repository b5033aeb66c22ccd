"""The state that a task's episodes start from by default: the model's, or a keyframe, at rest."""

from __future__ import annotations

from typing import Any

import mujoco

from envs.whole_numbers import is_whole
from saltus.errors import SaltusError

HOME_FIELDS = (
    "time", "qpos", "qvel", "act", "history", "plastic", "ctrl", "mocap_pos", "mocap_quat", "userdata", "plugin_state",
)  # fmt: skip
"""Fields of MjData that keyframes and settling set."""

_DIVERGED = (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)


def default_data(model: mujoco.MjModel, task_name: str, home: Any, settle_steps: int) -> mujoco.MjData:
    """MjData at the start of an episode; its derived fields are not computed.

    Settling keeps the time of the keyframe.

    Args:
        model: the task's model.
        task_name: for messages.
        home: name or index of a keyframe; None: the model's defaults.
        settle_steps: physics steps to take from there.

    Raises:
        SaltusError: no such keyframe, or physics that diverges in these steps.
    """
    data = mujoco.MjData(model)
    if home is not None:
        mujoco.mj_resetDataKeyframe(model, data, _find_keyframe(model, task_name, home))
    if settle_steps:
        _settle(model, task_name, data, settle_steps)
    return data


def _find_keyframe(model: mujoco.MjModel, task_name: str, home: Any) -> int:
    names = [model.key(index).name for index in range(model.nkey)]
    if isinstance(home, str) and home in names:
        return names.index(home)
    if is_whole(home) and 0 <= home < model.nkey:
        return int(home)
    known = ", ".join(repr(name) if name else f"{index} (without a name)" for index, name in enumerate(names))
    raise SaltusError(
        f"home of task {task_name} is {home!r}; expected the name or index of a keyframe, and the model has "
        + (f"{known}" if names else 'none: <keyframe><key name="stand" qpos="..." ctrl="..."/></keyframe>')
    )


def _settle(model: mujoco.MjModel, task_name: str, data: mujoco.MjData, settle_steps: int) -> None:
    start = data.time
    try:
        mujoco.mj_step(model, data, settle_steps)
        problem = "physics diverges" if any(data.warning[int(kind)].number for kind in _DIVERGED) else ""
    except mujoco.FatalError as error:
        problem = f"MuJoCo raised {' '.join(str(error).split())!r}"
    if problem:
        raise SaltusError(
            f"settle_steps of task {task_name} is {settle_steps}, and {problem} in these steps. Start closer to rest, "
            "or give the model a smaller timestep"
        )
    _shift_history(model, data, start - data.time)
    data.time = start


def _shift_history(model: mujoco.MjModel, data: mujoco.MjData, seconds: float) -> None:
    """Move the samples of delayed controls and sensors in time.

    A buffer holds the time of the last sample, if a sensor has an interval; a cursor; the samples' times; their values.
    """
    controls = zip(model.actuator_historyadr, model.actuator_history[:, 0], strict=True)
    sensors = zip(model.sensor_historyadr, model.sensor_history[:, 0], strict=True)
    for address, num_samples in (*controls, *sensors):
        data.history[address + 2 : address + 2 + num_samples] += seconds
    periodic = (model.sensor_history[:, 0] > 0) & (model.sensor_interval[:, 0] > 0)
    data.history[model.sensor_historyadr[periodic]] += seconds

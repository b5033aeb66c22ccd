"""Checks of the state of episodes and of controls: results of `reset`, `advance` and `control`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mujoco
import numpy as np
import torch
from mujoco.batch import DATA_FIELDS
from torch import Tensor

from envs.function_errors import advice, line_of
from envs.object_names import joint_label, label
from envs.physics import INPUTS, Physics
from envs.random_sources import OtherDraws, makes_generators
from envs.state import State
from envs.task import Task
from envs.task_functions import START_FIELDS, Start, describe, inputs_of, split_start
from saltus.errors import SaltusError, warn_once

_NO_ROTATION = 1e-6  # norm of a quaternion that holds none


class Expectation:
    """Checks results of a task's functions. Errors name the function and the expected result."""

    def __init__(self, task: type[Task], physics: Physics):
        self._task, self._device, self._dtype = task, physics.device, physics.dtype

    def error(self, function: str, message: str) -> SaltusError:
        """The error of a function."""
        return SaltusError(f"{self._task.__name__}.{function} {message}")

    def __call__(self, function: str, value: Any, shape: tuple[int | str, ...], dtype: str) -> None:
        """Check one result. A string in `shape` matches any size; `dtype` is "bool" or "floating-point"."""
        sizes = ", ".join(map(str, shape)) + "," * (len(shape) == 1)
        wanted = f"expected a {dtype} tensor of shape ({sizes}) on {self._device}"
        right_shape = (
            isinstance(value, Tensor)
            and len(value.shape) == len(shape)
            and all(isinstance(want, str) or want == have for want, have in zip(shape, value.shape, strict=True))
        )
        if not (right_shape and _is_kind(value, dtype) and value.device == self._device):
            raise self.error(function, f"returned {describe(value)}; {wanted}")

    @contextmanager
    def calling(self, function: str) -> Iterator[None]:
        """Explain the common errors of torch in a call."""
        try:
            yield
        except (RuntimeError, TypeError, ValueError) as error:
            if (meaning := advice(error, self._dtype)) is None:
                raise
            place = line_of(self._task, error)
            raise self.error(function, f"fails in {place} ({error}): {meaning}") from error


def _is_kind(value: Tensor, dtype: str) -> bool:
    return value.dtype == torch.bool if dtype == "bool" else value.dtype.is_floating_point


def warn_of_randomness(task: Task, function: str, when: str, advice: str) -> None:
    """Warn that a function returns other values `when` it should not."""
    warn_once(
        f"{type(task).__name__}.{function} returns other values {when}: seeds do not determine its results, and a "
        f"resumed run differs from one that never stopped. {advice}"
    )


def check_start(checked: Expectation, task: Task, physics: Physics) -> Start:
    """Draw initial states from two equal generators and another one, and check them."""
    worlds, defaults = physics.num_worlds, (task.qpos0.clone(), task.qvel0.clone(), task.ctrl0.clone())
    equal, equal_too, other = (torch.Generator(physics.device).manual_seed(seed) for seed in (0, 0, 1))
    with checked.calling("reset"):
        returned, again = task.reset(worlds, equal), task.reset(worlds, equal_too)
        with OtherDraws(other) as draws:
            another = task.reset(worlds, other)
    is_pair = isinstance(returned, tuple) and len(returned) == 2
    if not (is_pair or isinstance(returned, dict)):
        raise checked.error(
            "reset", f"returned a {type(returned).__name__}; expected (qpos, qvel), or a dict of tensors by name"
        )
    if isinstance(returned, dict):
        _check_names(checked, task, returned)
    start, repeated = split_start(task, returned, worlds), split_start(task, again, worlds)
    _check_fields(checked, "reset", physics, {"qpos": start.qpos, "qvel": start.qvel, **start.fields})
    for name, values in start.own.items():
        if not isinstance(values, Tensor) or values.shape[:1] != (worlds,) or values.device != physics.device:
            raise checked.error(
                f"reset ({name})",
                f"returned {describe(values)}; expected a tensor of shape ({worlds}, ...) on {physics.device}",
            )
    everything = _by_name(start)
    for name, values in everything.items():
        if not torch.isfinite(values).all():
            raise checked.error("reset", f"returned values that are not finite ({name})")
    _check_quaternions(checked, "reset", physics.model, everything)
    if not all(map(torch.equal, defaults, (task.qpos0, task.qvel0, task.ctrl0))):
        raise checked.error("reset", "changes self.qpos0, self.qvel0 or self.ctrl0 in place: clone them first")
    if not _are_equal(everything, _by_name(repeated)):
        warn_of_randomness(task, "reset", "for equal generators", "Draw all random numbers from `generator`")
    elif draws.found or makes_generators(type(task).reset):
        others = _by_name(split_start(task, another, worlds))
        same = [name for name, values in everything.items() if torch.equal(values, others[name])]
        if fixed := [name for name in same if (everything[name] != everything[name][:1]).any()]:
            warn_once(
                f"{type(task).__name__}.reset draws random numbers, and returns the same {', '.join(fixed)} for "
                "another generator: they are the same in every episode of a world, whatever the seed. Draw all random "
                "numbers from `generator`"
            )
    return start


def _by_name(start: Start) -> dict[str, Tensor]:
    return {"qpos": start.qpos, "qvel": start.qvel, **start.fields, **start.own}


def _are_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _check_names(checked: Expectation, task: Task, returned: Mapping[Any, Any]) -> None:
    """Check the names of what `reset` returns; warn of one that looks like a misspelt field."""
    for name in returned:
        if name == "time" and task.model.nhistory:
            raise checked.error("reset", "returned a time; delays of the model have samples with times: leave it out")
        if name in START_FIELDS:
            continue
        if not (isinstance(name, str) and name.isidentifier()) or name.startswith("_"):
            raise checked.error("reset", f"returned {name!r}; expected a name such as 'goal', read as state.goal")
        if hasattr(State, name):
            raise checked.error("reset", f"returned {name!r}, which is a function of the state: choose another name")
        if name in DATA_FIELDS or hasattr(mujoco.MjData, name):
            raise checked.error(
                "reset",
                f"returned {name!r}, which is a name of MjData. An episode can start with {', '.join(START_FIELDS)}: "
                "choose another name for a tensor of the task's own",
            )
        for close in difflib.get_close_matches(name, START_FIELDS, n=1, cutoff=0.85):
            warn_once(
                f"{type(task).__name__}.reset returns {name!r}, which is a tensor of the task's own; did you mean "
                f"{close}?"
            )


def _check_quaternions(
    checked: Expectation, function: str, model: mujoco.MjModel, fields: Mapping[str, Tensor]
) -> None:
    if found := zero_quaternion(model, fields):
        field, place = found
        raise checked.error(f"{function} ({field})", f"returned {place}")


def zero_quaternion(model: mujoco.MjModel, fields: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Find a quaternion of zero, which MuJoCo takes for no rotation. Those of other norms it normalises.

    Args:
        model: the model.
        fields: fields of MjData, (N, ...) each.

    Returns:
        The field, and a text that names the place in it. None: there is none.
    """
    places: list[tuple[str, str, int]] = []  # the field, the object and the column at which its quaternion starts
    for index in range(model.njnt):
        name, address = joint_label(model, index), int(model.jnt_qposadr[index])
        if model.jnt_type[index] == mujoco.mjtJoint.mjJNT_FREE:
            places.append(("qpos", f"free joint {name}", address + 3))
        elif model.jnt_type[index] == mujoco.mjtJoint.mjJNT_BALL:
            places.append(("qpos", f"ball joint {name}", address))
    for body in np.flatnonzero(model.body_mocapid >= 0).tolist():
        name = label(model.body(body).name, body)
        places.append(("mocap_quat", f"mocap body {name}", 4 * int(model.body_mocapid[body])))
    for field, name, start in places:
        if field in fields and (fields[field].flatten(1)[:, start : start + 4].norm(dim=-1) < _NO_ROTATION).any():
            place = f"qpos[:, {start}:{start + 4}]" if field == "qpos" else f"mocap_quat[:, {start // 4}]"
            return field, f"a quaternion of zero for {name} ({place}); (1, 0, 0, 0) is no rotation"
    return None


def _check_fields(checked: Expectation, function: str, physics: Physics, fields: Mapping[str, Any]) -> None:
    """Check tensors by MjData's names."""
    data = mujoco.MjData(physics.model)
    for name, values in fields.items():
        field = getattr(data, name)
        shape = (physics.num_worlds, *getattr(field, "shape", ()))
        checked(f"{function} ({name})", values, shape, "floating-point")
        if 0 in shape:
            raise checked.error(f"{function} ({name})", "sets a field that is empty in this model: leave it out")


def check_control(
    checked: Expectation, task: Task, physics: Physics, state: State, action: Tensor
) -> dict[str, Tensor]:
    """Check what `control` returns for random actions, (N, action_dim); return it by field."""
    with checked.calling("control"):
        returned = task.control(state, action.clone())
    if not isinstance(returned, Tensor | dict):
        raise checked.error(
            "control", f"returned a {type(returned).__name__}; expected a tensor, which is ctrl, or a dict of tensors"
        )
    inputs = inputs_of(returned)
    if not inputs or (unknown := [name for name in inputs if name not in INPUTS]):
        what = f"{', '.join(map(repr, unknown))}" if inputs else "an empty dict"
        raise checked.error("control", f"returned {what}; it can set {', '.join(INPUTS)}")
    _check_fields(checked, "control", physics, inputs)
    for name, values in inputs.items():
        if not torch.isfinite(values).all():
            raise checked.error("control", f"returned values that are not finite ({name})")
    _check_quaternions(checked, "control", physics.model, inputs)
    return {name: values.clone() for name, values in inputs.items()}


def check_advance(
    checked: Expectation, task: Task, physics: Physics, state: State, action: Tensor, start: Start
) -> None:
    """Check what `advance` returns at initial states."""
    with checked.calling("advance"):
        renewed = task.advance(state, action.clone(), torch.Generator(physics.device).manual_seed(0))
    if not isinstance(renewed, dict):
        raise checked.error("advance", f"returned a {type(renewed).__name__}; expected a dict of own tensors by name")
    for name, values in renewed.items():
        if name not in start.own:
            own = ", ".join(start.own) or "none"
            raise checked.error("advance", f"renews {name!r}, which is none of the tensors of reset's own: {own}")
        was = start.own[name]
        if not isinstance(values, Tensor) or (values.shape, values.dtype) != (was.shape, was.dtype):
            raise checked.error(
                f"advance ({name})", f"returned {describe(values)}; expected {describe(was)}, as reset returns it"
            )
        if values.device != was.device:
            raise checked.error(f"advance ({name})", f"returned {describe(values)}; expected it on {was.device}")
        if not torch.isfinite(values).all():
            raise checked.error("advance", f"returned values that are not finite ({name})")

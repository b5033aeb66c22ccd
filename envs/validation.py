"""Checks of arguments, states, bounds of actuators and randomised model fields."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from envs.object_names import control_label, range_attribute
from envs.physics import Physics
from envs.physics.model_fields import changed_field, field_fault, wrong_signs
from envs.simulation import Simulation
from envs.start_checks import zero_quaternion
from envs.task import Task
from envs.task_functions import defines
from envs.whole_numbers import MAX_INT, require_whole
from saltus.errors import SaltusError, warn_once

EXECUTIONS = ("auto", "host", "device", "captured")
LATER_ENTRIES = {
    "state": frozenset({"failed_starts", "action_choices"}), "state['physics']": frozenset({"cvel", "cdof_dot"}),
}  # fmt: skip
"""Entries, by path, that states of earlier versions lack: they count as zero, or are not read."""


def check_arguments(task: Task, num_envs: int, seed: int, simulation: Simulation | None, execution: str) -> None:
    """Raise SaltusError for impossible arguments of BatchEnv, or step counts of the task below 1."""
    if not isinstance(task, Task):
        raise SaltusError(
            f"the task of BatchEnv is {task!r}; expected an object of a subclass of saltus.Task (saltus.make also "
            "takes names and classes)"
        )
    name = type(task).__name__
    require_whole("num_envs", num_envs, at_least=1, at_most=MAX_INT)
    require_whole("seed", seed, at_least=0)
    if not isinstance(simulation, Simulation | None):
        raise SaltusError(f"simulation is {simulation!r}; it must be an object of saltus.Simulation, or None")
    if execution not in EXECUTIONS:
        raise SaltusError(f"execution is {execution!r}; it must be one of {', '.join(EXECUTIONS)}")
    if hasattr(task, "fresh"):
        raise SaltusError(f"{name}.fresh is now recompute_derived")
    for attribute in ("frame_skip", "max_episode_steps"):
        require_whole(f"{attribute} of task {name}", getattr(task, attribute), at_least=1)
    for attribute in ("settle_steps", "model_variants"):
        require_whole(f"{attribute} of task {name}", getattr(task, attribute), at_least=0)


def check_mask(mask: Any, num_envs: int) -> None:
    """Raise SaltusError unless a mask of worlds is a tensor of bool and shape (N,)."""
    if not isinstance(mask, Tensor):
        raise SaltusError(f"the mask is a {type(mask).__name__}; expected a torch.bool tensor of shape ({num_envs},)")
    if mask.shape != (num_envs,) or mask.dtype != torch.bool:
        raise SaltusError(
            f"the mask is {mask.dtype} of shape {tuple(mask.shape)}; expected torch.bool of shape ({num_envs},)"
        )


def check_placement(physics: Physics, qpos: Tensor, qvel: Tensor) -> None:
    """Raise SaltusError for a state of a wrong form, one that MuJoCo would take for diverged, or a zero quaternion.

    MuJoCo would reset a diverged world instead.
    """
    for name, values in (("qpos", qpos), ("qvel", qvel)):
        if not isinstance(values, Tensor):
            raise SaltusError(f"{name} is a {type(values).__name__}; expected a tensor")
    shapes = (physics.num_worlds, physics.model.nq), (physics.num_worlds, physics.model.nv)
    if (qpos.shape, qvel.shape) != shapes:
        raise SaltusError(
            f"set_qpos_qvel: qpos and qvel are {tuple(qpos.shape)} and {tuple(qvel.shape)}; expected {shapes}"
        )
    for name, values in (("qpos", qpos), ("qvel", qvel)):
        bad = ~(values.abs() <= mujoco.mjMAXVAL)  # also true for NaN
        if bad.any():
            place = [int(index) for index in bad.nonzero()[0]]
            raise SaltusError(
                f"{name}{place} is {float(values[tuple(place)])}: values must be finite and at most "
                f"{mujoco.mjMAXVAL:g}, beyond which MuJoCo takes a state for diverged"
            )
    if found := zero_quaternion(physics.model, {"qpos": qpos}):
        raise SaltusError(f"qpos has {found[1]}")


def check_state(state: Any, expected: Any, path: str = "state") -> None:
    """Raise SaltusError unless a state has the tensors of `expected`: their names, shapes and dtypes, at any depth."""
    if isinstance(expected, Tensor):
        if not isinstance(state, Tensor):
            raise _other_type(path, state, f"a {expected.dtype} tensor")
        if state.dtype != expected.dtype:
            raise SaltusError(
                f"this state is of another environment: {path} is {state.dtype}; expected {expected.dtype}"
            )
        if state.shape != expected.shape:
            raise SaltusError(
                f"this state is of another environment: {path} has shape {tuple(state.shape)}; expected "
                f"{tuple(expected.shape)}"
            )
        return
    if not isinstance(state, Mapping | TensorDictBase):
        raise _other_type(path, state, f"a mapping with {sorted(expected.keys())}")
    found, names = set(state.keys()), set(expected.keys())
    if found - names or names - found - LATER_ENTRIES.get(path, frozenset()):
        raise SaltusError(
            f"this state is of another environment: {path} has {sorted(state.keys())}; expected "
            f"{sorted(expected.keys())}"
        )
    for name, value in expected.items():
        if name in found:
            check_state(state[name], value, f"{path}[{name!r}]")


def _other_type(path: str, value: Any, expected: str) -> SaltusError:
    return SaltusError(f"{path} is a {type(value).__name__}; expected {expected}, as get_state returned it")


def action_bounds(task: Task, model: mujoco.MjModel, device: torch.device) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds of a task's actions, (action_dim,) float32 each: its own, or the actuators'.

    Raises:
        SaltusError: bounds of impossible values or shapes; or none, and no actuators, or some without a ctrlrange that
            bounds them; the message says how to give one.
    """
    if task.action_low is None and task.action_high is None:
        return _control_bounds(model, type(task).__name__, device)
    try:
        low, high = (torch.as_tensor(one, dtype=torch.float32) for one in (task.action_low, task.action_high))
        low, high = (one.clone() for one in torch.broadcast_tensors(low, high))
    except (TypeError, ValueError, RuntimeError):
        low = high = torch.empty(0, 0)
    if low.dim() == 0:
        low, high = low.repeat(model.nu), high.repeat(model.nu)
    size = len(low) if low.dim() == 1 else 0
    if not size or not (torch.isfinite(low) & torch.isfinite(high) & (low < high)).all():
        hint = "" if model.nu else ". The model has no controls: give a number for each action"
        raise SaltusError(
            f"action_low and action_high of task {type(task).__name__} are {task.action_low!r} and "
            f"{task.action_high!r}; expected finite numbers, the lower one first: sequences of one length, with a "
            f"number for each action, or one number for all controls{hint}"
        )
    if not defines(task, "control") and size != model.nu:
        raise SaltusError(
            f"task {type(task).__name__} has {size} actions by action_low and action_high, and its model {model.nu} "
            "controls of actuators: define control(self, state, action), which says what the actions do"
        )
    return low.to(device), high.to(device)


def _control_bounds(model: mujoco.MjModel, task_name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    if model.nu == 0:
        missing = "actuators with controls" if model.nactuator else "actuators"
        raise SaltusError(
            f"the model of task {task_name} has no {missing}. Give it some, or set action_low and action_high, a "
            "number for each action, and define control(self, state, action): it may move mocap bodies and apply forces"
        )
    faults = [fault for index in range(model.nu) if (fault := bounds_fault(model, index))]
    if faults:
        raise SaltusError(
            f"actuators of task {task_name} without usable bounds: {'; '.join(faults)}. Actions are scaled to the "
            "actuators' bounds: give each a ctrlrange with finite ends, the lower one first, as in <motor ... "
            'ctrlrange="-1 1"/>, or all of a class one by <default><motor ctrlrange="-1 1"/></default>; for position '
            'actuators inheritrange="1" takes the joint\'s range, and the other inputs of a pid have a velrange and a '
            "ffrange. Or set action_low and action_high of the task, the bounds of its actions"
        )
    low, high = torch.as_tensor(model.actuator_ctrlrange, dtype=torch.float32, device=device).unbind(-1)
    return low.clone(), high.clone()


def bounds_fault(model: mujoco.MjModel, control: int) -> str | None:
    """Why the range of a control cannot scale actions; None if it can."""
    low, high = model.actuator_ctrlrange[control]
    fault = None
    if not (abs(low) <= mujoco.mjMAXVAL and abs(high) <= mujoco.mjMAXVAL):  # NaN included
        fault = "is not finite"
    elif model.actuator_ctrllimited[control]:
        return None
    elif low == high == 0:
        fault = "is missing or empty"
    elif low >= high:
        fault = "is empty: its lower end is not below its upper end"
    else:
        fault = 'has no effect because of ctrllimited="false" (remove that attribute)'
    return f'{control_label(model, control)} (its {range_attribute(model, control)}, "{low:g} {high:g}", {fault})'


def randomized_fields(task: Task, num_models: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Call the task's `randomize` for a number of models and check what it returns.

    Raises:
        SaltusError: a changed `task.model`; not a dict, an unknown field, or values of a wrong type or shape, or not
            finite; no field, of a task with `model_variants`.
    """
    state, before, function = generator.get_state(), copy.copy(task.model), f"{type(task).__name__}.randomize"
    fields = task.randomize(num_models, generator)
    if changed := changed_field(task.model, before):
        raise SaltusError(
            f"{function} changes self.model.{changed}: return the fields instead, (num_envs, ...) each by name, or "
            "the result of saltus.draw_fields"
        )
    again = task.randomize(num_models, torch.Generator(generator.device).set_state(state))
    if not isinstance(fields, dict):
        raise SaltusError(f"{function} returned a {type(fields).__name__}; expected a dict of tensors")
    if task.model_variants and not fields:
        raise SaltusError(
            f"model_variants of task {type(task).__name__} is {task.model_variants}, and {function} draws no field of "
            "these models: return some from randomize(self, num_envs, generator), or set model_variants to 0"
        )
    for name, values in fields.items():
        if fault := _field_fault(task.model, num_models, name, values):
            raise SaltusError(
                f"{function} gave {name!r} as a {type(values).__name__} of shape "
                f"{tuple(getattr(values, 'shape', ()))}; {fault}"
            )
    if again.keys() != fields.keys() or not all(torch.equal(again[name], values) for name, values in fields.items()):
        warn_once(
            f"{function} returns other values for equal generators: seeds do not determine them, and a resumed run has "
            "other models. Draw all random numbers from `generator`"
        )
    return fields


def _field_fault(model: mujoco.MjModel, num_models: int, name: str, values: Any) -> str | None:
    """The fault of per-world values of a model field; None if there is none."""
    if fault := field_fault(model, name):
        return fault
    field = np.asarray(getattr(model.opt, name[4:]) if name.startswith("opt.") else getattr(model, name))
    if not isinstance(values, Tensor) or tuple(values.shape) != (num_models, *field.shape):
        return f"expected a tensor of shape {(num_models, *field.shape)}"
    if not torch.isfinite(values).all():
        return "it holds values that are not finite"
    wrong = wrong_signs(model, name, numbers := values.cpu().numpy())
    if wrong.any():
        return f"it holds {numbers[wrong].min():g}: negative numbers, masses of 0 and the like have no meaning there"
    return None

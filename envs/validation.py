"""Checks of arguments, and of a task's functions before the first step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mujoco
import torch
from torch import Tensor

from envs.physics import Physics
from envs.task import NameIndex, State, Task
from saltus.errors import SaltusError

EXECUTIONS = ("auto", "host", "device", "captured")


def check_arguments(task: Task, num_envs: int, seed: int, execution: str) -> None:
    """Raise SaltusError for impossible arguments of BatchEnv, or step counts of the task below 1."""
    if num_envs < 1:
        raise SaltusError(f"num_envs is {num_envs}; at least 1 world is needed")
    if seed < 0:
        raise SaltusError(f"seed is {seed}; it must be 0 or more")
    if execution not in EXECUTIONS:
        raise SaltusError(f"execution is {execution!r}; it must be one of {', '.join(EXECUTIONS)}")
    if hasattr(task, "fresh"):
        raise SaltusError(f"{type(task).__name__}.fresh is now recompute_derived")
    for name in ("frame_skip", "max_episode_steps"):
        if getattr(task, name) < 1:
            raise SaltusError(f"{name} of task {type(task).__name__} is {getattr(task, name)}; at least 1 is needed")


def check_qpos_qvel(physics: Physics, qpos: Tensor, qvel: Tensor) -> None:
    """Raise SaltusError unless the shapes are (N, nq) and (N, nv)."""
    shapes = (physics.num_worlds, physics.model.nq), (physics.num_worlds, physics.model.nv)
    if (qpos.shape, qvel.shape) != shapes:
        raise SaltusError(f"qpos and qvel are {tuple(qpos.shape)} and {tuple(qvel.shape)}; expected {shapes}")


def check_state(state: Any, expected: Any, path: str = "state") -> None:
    """Raise SaltusError unless a state has the tensors of `expected`, with their names and shapes, at any depth."""
    if isinstance(expected, Tensor):
        if state.shape != expected.shape:
            raise SaltusError(
                f"this state is of another environment: {path} has shape {tuple(state.shape)}; expected "
                f"{tuple(expected.shape)}"
            )
        return
    if set(state.keys()) != set(expected.keys()):
        raise SaltusError(
            f"this state is of another environment: {path} has {sorted(state.keys())}; expected "
            f"{sorted(expected.keys())}"
        )
    for name, value in expected.items():
        check_state(state[name], value, f"{path}[{name!r}]")


def control_bounds(model: mujoco.MjModel, task_name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """The actuators' control ranges: lower and upper bounds, (nu,) float32 each.

    Raises:
        SaltusError: no actuators, or some without a ctrlrange.
    """
    if model.nu == 0:
        raise SaltusError(f"the model of task {task_name} has no actuators: there is nothing to control")
    unbounded = [model.actuator(i).name or f"#{i}" for i in range(model.nu) if not model.actuator_ctrllimited[i]]
    if unbounded:
        raise SaltusError(
            f"actuators of task {task_name} without bounds: {', '.join(unbounded)}. Actions are scaled to the "
            "actuators' bounds: give each a ctrlrange in the MJCF"
        )
    low, high = torch.as_tensor(model.actuator_ctrlrange, dtype=torch.float32, device=device).unbind(-1)
    return low.clone(), high.clone()


def randomized_fields(task: Task, num_envs: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Call the task's `randomize` and check what it returns.

    Raises:
        SaltusError: not a dict, an unknown field, or values of a wrong shape.
    """
    function = f"{type(task).__name__}.randomize"
    fields = task.randomize(num_envs, generator)
    if not isinstance(fields, dict):
        raise SaltusError(f"{function} returned a {type(fields).__name__}; expected a dict of tensors")
    for name, values in fields.items():
        shape = getattr(getattr(task.model, name, None), "shape", None)
        if shape is None or not isinstance(values, Tensor) or tuple(values.shape) != (num_envs, *shape):
            expected = "MjModel has no such field" if shape is None else f"expected a tensor of {(num_envs, *shape)}"
            raise SaltusError(
                f"{function} gave {name!r} as a {type(values).__name__} of shape "
                f"{tuple(getattr(values, 'shape', ()))}; {expected}"
            )
    return fields


@dataclass(frozen=True)
class TaskShapes:
    """The observation's width and the names of the reward's terms."""

    observation_dim: int
    reward_terms: list[str]


def split_reward(returned: Tensor | tuple[Tensor, dict[str, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Split the result of `Task.reward` into the reward and its terms; no terms if it is a tensor."""
    return (returned, {}) if isinstance(returned, Tensor) else returned


def check_functions(task: Task, physics: Physics, names: NameIndex) -> TaskShapes:
    """Call each of the task's functions once and check its result.

    Leaves the physics at initial states. They are drawn from a separate generator, so that the environment's draws do
    not change.

    Raises:
        SaltusError: a missing function, or a result of a wrong type, shape, dtype or device, or not finite.
    """
    checked = _Expectation(type(task), physics)
    for function in ("observation", "reward"):
        if getattr(type(task), function) is getattr(Task, function):
            raise SaltusError(f"{type(task).__name__} does not define {function}: see the docstring of Task.{function}")
    start = task.reset(physics.num_worlds, torch.Generator(physics.device).manual_seed(0))
    state = _initial_state(checked, start, physics, names)
    observation = task.observation(state)
    checked("observation", observation, (physics.num_worlds, "obs_dim"), "floating-point")
    if observation.shape[1] == 0:
        raise checked.error("observation", "is empty")
    if not torch.isfinite(observation).all():
        raise checked.error("observation", "is not finite at an initial state")
    action = torch.zeros(physics.num_worlds, physics.model.nu, device=physics.device)
    returned = task.reward(state, action, state)
    is_pair = isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], dict)
    if not (isinstance(returned, Tensor) or is_pair):
        raise checked.error(
            "reward",
            f"returned a {type(returned).__name__}; expected a tensor of shape ({physics.num_worlds},), or that and a "
            "dict of its terms",
        )
    reward, terms = split_reward(returned)
    checked("reward", reward, (physics.num_worlds,), "floating-point")
    for name, term in terms.items():
        checked(f"reward (term {name!r})", term, (physics.num_worlds,), "floating-point")
    checked("terminated", task.terminated(state), (physics.num_worlds,), "bool")
    return TaskShapes(observation.shape[1], list(terms))


def _initial_state(checked: _Expectation, start: Any, physics: Physics, names: NameIndex) -> State:
    if not (isinstance(start, tuple) and len(start) == 2):
        raise checked.error("reset", f"returned a {type(start).__name__}; expected (qpos, qvel)")
    checked("reset (qpos)", start[0], (physics.num_worlds, physics.model.nq), "floating-point")
    checked("reset (qvel)", start[1], (physics.num_worlds, physics.model.nv), "floating-point")
    if not all(torch.isfinite(part).all() for part in start):
        raise checked.error("reset", "returned values that are not finite")
    physics.reset(torch.ones(physics.num_worlds, dtype=torch.bool, device=physics.device), *start)
    return State(physics.read(), names)


class _Expectation:
    """Checks results of a task's functions. Errors name the function and the expected result."""

    def __init__(self, task: type[Task], physics: Physics):
        self._task, self._device = task, physics.device

    def error(self, function: str, message: str) -> SaltusError:
        return SaltusError(f"{self._task.__name__}.{function} {message}")

    def __call__(self, function: str, value: Any, shape: tuple[int | str, ...], dtype: str) -> None:
        """Check one result. A string in `shape` matches any size; `dtype` is "bool" or "floating-point"."""
        sizes = ", ".join(map(str, shape)) + "," * (len(shape) == 1)
        wanted = f"expected a {dtype} tensor of shape ({sizes}) on {self._device}"
        if not isinstance(value, Tensor):
            raise self.error(function, f"returned a {type(value).__name__}; {wanted}")
        right_shape = len(value.shape) == len(shape) and all(
            isinstance(want, str) or want == have for want, have in zip(shape, value.shape, strict=True)
        )
        right_dtype = value.dtype == torch.bool if dtype == "bool" else value.dtype.is_floating_point
        if not (right_shape and right_dtype and value.device == self._device):
            got = f"a {value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
            raise self.error(function, f"returned {got}; {wanted}")

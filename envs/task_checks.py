"""Checks of a task's functions: results of a wrong form, mixed worlds, changed arguments, randomness of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from envs.physics import Physics
from envs.statistics import check_terms
from envs.task import NameIndex, State, Task
from saltus.errors import SaltusError, warn_once

_ROUNDING = 64  # multiples of the dtype's epsilon: vectorised functions may round a lane by its neighbours' values
_ENOUGH_WORLDS = 32  # initial states are random: in fewer worlds all may end at once by chance

_Call = Callable[[State, Tensor, State], list[Tensor]]


@dataclass(frozen=True)
class TaskShapes:
    """The observation's width and the names of the reward's terms."""

    observation_dim: int
    reward_terms: list[str]


def split_reward(returned: Tensor | tuple[Tensor, dict[str, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Split the result of `Task.reward` into the reward and its terms; no terms if it is a tensor."""
    return returned if isinstance(returned, tuple) else (returned, {})


def result_forms(num_envs: int, observation_dim: int) -> dict[str, tuple[torch.Size, bool]]:
    """The shape of each function's results, and whether they are bool."""
    per_world = torch.Size([num_envs])
    return {
        "observation": (torch.Size([num_envs, observation_dim]), False),
        "reward": (per_world, False),
        "terminated": (per_world, True),
    }


def same_form(task: Task, function: str, value: Tensor, forms: Mapping[str, tuple[torch.Size, bool]]) -> Tensor:
    """Return a result of one of the task's functions, unchanged.

    Raises:
        SaltusError: it has not the form that results had at construction. It would broadcast, or fail far from its
            cause.
    """
    shape, is_bool = forms[function]
    if not isinstance(value, Tensor) or value.shape != shape or (value.dtype == torch.bool) != is_bool:
        raise SaltusError(
            f"{type(task).__name__}.{function} returned {_describe(value)}; expected a "
            f"{'bool' if is_bool else 'floating-point'} tensor of shape {tuple(shape)}, as when the environment was "
            "made"
        )
    return value


@torch.no_grad()
def check_functions(
    task: Task, physics: Physics, names: NameIndex, low: Tensor, high: Tensor, *, forms_only: bool
) -> TaskShapes:
    """Check the results of the task's functions at initial states and after one step with random controls.

    Leaves the physics at initial states. All draws are from separate generators, so that the environment's draws do
    not change.

    Args:
        low, high: (nu,) bounds of the controls.
        forms_only: check the types, shapes, dtypes and devices of results at initial states only.

    Raises:
        SaltusError: a missing function; a result of a wrong type, shape, dtype or device, or not finite; physics that
            fails at every initial state; a function that mixes worlds or changes its arguments; episodes that are all
            over after one step.
    """
    checked, name = _Expectation(type(task), physics), type(task).__name__
    for function in ("observation", "reward"):
        if getattr(type(task), function) is getattr(Task, function):
            raise SaltusError(f"{name} does not define {function}: see the docstring of Task.{function}")
    start = _initial_state(checked, task, physics)
    _reset(physics, *start)
    if physics.unstable().all():
        raise SaltusError(f"the physics of task {name} fails at every initial state: {physics.failure_advice}")
    before = _Snapshot(physics.read(), names)
    shapes = _check_forms(checked, task, physics, before)
    if not forms_only:
        _check_results(checked, task, physics, before, shapes, _random_controls(physics, low, high))
        _reset(physics, *start)
    return shapes


def _check_results(
    checked: _Expectation, task: Task, physics: Physics, before: _Snapshot, shapes: TaskShapes, control: Tensor
) -> None:
    """Check the functions' results before and after a step with `control`, (N, nu)."""
    physics.step(control, task.frame_skip)
    if physics.unstable().all():
        warn_once(
            f"the physics of task {type(task).__name__} fails in the first step, with random controls: "
            f"{physics.failure_advice}"
        )
    after = _Snapshot(physics.read(), before.names)
    _check_values(checked, task, shapes, before, control, after, ~physics.unstable())
    _check_purity(checked, task, before, control, after)
    _check_ends(checked, task, before, after)


@dataclass(frozen=True)
class _Snapshot:
    """The worlds' fields at one time."""

    values: dict[str, Tensor]
    names: NameIndex

    def state(self) -> State:
        """A copy, which a function may spoil."""
        return State({field: value.clone() for field, value in self.values.items()}, self.names)

    def replaced(self, worlds: Tensor, other: _Snapshot) -> _Snapshot:
        """A snapshot with the values of `other` in `worlds`, (N,) bool."""
        values = {field: value.clone() for field, value in self.values.items()}
        for field, value in values.items():
            value[worlds] = other.values[field][worlds]
        return _Snapshot(values, self.names)


def _reset(physics: Physics, qpos: Tensor, qvel: Tensor) -> None:
    physics.reset(torch.ones(physics.num_worlds, dtype=torch.bool, device=physics.device), qpos, qvel)


def _random_controls(physics: Physics, low: Tensor, high: Tensor) -> Tensor:
    low, high = low.to(physics.device), high.to(physics.device)
    generator = torch.Generator(physics.device).manual_seed(0)
    share = torch.rand(physics.num_worlds, len(low), generator=generator, device=physics.device)
    return low + (high - low) * share


def _initial_state(checked: _Expectation, task: Task, physics: Physics) -> tuple[Tensor, Tensor]:
    """Initial states, drawn twice from equal generators."""
    worlds, defaults = physics.num_worlds, (task.qpos0.clone(), task.qvel0.clone())
    start, again = (task.reset(worlds, torch.Generator(physics.device).manual_seed(0)) for _ in range(2))
    if not (isinstance(start, tuple) and len(start) == 2):
        raise checked.error("reset", f"returned a {type(start).__name__}; expected (qpos, qvel)")
    checked("reset (qpos)", start[0], (worlds, physics.model.nq), "floating-point")
    checked("reset (qvel)", start[1], (worlds, physics.model.nv), "floating-point")
    if not all(torch.isfinite(part).all() for part in start):
        raise checked.error("reset", "returned values that are not finite")
    if not (torch.equal(defaults[0], task.qpos0) and torch.equal(defaults[1], task.qvel0)):
        raise checked.error("reset", "changes self.qpos0 or self.qvel0 in place: clone them first")
    if not all(torch.equal(*pair) for pair in zip(start, again, strict=True)):
        _warn_of_randomness(task, "reset", "for equal generators", "Draw all random numbers from `generator`")
    return start


def _check_forms(checked: _Expectation, task: Task, physics: Physics, snapshot: _Snapshot) -> TaskShapes:
    """Check types, shapes, dtypes and devices."""
    observation = task.observation(snapshot.state())
    checked("observation", observation, (physics.num_worlds, "obs_dim"), "floating-point")
    if observation.shape[1] == 0:
        raise checked.error("observation", "is empty")
    if not torch.isfinite(observation.float()).all():
        raise checked.error("observation", "is not finite in float32 at an initial state")
    action = torch.zeros(physics.num_worlds, physics.model.nu, device=physics.device)
    returned = task.reward(snapshot.state(), action, snapshot.state())
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
        if not (isinstance(name, str) and name.strip() and name.isprintable()):
            raise checked.error("reward", f"has a term named {name!r}; expected a printable name of a column")
        checked(f"reward (term {name!r})", term, (physics.num_worlds,), "floating-point")
    checked("terminated", task.terminated(snapshot.state()), (physics.num_worlds,), "bool")
    return TaskShapes(observation.shape[1], list(terms))


def _check_values(
    checked: _Expectation,
    task: Task,
    shapes: TaskShapes,
    before: _Snapshot,
    control: Tensor,
    after: _Snapshot,
    stable: Tensor,
) -> None:
    """Check that the terms are the same after a step, and that results are finite in the worlds of `stable`."""
    observation = task.observation(after.state())
    reward, terms = split_reward(task.reward(before.state(), control.clone(), after.state()))
    check_terms(type(task).__name__, terms, shapes.reward_terms)
    named_terms = {f"reward (term {name!r})": term for name, term in terms.items()}
    for function, value in {"observation": observation, "reward": reward, **named_terms}.items():
        if not torch.isfinite(value[stable].float()).all():
            raise checked.error(function, "is not finite in float32 after one step with random controls")


def _check_purity(checked: _Expectation, task: Task, before: _Snapshot, control: Tensor, after: _Snapshot) -> None:
    """Check that each function keeps its arguments, repeats its results, and does not mix worlds."""

    def rewards(state: State, action: Tensor, next_state: State) -> list[Tensor]:
        reward, terms = split_reward(task.reward(state, action, next_state))
        return [reward, *terms.values()]

    calls: dict[str, _Call] = {
        "observation": lambda state, action, next_state: [task.observation(next_state)],
        "reward": rewards,
        "terminated": lambda state, action, next_state: [task.terminated(next_state)],
    }
    # Change one half of the worlds: results of the other half must stay.
    half = 2 * torch.arange(len(control), device=control.device) < len(control)
    for function, call in calls.items():
        state, action, next_state = before.state(), control.clone(), after.state()
        results = call(state, action, next_state)
        for argument, expected in ((state, before), (next_state, after)):
            if field := _first_difference(argument.values(), expected.values):
                raise checked.error(function, f"changes state.{field} in place: clone it first")
        if not torch.equal(action, control):
            raise checked.error(function, "changes its action in place: clone it first")
        if not _all_close(results, call(before.state(), control.clone(), after.state())):
            _warn_of_randomness(
                task, function, "for the same state", "Draw random numbers in `reset`, and keep no state on the task"
            )
            continue
        for changed in (half, ~half):
            other_control = torch.where(changed[:, None], 0.5 * control, control)
            others = call(
                before.replaced(changed, after).state(), other_control, after.replaced(changed, before).state()
            )
            if not _all_close([one[~changed] for one in results], [one[~changed] for one in others]):
                raise checked.error(
                    function,
                    "mixes worlds: its result in one world depends on the state of others. Dimension 0 holds the "
                    "worlds: reduce over dim=-1, not over dim=0 or the whole tensor",
                )


def _check_ends(checked: _Expectation, task: Task, before: _Snapshot, after: _Snapshot) -> None:
    """Refuse episodes that are all over at their first state and after one step; warn where some are."""
    over = task.terminated(before.state()) & task.terminated(after.state())
    if over.all() and len(over) >= _ENOUGH_WORLDS:
        raise checked.error(
            "terminated",
            "is true at every initial state and after one step: every episode would have one step. It must be true "
            "where an episode ends",
        )
    if over.any():
        warn_once(
            f"{type(task).__name__}.terminated is true at {int(over.sum())} of {len(over)} initial states and after "
            "one step: these episodes have one step. Check `reset` and `terminated`"
        )


def _warn_of_randomness(task: Task, function: str, when: str, advice: str) -> None:
    warn_once(
        f"{type(task).__name__}.{function} returns other values {when}: seeds do not determine its results, and a "
        f"resumed run differs from one that never stopped. {advice}"
    )


def _first_difference(values: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    differences = (field for field, value in values.items() if not _close(value, expected[field], tolerance=0.0))
    return next(differences, None)


def _all_close(results: list[Tensor], others: list[Tensor]) -> bool:
    return len(results) == len(others) and all(map(_close, results, others))


def _close(one: Tensor, other: Tensor, tolerance: float | None = None) -> bool:
    """Whether two tensors have one form and are equal, within rounding or `tolerance`."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    tolerance = _ROUNDING * torch.finfo(one.dtype).eps if tolerance is None else tolerance
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


def _describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"a {value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"


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
        right_shape = (
            isinstance(value, Tensor)
            and len(value.shape) == len(shape)
            and all(isinstance(want, str) or want == have for want, have in zip(shape, value.shape, strict=True))
        )
        if not (right_shape and _is_kind(value, dtype) and value.device == self._device):
            raise self.error(function, f"returned {_describe(value)}; {wanted}")


def _is_kind(value: Tensor, dtype: str) -> bool:
    return value.dtype == torch.bool if dtype == "bool" else value.dtype.is_floating_point

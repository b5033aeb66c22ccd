"""Checks of a task's functions: results of a wrong form, mixed worlds, changed arguments, randomness of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import mujoco
import numpy as np
import torch
from torch import Tensor

from envs.drawn_fields import DrawnFields
from envs.physics import Physics
from envs.physics.model_fields import changed_field
from envs.start_checks import Expectation, check_advance, check_control, check_start, warn_of_randomness
from envs.state import NameIndex, State
from envs.statistics import check_terms
from envs.task import Task
from envs.task_functions import (
    START_FIELDS,
    Start,
    TaskShapes,
    defines,
    group_label,
    inputs_of,
    split_observation,
    split_reward,
)
from saltus.errors import SaltusError, warn_once

_ROUNDING = 64  # multiples of the dtype's epsilon: vectorised functions may round a lane by its neighbours' values
_ENOUGH_WORLDS = 32  # initial states are random: in fewer worlds all may end at once by chance

_MISSING = object()

_Call = Callable[[State, Tensor, State], list[Tensor]]


@torch.no_grad()
def check_functions(
    task: Task,
    physics: Physics,
    names: NameIndex,
    drawn: DrawnFields,
    low: Tensor,
    high: Tensor,
    *,
    forms_only: bool,
) -> TaskShapes:
    """Check the results of the task's functions at initial states and after one step with random controls.

    Leaves the physics at initial states. All draws are from separate generators, so that the environment's draws do
    not change.

    Args:
        low, high: (action_dim,) bounds of actions.
        forms_only: check the types, shapes, dtypes and devices of results at initial states only.

    Raises:
        SaltusError: a missing function; a result of a wrong type, shape, dtype or device, or not finite; physics that
            fails at every initial state; a function that mixes worlds, or changes its arguments, the model or the
            default state; episodes that are all over after one step.
    """
    checked, name = Expectation(type(task), physics), type(task).__name__
    for function, signature, shape in (
        ("observation", "observation(self, state)", f"({physics.num_worlds}, obs_dim)"),
        ("reward", "reward(self, state, action, next_state)", f"({physics.num_worlds},)"),
    ):
        if getattr(type(task), function) is getattr(Task, function):
            raise SaltusError(
                f"{name} does not define {function}: add {signature}, which returns a floating-point tensor of shape "
                f"{shape}, a row for each world"
            )
    unchanged = None if forms_only else (copy.copy(task.model), copy.copy(task.data0))
    start = check_start(checked, task, physics)
    _reset(physics, start)
    if physics.unstable().all():
        raise SaltusError(f"the physics of task {name} fails at every initial state: {physics.failure_advice}")
    before = _Snapshot({**physics.read(), **start.own}, names, drawn)
    action = _random_actions(physics, low, high)
    inputs = check_control(checked, task, physics, before.state(), action) if defines(task, "control") else {}
    if defines(task, "advance"):
        check_advance(checked, task, physics, before.state(), action, start)
    shapes = _check_forms(checked, task, before, torch.zeros_like(action), start, inputs)
    if unchanged is not None:
        _check_results(checked, task, physics, before, shapes, action)
        _reset(physics, start)
        _check_model(task, *unchanged)
    return shapes


def _check_model(task: Task, model: mujoco.MjModel, data: mujoco.MjData) -> None:
    """Refuse a model or default state that differs from its copy: worlds do not see the model's changes."""
    if field := changed_field(task.model, model):
        raise SaltusError(
            f"a function of {type(task).__name__} changes self.model.{field} in place: set it in `mjcf`, or return "
            "fields that differ between worlds from `randomize`"
        )
    for name in START_FIELDS:
        if not np.array_equal(getattr(task.data0, name), getattr(data, name), equal_nan=True):
            raise SaltusError(
                f"a function of {type(task).__name__} changes self.data0.{name} in place: return initial states from "
                "`reset`, and compute on a mujoco.MjData of your own"
            )


def _check_results(
    checked: Expectation, task: Task, physics: Physics, before: _Snapshot, shapes: TaskShapes, action: Tensor
) -> None:
    """Check the functions' results before and after a step with `action`, (N, action_dim)."""
    if shapes.inputs:
        physics.step(None, task.frame_skip, shapes.inputs)
    else:
        physics.step(action, task.frame_skip)
    if physics.unstable().all():
        warn_once(
            f"the physics of task {type(task).__name__} fails in the first step, with random controls: "
            f"{physics.failure_advice}"
        )
    stepped = replace(before, values={**before.values, **physics.read()})
    renewed = task.advance(stepped.state(), action.clone(), _generator(physics)) if defines(task, "advance") else {}
    after = replace(before, values={**stepped.values, **renewed})
    _check_values(checked, task, shapes, before, action, after, ~physics.unstable())
    _check_purity(checked, task, physics, before, action, after)
    _check_ends(checked, task, before, after)


@dataclass(frozen=True)
class _Snapshot:
    """The worlds' fields at one time."""

    values: dict[str, Tensor]
    names: NameIndex
    drawn: DrawnFields

    def state(self) -> State:
        """A copy, which a function may spoil."""
        return State({field: value.clone() for field, value in self.values.items()}, self.names, self.drawn)

    def replaced(self, worlds: Tensor, other: _Snapshot) -> _Snapshot:
        """A snapshot with the values of `other`, and of other models, in `worlds`, (N,) bool."""
        values = {field: value.clone() for field, value in self.values.items()}
        for field, value in values.items():
            value[worlds] = other.values[field][worlds]
        return _Snapshot(values, self.names, self.drawn.with_swapped_models(worlds))


def _reset(physics: Physics, start: Start) -> None:
    everywhere = torch.ones(physics.num_worlds, dtype=torch.bool, device=physics.device)
    physics.reset(everywhere, start.qpos, start.qvel, start.fields)


def _generator(physics: Physics) -> torch.Generator:
    return torch.Generator(physics.device).manual_seed(0)


def _random_actions(physics: Physics, low: Tensor, high: Tensor) -> Tensor:
    low, high = low.to(physics.device), high.to(physics.device)
    share = torch.rand(physics.num_worlds, len(low), generator=_generator(physics), device=physics.device)
    return low + (high - low) * share


def _check_forms(
    checked: Expectation, task: Task, snapshot: _Snapshot, action: Tensor, start: Start, inputs: dict[str, Tensor]
) -> TaskShapes:
    """Check types, shapes, dtypes and devices."""
    num_envs = len(action)
    with checked.calling("observation"):
        observed = task.observation(snapshot.state())
    groups = _check_groups(checked, observed, num_envs)
    with checked.calling("reward"):
        returned = task.reward(snapshot.state(), action, snapshot.state())
    is_pair = isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], dict)
    if not (isinstance(returned, Tensor) or is_pair):
        raise checked.error(
            "reward",
            f"returned a {type(returned).__name__}; expected a tensor of shape ({num_envs},), or that and a "
            "dict of its terms",
        )
    reward, terms = split_reward(returned)
    checked("reward", reward, (num_envs,), "floating-point")
    for name, term in terms.items():
        if not (isinstance(name, str) and name.strip() and name.isprintable()):
            raise checked.error("reward", f"has a term named {name!r}; expected a printable name of a column")
        checked(f"reward (term {name!r})", term, (num_envs,), "floating-point")
    with checked.calling("terminated"):
        ended = task.terminated(snapshot.state())
    checked("terminated", ended, (num_envs,), "bool")
    return TaskShapes(groups, list(terms), start, inputs)


def _check_groups(checked: Expectation, returned: Any, num_envs: int) -> dict[str, int]:
    """Check an observation at initial states; return the widths of its groups, with "policy" first."""
    groups = split_observation(returned)
    if "policy" not in groups or groups.keys() - {"policy", "critic"}:
        raise checked.error(
            "observation",
            f"returned the groups {list(groups)}; expected 'policy', what the actor sees, and optionally 'critic', "
            "what the critics see in addition",
        )
    widths: dict[str, int] = {group: 0 for group in ("policy", "critic") if group in groups}
    for group in widths:
        label, values = group_label(group, groups), groups[group]
        checked(label, values, (num_envs, "obs_dim"), "floating-point")
        widths[group] = values.shape[1]
        if not torch.isfinite(values.float()).all():
            raise checked.error(label, "is not finite in float32 at an initial state")
    if widths["policy"] == 0:
        raise checked.error(
            group_label("policy", groups),
            f"is empty; expected at least one number of each world: ({num_envs}, obs_dim)",
        )
    return widths


def _check_values(
    checked: Expectation,
    task: Task,
    shapes: TaskShapes,
    before: _Snapshot,
    control: Tensor,
    after: _Snapshot,
    stable: Tensor,
) -> None:
    """Check that the terms are the same after a step, and that results are finite in the worlds of `stable`."""
    groups = split_observation(task.observation(after.state()))
    observations = {group_label(group, groups): values for group, values in groups.items()}
    reward, terms = split_reward(task.reward(before.state(), control.clone(), after.state()))
    check_terms(type(task).__name__, terms, shapes.reward_terms)
    named_terms = {f"reward (term {name!r})": term for name, term in terms.items()}
    for function, value in {**observations, "reward": reward, **named_terms}.items():
        if not torch.isfinite(value[stable].float()).all():
            raise checked.error(function, "is not finite in float32 after one step with random controls")


def _check_purity(
    checked: Expectation, task: Task, physics: Physics, before: _Snapshot, control: Tensor, after: _Snapshot
) -> None:
    """Check that each function keeps its arguments, repeats its results, and does not mix worlds."""

    def rewards(state: State, action: Tensor, next_state: State) -> list[Tensor]:
        reward, terms = split_reward(task.reward(state, action, next_state))
        return [reward, *terms.values()]

    calls: dict[str, _Call] = {
        "observation": lambda state, action, next_state: [*split_observation(task.observation(next_state)).values()],
        "reward": rewards,
        "terminated": lambda state, action, next_state: [task.terminated(next_state)],
    }
    if defines(task, "control"):
        calls["control"] = lambda state, action, next_state: [*inputs_of(task.control(state, action)).values()]
    if defines(task, "advance"):
        calls["advance"] = lambda state, action, next_state: [
            *task.advance(state, action, _generator(physics)).values()
        ]
    # Change one half of the worlds: results of the other half must stay.
    half = 2 * torch.arange(len(control), device=control.device) < len(control)
    for function, call in calls.items():
        state, action, next_state, kept = before.state(), control.clone(), after.state(), dict(vars(task))
        results = call(state, action, next_state)
        for argument, expected in ((state, before), (next_state, after)):
            if field := _first_written(argument.values(), expected.values):
                raise checked.error(function, f"changes state.{field} in place: clone it first")
        if _was_written(action) or not torch.equal(action, control):
            raise checked.error(function, "changes its action in place: clone it first")
        if not _all_close(results, call(before.state(), control.clone(), after.state())):
            advice = "Draw random numbers in `reset` or `advance`, from `generator`, and keep no state on the task"
            warn_of_randomness(task, function, "for the same state", advice)
            continue
        for changed in (half, ~half):
            other_control = torch.where(changed[:, None], 0.5 * control, control)
            others = call(
                before.replaced(changed, after).state(), other_control, after.replaced(changed, before).state()
            )
            if not _all_close([one[~changed] for one in results], [one[~changed] for one in others]):
                again = call(before.state(), control.clone(), after.state())
                own = [name for name, value in vars(task).items() if kept.get(name, _MISSING) is not value]
                if own or not _all_close(results, again):
                    where = ", ".join(f"self.{name}" for name in sorted(own)) or "an attribute of the task"
                    raise checked.error(
                        function,
                        f"keeps state of earlier calls, in {where}: it is neither saved nor reset with an episode. "
                        "Return it from `reset` as a tensor of the task's own, read it as state.<name>, and renew it "
                        "in `advance`",
                    )
                raise checked.error(
                    function,
                    "mixes worlds: its result in one world depends on the state of others. Dimension 0 holds the "
                    "worlds: reduce over dim=-1, not over dim=0 or the whole tensor",
                )


def _check_ends(checked: Expectation, task: Task, before: _Snapshot, after: _Snapshot) -> None:
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


def _first_written(values: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> str | None:
    """The first of `values`, copies of those of `before`, that was written in place, also with what it held."""
    for field, value in values.items():
        if _was_written(value) or not _close(value, before[field], tolerance=0.0):
            return field
    return None


def _was_written(copy: Tensor) -> bool:
    """Whether a new copy was written in place. Tensors made in inference mode do not count writes."""
    return not copy.is_inference() and copy._version > 0


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

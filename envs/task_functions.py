"""Calls of a task's functions, whose results keep the forms that they had when the environment was made."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from envs.failures import finite_worlds
from envs.physics import Physics
from envs.state import State
from envs.task import Task
from saltus.errors import SaltusError

START_FIELDS = ("qpos", "qvel", "act", "ctrl", "mocap_pos", "mocap_quat", "userdata", "time")
"""Fields of MjData that `Task.reset` may return."""


@dataclass(frozen=True)
class Start:
    """Initial states of N worlds.

    Attributes:
        qpos, qvel: (N, nq) and (N, nv).
        fields: other fields of MjData, (N, ...) by name.
        own: the task's own tensors, (N, ...) by name.
    """

    qpos: Tensor
    qvel: Tensor
    fields: dict[str, Tensor] = field(default_factory=dict)
    own: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskShapes:
    """Forms of the task's results when they were checked.

    Attributes:
        observation: widths of the observation's groups, by name; a tensor is the group "policy".
        reward_terms: names of the reward's terms.
        start: initial states.
        inputs: the result of `control`, by field; empty if the task does not define it.
    """

    observation: dict[str, int]
    reward_terms: list[str]
    start: Start
    inputs: dict[str, Tensor]


def defines(task: Task, function: str) -> bool:
    """Whether a task defines one of Task's functions itself."""
    return getattr(getattr(task, function), "__func__", None) is not getattr(Task, function)


def split_reward(returned: Tensor | tuple[Tensor, dict[str, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Split the result of `Task.reward` into the reward and its terms; no terms if it is a tensor."""
    return returned if isinstance(returned, tuple) else (returned, {})


def split_observation(returned: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    """The result of `Task.observation`, by group: "policy", and "critic" if there is one."""
    return returned if isinstance(returned, dict) else {"policy": returned}


def group_label(group: str, groups: Collection[str]) -> str:
    """The name of one of the observation's groups in messages."""
    return f"observation (group {group!r})" if len(groups) > 1 else "observation"


def split_start(task: Task, returned: Any, num_envs: int) -> Start:
    """Split the result of `Task.reset`: a pair, or a dict that may lack qpos and qvel."""
    if isinstance(returned, tuple):
        return Start(*returned)
    fields = {name: values for name, values in returned.items() if name in START_FIELDS}
    own = {name: values for name, values in returned.items() if name not in START_FIELDS}
    qpos, qvel = (
        fields.pop(name) if name in fields else default.repeat(num_envs, 1)
        for name, default in (("qpos", task.qpos0), ("qvel", task.qvel0))
    )
    return Start(qpos, qvel, fields, own)


def inputs_of(returned: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    """The result of `Task.control`, by field."""
    return {"ctrl": returned} if isinstance(returned, Tensor) else returned


def describe(value: Any) -> str:
    """The type, shape and device of a value, in words."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"a {value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"


class TaskFunctions:
    """A task's functions for N worlds.

    A result whose form has changed since construction raises SaltusError. It would broadcast, or fail far from its
    cause.

    Args:
        task: the task.
        physics: its engine.
        shapes: the forms to keep.
        generator: the source of all randomness.

    Attributes:
        controls: whether the task defines `control`.
        advances: whether it defines `advance`.
    """

    def __init__(self, task: Task, physics: Physics, shapes: TaskShapes, generator: torch.Generator):
        self._task, self._num_envs, self._generator = task, physics.num_worlds, generator
        self.controls, self.advances = defines(task, "control"), defines(task, "advance")
        per_world = torch.Size([self._num_envs])
        self._groups = {group: group_label(group, shapes.observation) for group in shapes.observation}
        self._shapes = {
            "reward": (per_world, False),
            "terminated": (per_world, True),
            "reset (qpos)": (shapes.start.qpos.shape, False),
            "reset (qvel)": (shapes.start.qvel.shape, False),
            **{
                self._groups[group]: (torch.Size([self._num_envs, width]), False)
                for group, width in shapes.observation.items()
            },
        }
        self._own = _forms(shapes.start.own)
        self._start = {**_forms(shapes.start.fields), **self._own}
        self._inputs = {name: value.shape for name, value in shapes.inputs.items()}

    def observation(self, state: State) -> Tensor:
        """The observation, (N, obs_dim + privileged_dim) float32: the groups "policy" and "critic", side by side."""
        groups = split_observation(self._task.observation(state))
        if groups.keys() != self._groups.keys():
            raise SaltusError(
                f"{type(self._task).__name__}.observation returned the groups {sorted(groups)}, and "
                f"{sorted(self._groups)} when the environment was made: return the same groups in every step"
            )
        parts = [self._same_form(label, groups[group]).float() for group, label in self._groups.items()]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def reward(self, state: State, action: Tensor, next_state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """The reward, (N,) float32, and its terms."""
        returned = self._task.reward(state, action, next_state)
        holds = not isinstance(returned, tuple) or (len(returned) == 2 and isinstance(returned[1], dict))
        self._require("reward", returned, holds, "a reward, or it and a dict of terms")
        reward, terms = split_reward(returned)
        return self._same_form("reward", reward).float(), terms

    def terminated(self, state: State) -> Tensor:
        """Whether the task ends the episode, (N,) bool."""
        return self._same_form("terminated", self._task.terminated(state))

    def reset(self) -> Start:
        """Draw initial states.

        A world whose fields other than qpos and qvel are not finite gets a qpos that is not, so that it fails.
        """
        returned = self._task.reset(self._num_envs, self._generator)
        is_pair = isinstance(returned, tuple) and len(returned) == 2
        self._require("reset", returned, is_pair or isinstance(returned, dict), "(qpos, qvel), or a dict")
        start = split_start(self._task, returned, self._num_envs)
        for name, values in (("qpos", start.qpos), ("qvel", start.qvel)):
            self._same_form(f"reset ({name})", values)
        self._require_same("reset", {**start.fields, **start.own}, self._start)
        finite = [finite_worlds(values) for values in start.fields.values()]
        if not finite:
            return start
        qpos = torch.where(torch.stack(finite).all(dim=0)[:, None], start.qpos, torch.nan)
        return Start(qpos, start.qvel, start.fields, start.own)

    def control(self, state: State, action: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The inputs that an action sets, by field, zero where not finite; and whether a world's are, (N,) bool."""
        returned = self._task.control(state, action)
        self._require("control", returned, isinstance(returned, Tensor | dict), "a tensor, or a dict")
        inputs = inputs_of(returned)
        shapes = {name: getattr(values, "shape", None) for name, values in inputs.items()}
        if shapes != self._inputs:
            raise self._changed("control", inputs, {name: tuple(shape) for name, shape in self._inputs.items()})
        clean = {name: torch.where(torch.isfinite(values), values, 0.0) for name, values in inputs.items()}
        return clean, torch.stack([finite_worlds(values) for values in inputs.values()]).all(dim=0)

    def advance(self, state: State, action: Tensor) -> dict[str, Tensor]:
        """The own tensors to renew after a step, by name; copies, since they may be views of the state."""
        renewed = self._task.advance(state, action, self._generator)
        self._require("advance", renewed, isinstance(renewed, dict), "a dict")
        self._require_same("advance", renewed, {name: form for name, form in self._own.items() if name in renewed})
        return {name: values.clone() for name, values in renewed.items()}

    def _require(self, function: str, returned: Any, holds: bool, expected: str) -> None:
        """Raise SaltusError unless the type of a result holds."""
        if not holds:
            name = f"{type(self._task).__name__}.{function}"
            raise SaltusError(
                f"{name} returned {describe(returned)}; expected {expected}, as when the environment was made"
            )

    def _same_form(self, function: str, value: Tensor) -> Tensor:
        shape, is_bool = self._shapes[function]
        if not isinstance(value, Tensor) or value.shape != shape or (value.dtype == torch.bool) != is_bool:
            raise SaltusError(
                f"{type(self._task).__name__}.{function} returned {describe(value)}; expected a "
                f"{'bool' if is_bool else 'floating-point'} tensor of shape {tuple(shape)}, as when the environment "
                "was made"
            )
        return value

    def _require_same(self, function: str, values: Mapping[str, Tensor], forms: Mapping[str, Any]) -> None:
        if _forms(values) != forms:
            raise self._changed(
                function, values, {name: (tuple(shape), dtype) for name, (shape, dtype) in forms.items()}
            )

    def _changed(self, function: str, values: Mapping[str, Any], expected: Mapping[str, Any]) -> SaltusError:
        found = ", ".join(f"{name}: {describe(value)}" for name, value in values.items())
        return SaltusError(
            f"{type(self._task).__name__}.{function} returned {{{found}}}; expected {dict(expected)}, as when the "
            "environment was made"
        )


def _forms(values: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: (getattr(value, "shape", None), getattr(value, "dtype", None)) for name, value in values.items()}

"""Episodes: the control step of N worlds, in which those whose episode ends begin another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from envs.action_space import ActionSpace
from envs.failures import finite_worlds, truncate_failed
from envs.masked import where_worlds
from envs.physics import Physics
from envs.state import State
from envs.statistics import REWARD_TERM, EpisodeStatistics
from envs.task import Task
from envs.task_functions import Start, TaskFunctions, TaskShapes
from saltus.device import copy_tensors


class Episodes:
    """Episodes of N worlds of one task, on the device of the physics.

    All tensors are allocated once and written in place, as CUDA graphs require.

    Args:
        task, physics: the task, and the engine that simulates it.
        shapes: the forms of the task's results.
        make_state: makes a State of fields and own tensors by name.
        actions: scales actions to controls.
        generator: the source of all randomness.
        can_sync: whether to read values on the host, to skip needless work and to replace an initial state that fails.
            A world whose default state fails too, or any that fails on a GPU, is observed as zeros, and fails in its
            next step.

    Attributes:
        state: the worlds' current fields and own tensors.
        observation: all groups of the current observation side by side, (N, obs_dim + privileged_dim) float32.
        statistics: totals over all worlds.
        tensors: the tensors by name, at any depth: with the engine and the generator, all that a step depends on.
    """

    def __init__(
        self,
        task: Task,
        physics: Physics,
        shapes: TaskShapes,
        make_state: Callable[[Mapping[str, Tensor]], State],
        actions: ActionSpace,
        generator: torch.Generator,
        *,
        can_sync: bool,
    ):
        self._task, self._physics, self._make_state, self._actions = task, physics, make_state, actions
        self._generator, self._can_sync = generator, can_sync
        self._functions = TaskFunctions(task, physics, shapes, generator)
        self._checked_own = shapes.start.own
        where, worlds = physics.device, physics.num_worlds
        self._fields = physics.read()
        self._own = {name: value.clone() for name, value in shapes.start.own.items()}
        self.state = make_state({**self._fields, **self._own})
        self.observation = torch.zeros(worlds, sum(shapes.observation.values()), device=where)
        self._elapsed = torch.zeros(worlds, dtype=torch.int64, device=where)
        self._return = torch.zeros(worlds, dtype=torch.float64, device=where)
        self._failed_starts = torch.zeros(worlds, dtype=torch.bool, device=where)
        self.statistics = EpisodeStatistics(type(task).__name__, where, shapes.reward_terms, physics)
        if task.model_variants:  # the engine's state holds them from here on
            physics.set_models(torch.zeros_like(self._failed_starts), self._elapsed)
        own: dict[str, Any] = {"own": self._own} if self._own else {}
        self.tensors: dict[str, Any] = {
            "observation": self.observation,
            "fields": self._fields,
            "elapsed": self._elapsed,
            "return": self._return,
            "failed_starts": self._failed_starts,
            "totals": self.statistics.totals,
            **own,
        }

    def step(self, action: Tensor) -> dict[str, Tensor]:
        """Take a step with actions, (N, action_dim) float32.

        Returns:
            New tensors: the parts of the transition; ``failed``; ``next_obs``, the observation to act on next; and the
            reward's terms, by their names among the totals.
        """
        task, physics, functions = self._task, self._physics, self._functions
        usable = finite_worlds(action)
        action = torch.where(usable[:, None], action, 0.0)
        control = self._actions.to_control(action)
        if functions.controls:
            inputs, finite_inputs = functions.control(self.state, control)
            usable = usable & finite_inputs
            physics.step(None, task.frame_skip, inputs)
        else:
            physics.step(control, task.frame_skip)
        after, renewed = self._state_after(control)
        reward, terms = functions.reward(self.state, control, after)
        successor = functions.observation(after)
        diverged = physics.unstable()

        observation = self.observation.clone()
        self._elapsed += 1
        failed, successor, reward, terminated, truncated = truncate_failed(
            diverged | ~usable | self._failed_starts,
            observation,
            successor,
            reward,
            functions.terminated(after),
            self._elapsed >= task.max_episode_steps,
        )
        self._return += reward
        done = terminated | truncated
        self.statistics.add_step(reward, self._return, self._elapsed, done, failed, terms)
        counted = self._failed_starts  # at the reset
        self.statistics.add_failures(diverged & ~counted, failed & ~counted, physics.overflowed())
        terms = {f"{REWARD_TERM}{name}": term.clone() for name, term in terms.items()}  # may be views of the state

        self.observation.copy_(successor)
        for name, values in renewed.items():
            self._own[name].copy_(values)
        if self._can_sync and not done.any():
            copy_tensors(after.values(), self._fields)
        else:
            self.begin(done)
        return {
            "observation": observation,
            "action": action,
            "next_observation": successor,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "failed": failed,
            "next_obs": self.observation.clone(),
            **terms,
        }

    def _state_after(self, control: Tensor) -> tuple[State, dict[str, Tensor]]:
        """The state after a physics step, and the own tensors that the task renewed for it."""
        values = {**self._physics.read(), **self._own}
        renewed = self._functions.advance(self._make_state(values), control) if self._functions.advances else {}
        return self._make_state({**values, **renewed}), renewed

    def begin(self, mask: Tensor) -> None:
        """Begin an episode in the worlds of `mask`, (N,) bool."""
        start = self._functions.reset()
        for name, own in self._own.items():
            own.copy_(where_worlds(mask, start.own[name], own))
        if self._task.model_variants:
            self._draw_models(mask)
        first, failed = self._place(mask, start)
        if self._can_sync and failed.any():  # on a GPU a second reset would slow down every step
            first, failed = self._place_at_default(failed)
        for one in (self._elapsed, self._return, self._failed_starts):
            one.masked_fill_(mask, 0)
        self._failed_starts |= failed
        self.observation.copy_(torch.where(mask[:, None], first, self.observation))

    def _draw_models(self, mask: Tensor) -> None:
        """Draw one of the task's models for each world of `mask`, (N,) bool."""
        rows = torch.empty_like(self._elapsed).random_(self._task.model_variants, generator=self._generator)
        self._physics.set_models(mask, rows)

    def _place(self, mask: Tensor, start: Start, count: bool = True) -> tuple[Tensor, Tensor]:
        """Reset the physics of the worlds of `mask`, (N,) bool, and count those that fail, if so asked.

        Returns:
            The observation of every world, all groups, which is zero in worlds that fail; and these, (N,) bool.
        """
        physics = self._physics
        physics.reset(mask, start.qpos, start.qvel, start.fields)
        physics.read(out=self._fields)
        observation = self._functions.observation(self.state)
        diverged = mask & physics.unstable()
        failed = diverged | (mask & ~finite_worlds(observation))
        if count:
            self.statistics.add_failures(diverged, failed, mask & physics.overflowed())
        return torch.where(failed[:, None], 0.0, observation), failed

    def _place_at_default(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Begin the episodes of the worlds of `mask`, whose starts failed, at the default state; return as `_place`."""
        for name, own in self._own.items():
            own[mask] = self._checked_own[name][mask]
        return self._place(mask, Start(*Task.reset(self._task, len(mask), self._generator)), count=False)

    def restart(self, mask: Tensor) -> None:
        """Begin an episode in the worlds of `mask`, (N,) bool; the fields of the others stay."""
        before = {name: values.clone() for name, values in self._fields.items()}
        self.begin(mask)
        for name, values in self._fields.items():  # after `set_state` the engine's may be those of another state
            values.copy_(where_worlds(mask, values, before[name]))

    def move(self, qpos: Tensor, qvel: Tensor) -> None:
        """Move every world to a state, (N, nq) and (N, nv), within its episode."""
        observation, failed = self._place(torch.ones_like(self._failed_starts), Start(qpos, qvel))
        self.observation.copy_(observation)
        self._failed_starts.copy_(failed)

"""BatchEnv: N worlds of one task. Action in, transition out; a world that ends is reset within the same step."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import mujoco
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from envs import transition as transitions
from envs.action_space import ActionSpace
from envs.drawn_fields import DrawnFields
from envs.finite import finite_worlds
from envs.masked import where_worlds
from envs.seeding import hash_seed, make_generator
from envs.simulation import Simulation
from envs.state import NameIndex, State
from envs.statistics import REWARD_TERM, EpisodeStatistics
from envs.task import Task
from envs.task_checks import check_functions
from envs.task_functions import Start, TaskFunctions, TaskShapes
from envs.validation import (
    action_bounds,
    check_arguments,
    check_mask,
    check_placement,
    check_qpos_qvel,
    check_state,
    randomized_fields,
)
from envs.whole_numbers import require_whole
from saltus.device import copy_tensors, one_torch_thread, resolve_device, to_device
from saltus.device.cuda_graph import CapturedFunction
from saltus.errors import SaltusError


class BatchEnv:
    """N worlds of one task, stepped together.

    ``obs = env.reset()`` starts an episode in every world. ``transition, obs = env.step(action)`` takes one control
    step in every world. The transition (see `envs.transition`) holds the true successors; ``obs`` is the observation to
    act on next, which is the first of a new episode in worlds whose episode ended.

    A failed world (diverged physics, or a non-finite action, observation or reward) is truncated, with reward 0 and an
    unchanged observation, then counted and reset.

    All state is allocated once and written in place, as CUDA graphs require. Returned tensors are never overwritten.

    Args:
        task: the task; bound to its model here.
        num_envs: number of worlds.
        device: where actions come from and transitions go.
        seed: seeds the initial states of all episodes of all worlds.
        normalized_actions: True: actions lie in [-1, 1] and are scaled to `control_low` and `control_high`. False: they
            are given in these units, as in Gymnasium. Transitions hold actions as `step` received them.
        simulation: engine, threads, solver and memory.
        execution: how a step runs. ``"host"``: branches on values. ``"device"``: reads no value on the host.
            ``"captured"``: like device, as a CUDA graph. ``"auto"``: captured if the physics is on CUDA, else host.
        check_task: try the task's functions for mistakes (see docs/task-api.md). False: check only the forms of their
            results, for a task that was checked before.

    Attributes:
        num_envs, observation_dim, action_dim: sizes.
        privileged_dim: width of the group "critic" of `Task.observation`; 0 without one.
        action_low, action_high: (action_dim,) float32 bounds of the actions that `step` takes. MuJoCo clamps controls
            to their range, so an action beyond its bound acts like the bound, unless the task defines `control`.
        control_low, control_high: (action_dim,) float32 bounds in the task's units: `Task.action_low` and
            `Task.action_high`, or the control ranges of the actuators.
        failed: (N,) bool, the worlds that failed in the last step.
        reward_terms: the terms of the last step's reward by name, (N,) each, in the engine's precision.
        resumes_exactly: True: `set_state` continues within episodes (see `envs.environment.Environment`).

    Raises:
        SaltusError: an impossible argument, a model that does not compile or that the engine cannot simulate, an
            actuator without a control range, or a task function that returns a wrong shape, dtype or device.
        MemoryError: more worlds than the GPU's memory holds.
    """

    action_choices: tuple[int, ...] = ()
    resumes_exactly = True

    def __init__(
        self,
        task: Task,
        num_envs: int,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        normalized_actions: bool = True,
        simulation: Simulation | None = None,
        execution: Literal["auto", "host", "device", "captured"] = "auto",
        check_task: bool = True,
    ):
        check_arguments(task, num_envs, seed, simulation, execution)
        self.task, self.num_envs, self.device = task, num_envs, resolve_device(device)
        self.normalized_actions = normalized_actions
        simulation = (simulation or Simulation()).resolve(self.device, num_envs)
        model = simulation.load_model(task)
        self.control_low, self.control_high = action_bounds(task, model, self.device)
        where, dtype = simulation.placement(self.device)
        task.bind(model, dtype, where)
        self._generator = make_generator(seed, where)
        on_cpu = self._generator if where.type == "cpu" else make_generator(seed)
        model_fields = randomized_fields(task, task.model_variants or num_envs, on_cpu)
        self.physics = simulation.make_physics(task, num_envs, model_fields, self.device)
        names, drawn = NameIndex(model, task.fields), DrawnFields(model_fields, self.physics.models, dtype)
        self._make_state = partial(State, names=names, drawn=drawn)
        bounds = self.control_low, self.control_high
        shapes = check_functions(task, self.physics, names, drawn, *bounds, forms_only=not check_task)
        self.action_dim, self.observation_dim = len(self.control_low), shapes.observation["policy"]
        self.privileged_dim = shapes.observation.get("critic", 0)
        self._actions = ActionSpace(self.control_low, self.control_high, normalized_actions, where)
        self.action_low, self.action_high = self._actions.low, self._actions.high
        self._functions = TaskFunctions(task, self.physics, shapes, self._generator)
        self._allocate(shapes)
        if execution == "auto":
            execution = "captured" if where.type == "cuda" else "host"
        self._can_sync = execution == "host"
        self._graph: CapturedFunction | None = None
        if execution == "captured":
            self._graph = CapturedFunction(self._step, f"a step of {type(task).__name__}", where, self._generator)

    def _allocate(self, shapes: TaskShapes) -> None:
        """Allocate the state that steps update in place, besides the engine's own."""
        where, worlds = self.physics.device, self.num_envs
        self._started = False
        self._fields = self.physics.read()
        self._checked_own = shapes.start.own
        self._own = {name: value.clone() for name, value in shapes.start.own.items()}
        self._state = self._make_state({**self._fields, **self._own})
        # All groups of the observation, side by side.
        self._observation = torch.zeros(worlds, self.observation_dim + self.privileged_dim, device=where)
        self._elapsed = torch.zeros(worlds, dtype=torch.int64, device=where)
        self._return = torch.zeros(worlds, dtype=torch.float64, device=where)
        self._failed_starts = torch.zeros(worlds, dtype=torch.bool, device=where)
        self._statistics = EpisodeStatistics(self.name, where, shapes.reward_terms, self.physics)
        if self.task.model_variants:  # the state holds them from here on
            self.physics.set_models(torch.zeros_like(self._failed_starts), self._elapsed)
        episodes = {"elapsed": self._elapsed, "return": self._return, "failed_starts": self._failed_starts}
        own: dict[str, Any] = {"own": self._own} if self._own else {}
        state = {"observation": self._observation, "fields": self._fields}
        self._persistent = {**state, **episodes, "totals": self._statistics.totals, **own}
        self.failed = torch.zeros(worlds, dtype=torch.bool, device=self.device)
        self.reward_terms: dict[str, Tensor] = {}

    @property
    def name(self) -> str:
        """The name of the task's class."""
        return type(self.task).__name__

    @property
    def simulation_device(self) -> torch.device:
        """The device of the physics."""
        return self.physics.device

    @property
    def dt(self) -> float:
        """Seconds per control step."""
        return self.task.dt

    @property
    def max_episode_steps(self) -> int:
        """Control steps after which an episode is truncated."""
        return self.task.max_episode_steps

    @property
    def model(self) -> mujoco.MjModel:
        """The task's compiled model."""
        return self.task.model

    @property
    def state(self) -> State:
        """The worlds' current fields and own tensors. The next step overwrites them: clone them to keep them."""
        return self._state

    @property
    def privileged(self) -> Tensor:
        """The group "critic" of the current observation, (N, privileged_dim) float32 on `device`; a copy."""
        return to_device(self._observation[:, self.observation_dim :].clone(), self.device)

    @property
    def captured(self) -> bool:
        """Whether steps replay a CUDA graph."""
        return self._graph is not None and self._graph.captured

    @one_torch_thread()
    @torch.no_grad()
    def reset(self, mask: Tensor | None = None) -> Tensor:
        """Start a new episode in every world, or in those of `mask`, (N,) bool; episodes cut short are not counted.

        Returns:
            The observation of every world to act on next, (N, obs_dim) float32.

        Raises:
            SaltusError: a mask of another type, shape or dtype.
            RuntimeError: a mask before the first `reset`.
        """
        if mask is None:
            mask = torch.ones(self.num_envs, dtype=torch.bool, device=self.physics.device)
        else:
            self._require_started("reset(mask)")
            check_mask(mask, self.num_envs)
        mask = mask.to(self.physics.device)
        before = {name: values.clone() for name, values in self._fields.items()}
        self._begin_episodes(mask)
        for name, values in self._fields.items():  # after `set_state` the engine's may be those of another state
            values.copy_(where_worlds(mask, values, before[name]))
        self._started = True
        return to_device(self._policy_group(self._observation.clone()), self.device)

    def seed(self, seed: int) -> None:
        """Seed the initial states, and models, of all episodes from the next `reset` on; results of `randomize` stay.

        Raises:
            SaltusError: not a whole number, or a negative one.
        """
        require_whole("seed", seed, at_least=0)
        self._generator.manual_seed(hash_seed(seed))

    @one_torch_thread()
    @torch.no_grad()
    def step(self, action: Tensor) -> tuple[TensorDict, Tensor]:
        """Take one control step in every world.

        Args:
            action: (N, action_dim) float32, on `device` or on the physics' device.

        Returns:
            The transition, of batch size [N], and the observation to act on next, (N, obs_dim) float32.

        Raises:
            SaltusError: an action of a wrong type, shape or dtype, or a non-finite one. On CUDA, non-finite actions are
                masked and counted instead, because reading a value synchronises. A task function whose result has
                another shape than at construction.
            RuntimeError: before the first `reset`.
        """
        self._require_started("step")
        self._actions.check(action, self.num_envs, read_values=self._can_sync)
        action = action.detach().to(self.physics.device)
        if self._graph is None:
            result = self._step(action)
        else:  # the next replay overwrites the graph's outputs
            result = {name: value.clone() for name, value in self._graph(action).items()}
        self.failed = to_device(result.pop("failed"), self.device)
        next_obs = to_device(self._policy_group(result.pop("next_obs")), self.device)
        terms = [name for name in result if name.startswith(REWARD_TERM)]
        self.reward_terms = {name.removeprefix(REWARD_TERM): result.pop(name) for name in terms}
        transition = transitions.make(**result)
        if self.privileged_dim:
            transitions.split_privileged(transition, self.observation_dim)
        if self.device != self.physics.device:
            transition = transition.apply(lambda value: to_device(value, self.device), device=self.device)
        return transition, next_obs

    def _policy_group(self, observation: Tensor) -> Tensor:
        """The group "policy" of observations whose groups are side by side."""
        return observation[:, : self.observation_dim].contiguous() if self.privileged_dim else observation

    def _step(self, action: Tensor) -> dict[str, Tensor]:
        """Take a step; return the parts of its transition, ``failed``, ``next_obs`` and the reward's terms."""
        task, physics, functions = self.task, self.physics, self._functions
        usable = finite_worlds(action)
        action = torch.where(usable[:, None], action, 0.0)
        control = self._actions.to_control(action)
        if functions.controls:
            inputs, finite_inputs = functions.control(self._state, control)
            usable = usable & finite_inputs
            physics.step(None, task.frame_skip, inputs)
        else:
            physics.step(control, task.frame_skip)
        after, renewed = self._advance(physics.read(), control)

        reward, terms = functions.reward(self._state, control, after)
        next_observation = functions.observation(after)
        diverged = physics.unstable()
        finite = usable & finite_worlds(next_observation) & torch.isfinite(reward)
        failed = diverged | ~finite | self._failed_starts
        observation = self._observation.clone()
        next_observation = torch.where(failed[:, None], observation, next_observation)
        reward = torch.where(failed, 0.0, reward)
        self._elapsed += 1
        self._return += reward
        terminated = functions.terminated(after) & ~failed
        truncated = (self._elapsed >= task.max_episode_steps) | failed
        done = terminated | truncated
        self._statistics.add_step(reward, self._return, self._elapsed, done, failed, terms)
        counted = self._failed_starts  # at the reset
        self._statistics.add_failures(diverged & ~counted, failed & ~counted, physics.overflowed())
        terms = {f"{REWARD_TERM}{name}": term.clone() for name, term in terms.items()}  # may be views of the state

        self._observation.copy_(next_observation)
        for name, values in renewed.items():
            self._own[name].copy_(values)
        if self._can_sync and not done.any():
            copy_tensors(after.values(), self._fields)
        else:
            self._begin_episodes(done)
        return {
            "observation": observation,
            "action": action,
            "next_observation": next_observation,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "failed": failed,
            "next_obs": self._observation.clone(),
            **terms,
        }

    def _advance(self, fields: dict[str, Tensor], control: Tensor) -> tuple[State, dict[str, Tensor]]:
        """The state after a step that left `fields`, and the own tensors that the task renewed for it."""
        values = {**fields, **self._own}
        renewed = self._functions.advance(self._make_state(values), control) if self._functions.advances else {}
        return self._make_state({**values, **renewed}), renewed

    def _begin_episodes(self, mask: Tensor) -> None:
        """Begin an episode in the worlds of `mask`, (N,) bool. An initial state that fails is counted and replaced."""
        start = self._functions.reset()
        for name, own in self._own.items():
            own.copy_(where_worlds(mask, start.own[name], own))
        if self.task.model_variants:
            self._draw_models(mask)
        first = self._place(mask, start)
        diverged = mask & self.physics.unstable()
        failed = diverged | (mask & ~finite_worlds(first))
        self._statistics.add_failures(diverged, failed, mask & self.physics.overflowed())
        for one in (self._elapsed, self._return, self._failed_starts):
            one.masked_fill_(mask, 0)
        if not self._can_sync:
            # A second reset would slow down every step. Instead the world fails at its next step and restarts then.
            self._failed_starts |= failed
            first = torch.where(failed[:, None], 0.0, first)
        elif failed.any():
            for name, own in self._own.items():
                own[failed] = self._checked_own[name][failed]
            first = self._place(failed, Start(*Task.reset(self.task, self.num_envs, self._generator)))
            if not torch.isfinite(first[failed]).all():
                raise SaltusError(f"{type(self.task).__name__}.observation is not finite at the default initial state")
        self._observation.copy_(torch.where(mask[:, None], first, self._observation))

    def _draw_models(self, mask: Tensor) -> None:
        """Draw one of the task's models for each world of `mask`, (N,) bool."""
        rows = torch.empty_like(self._elapsed).random_(self.task.model_variants, generator=self._generator)
        self.physics.set_models(mask, rows)

    def _place(self, mask: Tensor, start: Start) -> Tensor:
        """Reset the physics of the worlds of `mask`; return the observation of every world, all groups."""
        check_qpos_qvel(f"{type(self.task).__name__}.reset", self.physics, start.qpos, start.qvel)
        self.physics.reset(mask, start.qpos, start.qvel, start.fields)
        self.physics.read(out=self._fields)
        return self._functions.observation(self._state)

    def statistics(self) -> dict[str, float]:
        """Totals over all worlds since the environment was made.

        ``steps`` and ``reward``; ``episodes`` that ended, with the sums of their ``episode_return`` and
        ``episode_length``; world-steps that failed: ``unstable`` (physics diverged), ``nonfinite`` (action, observation
        or reward was not finite), ``overflowed`` (contacts or constraints were dropped), including initial states;
        ``reward_terms/<name>``. Differences between two calls, divided by those of steps or episodes, are means.
        """
        return self._statistics.read()

    def get_state(self) -> TensorDict:
        """Everything needed to continue bit for bit, in the middle of episodes; includes the random generator."""
        self._require_started("get_state")
        return TensorDict(self._all_state()).clone()

    def set_state(self, state: TensorDictBase | Mapping[str, Any]) -> None:
        """Continue from a state that `get_state` returned, in an environment made with the same arguments.

        Raises:
            SaltusError: the state of another number of worlds, task or engine, or entries of other types.
        """
        check_state(state, self._all_state())
        copy_tensors({"failed_starts": torch.zeros_like(self._failed_starts), **state}, self._persistent)
        self.physics.set_state(state["physics"])
        self._generator.set_state(state["generator"].cpu().clone())
        self._started = True

    def _all_state(self) -> dict[str, Any]:
        return {**self._persistent, "physics": self.physics.get_state(), "generator": self._generator.get_state()}

    @one_torch_thread()
    @torch.no_grad()
    def set_qpos_qvel(self, qpos: Tensor, qvel: Tensor) -> None:
        """Move every world to a state, (N, nq) and (N, nv), within its current episode.

        The rest of the physics starts as in `Task.data0`; the task's own tensors stay.

        Raises:
            SaltusError: a wrong type or shape, a quaternion of zero, or a value that MuJoCo takes for diverged: not
                finite, or beyond 1e10.
            RuntimeError: before the first `reset`.
        """
        self._require_started("set_qpos_qvel")
        check_placement(self.physics, qpos, qvel)
        qpos, qvel = (one.to(self.physics.device, self.physics.dtype) for one in (qpos, qvel))
        everywhere = torch.ones(self.num_envs, dtype=torch.bool, device=self.physics.device)
        self._observation.copy_(self._place(everywhere, Start(qpos, qvel)))
        self._failed_starts.zero_()

    def _require_started(self, method: str) -> None:
        if not self._started:
            raise RuntimeError(f"call reset() before {method}()")

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
from envs.episodes import Episodes
from envs.seeding import hash_seed, make_generator
from envs.simulation import Simulation
from envs.state import NameIndex, State
from envs.statistics import REWARD_TERM
from envs.task import Task
from envs.task_checks import check_functions
from envs.validation import (
    action_bounds,
    check_arguments,
    check_mask,
    check_placement,
    check_state,
    randomized_fields,
)
from envs.whole_numbers import require_whole
from saltus.device import copy_tensors, one_torch_thread, resolve_device, to_device
from saltus.device.cuda_graph import CapturedFunction


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
        reward_terms: the terms of the last step's reward by name, (N,) each, in the engine's precision and on its
            device.
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
        bounds = self.control_low, self.control_high
        shapes = check_functions(task, self.physics, names, drawn, *bounds, forms_only=not check_task)
        self.action_dim, self.observation_dim = len(self.control_low), shapes.observation["policy"]
        self.privileged_dim = shapes.observation.get("critic", 0)
        self._actions = ActionSpace(self.control_low, self.control_high, normalized_actions, where)
        self.action_low, self.action_high = self._actions.low, self._actions.high
        if execution == "auto":
            execution = "captured" if where.type == "cuda" else "host"
        self._can_sync = execution == "host"
        make_state = partial(State, names=names, drawn=drawn)
        self._episodes = Episodes(
            task, self.physics, shapes, make_state, self._actions, self._generator, can_sync=self._can_sync
        )
        self._graph: CapturedFunction | None = None
        if execution == "captured":
            self._graph = CapturedFunction(self._episodes.step, f"a step of {self.name}", where, self._generator)
        self._started = False
        self.failed = torch.zeros(num_envs, dtype=torch.bool, device=self.device)
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
        return self._episodes.state

    @property
    def privileged(self) -> Tensor:
        """The group "critic" of the current observation, (N, privileged_dim) float32 on `device`; a copy."""
        return to_device(self._episodes.observation[:, self.observation_dim :].clone(), self.device)

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
        self._episodes.restart(mask.to(self.physics.device))
        self._started = True
        return to_device(self._policy_group(self._episodes.observation.clone()), self.device)

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
        self._require_started("step()")
        self._actions.check(action, self.num_envs, read_values=self._can_sync)
        action = action.detach().to(self.physics.device)
        if self._graph is None:
            result = self._episodes.step(action)
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

    def statistics(self) -> dict[str, float]:
        """Totals over all worlds since the environment was made.

        ``steps`` and ``reward``; ``episodes`` that ended, with the sums of their ``episode_return`` and
        ``episode_length``; world-steps that failed: ``unstable`` (physics diverged), ``nonfinite`` (action, observation
        or reward was not finite), ``overflowed`` (contacts or constraints were dropped), including initial states;
        ``reward_terms/<name>``. Differences between two calls, divided by those of steps or episodes, are means.
        """
        return self._episodes.statistics.read()

    def get_state(self) -> TensorDict:
        """Everything needed to continue bit for bit, in the middle of episodes; includes the random generator."""
        self._require_started("get_state()")
        return TensorDict(self._all_state()).clone()

    def set_state(self, state: TensorDictBase | Mapping[str, Any]) -> None:
        """Continue from a state that `get_state` returned, in an environment made with the same arguments.

        Raises:
            SaltusError: the state of another number of worlds, task or engine, or entries of other types.
        """
        check_state(state, self._all_state())
        tensors = self._episodes.tensors
        copy_tensors({"failed_starts": torch.zeros_like(tensors["failed_starts"]), **state}, tensors)
        self.physics.set_state(state["physics"])
        self._generator.set_state(state["generator"].cpu().clone())
        self._started = True

    def _all_state(self) -> dict[str, Any]:
        return {**self._episodes.tensors, "physics": self.physics.get_state(), "generator": self._generator.get_state()}

    @one_torch_thread()
    @torch.no_grad()
    def set_qpos_qvel(self, qpos: Tensor, qvel: Tensor) -> None:
        """Move every world to a state, (N, nq) and (N, nv), within its current episode.

        The rest of the physics starts as in `Task.data0`; the task's own tensors stay. A world whose physics or
        observation fails there fails in its next step.

        Raises:
            SaltusError: a wrong type or shape, a quaternion of zero, or a value that MuJoCo takes for diverged: not
                finite, or beyond 1e10.
            RuntimeError: before the first `reset`.
        """
        self._require_started("set_qpos_qvel()")
        check_placement(self.physics, qpos, qvel)
        qpos, qvel = (one.to(self.physics.device, self.physics.dtype) for one in (qpos, qvel))
        self._episodes.move(qpos, qvel)

    def _require_started(self, call: str) -> None:
        if not self._started:
            raise RuntimeError(f"call reset() before {call}")

"""BatchEnv: N worlds of one task. Action in, transition out; a world that ends is reset within the same step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import mujoco
import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from envs import transition as transitions
from envs.cuda_graph import CudaGraph, to_floats
from envs.physics import Physics
from envs.physics.cpu import CpuPhysics
from envs.physics.warp import WarpPhysics, missing_packages
from envs.task import Names, State, Task, load_model

_TERM = "reward_terms/"
_TOTALS = (
    "steps", "reward", "episodes", "episode_return", "episode_length", "unstable", "nonfinite", "overflowed",
)  # fmt: skip


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Keep torch to one thread: its others would spin, waiting for work, on the cores that the physics needs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class BatchEnv:
    """N worlds of one task, stepped together.

    ``obs = env.reset()`` starts an episode in every world; ``transition, obs = env.step(action)`` takes one control
    step in every world. The transition (see `envs.transition`) has the true successor of every world; the
    observation beside it is the one to act on next: that of the new episode where the old one ended.

    A world whose physics diverges, or whose observation or reward is not finite, ends its episode: it is counted,
    reset, and its transition says "nothing happened, and the episode was cut" (the successor is the observation
    itself, the reward 0, ``truncated``), the one thing that is neither a reward nor a penalty for breaking the
    simulator.

    Attributes:
        num_envs, observation_dim, action_dim: sizes.
        action_low, action_high: (action_dim,) float32 bounds of the actuators' controls, in the model's units.
            Actions beyond them are applied as MuJoCo applies them: clamped.
        failed: (N,) bool, where the last step ended an episode because physics, observation or reward failed.
        reward_terms: the terms of the last step's reward by name, (N,) each, in the engine's precision.

    Args:
        task: the task; bound to its model here.
        num_envs: how many worlds.
        device: where actions come from and transitions go.
        seed: seeds the first states of all episodes of all worlds.
        physics: ``"cpu"`` (`mujoco.batch`, float64, the reference), ``"warp"`` (`mujoco_warp`, float32, on `device`),
            or None: warp where `device` is CUDA and Warp is installed.
        num_threads: threads for the physics on the CPU; 0 takes every core.
        solver: ``"model"``, what the model asks for, or ``"newton"``.
        max_contacts, max_constraints: what Warp has memory for in each world (see `WarpPhysics`); 0: as a rollout
            suggests. On the CPU the model itself says (``<size memory=.../>``).
        announce: told what memory physics takes on a GPU, before it is taken.

    Raises:
        ValueError: an impossible argument, a model that does not compile or that the engine cannot simulate, an
            actuator without bounds, or a task function whose result has a wrong shape, dtype or device.
        MemoryError: more worlds than fit into the GPU's memory.
    """

    def __init__(
        self,
        task: Task,
        num_envs: int,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        physics: Literal["cpu", "warp"] | None = None,
        num_threads: int = 0,
        solver: Literal["model", "newton"] = "model",
        max_contacts: int = 0,
        max_constraints: int = 0,
        announce: Callable[[str], None] = lambda _: None,
    ):
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; at least 1 world is needed")
        if seed < 0:
            raise ValueError(f"seed is {seed}; it must be 0 or more")
        if num_threads < 0:
            raise ValueError(f"num_threads is {num_threads}; give a number of threads, or 0 for every core")
        for name, count in (("max_contacts", max_contacts), ("max_constraints", max_constraints)):
            if count < 0:
                raise ValueError(f"{name} is {count}; give a number for each world, or 0 for what a rollout suggests")
        if physics not in ("cpu", "warp", None):
            raise ValueError(f"physics is {physics!r}; there are cpu, warp, and None for what suits the device")
        if solver not in ("model", "newton"):
            raise ValueError(f"solver is {solver!r}; there are model (what the model asks for) and newton")
        for name in ("frame_skip", "max_episode_steps"):
            if getattr(task, name) < 1:
                raise ValueError(f"{name} of task {type(task).__name__} is {getattr(task, name)}; at least 1 is needed")
        self.task, self.num_envs, self.device = task, num_envs, torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device {self.device} was asked for and torch sees no CUDA device: take device cpu")
        self.device = torch.empty(0, device=self.device).device  # cuda by its number, as tensors name it
        on_gpu = (physics or _suited_physics(self.device)) == "warp"
        where = self.device if on_gpu else torch.device("cpu")
        model = load_model(task)
        self.action_low, self.action_high = _action_bounds(model, type(task).__name__, self.device)
        if solver == "newton":
            model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
        if (max_contacts or max_constraints) and not on_gpu:
            raise ValueError(
                "max_contacts and max_constraints go with physics warp; on the CPU the model says how much memory "
                'contacts and constraints may take: <size memory="..."/>'
            )
        task.bind(model, (WarpPhysics if on_gpu else CpuPhysics).dtype, where)
        # torch's CPU generator takes the low 32 bits of its seed: hashed, seeds alike in those differ, too.
        hashed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self._generator = torch.Generator(where).manual_seed(hashed)
        model_fields = _randomized(task, num_envs, self._generator)
        self.physics: Physics
        if on_gpu:
            sizes = max_contacts, max_constraints
            self.physics = WarpPhysics(model, num_envs, task.fields, task.fresh, model_fields, where, *sizes, announce)
        else:
            self.physics = CpuPhysics(model, num_envs, task.fields, task.fresh, model_fields, num_threads)
        # Looking at a value makes the host wait for the GPU: there nothing is skipped, and bad actions are counted.
        self._may_look = where.type == "cpu"
        self._names = Names(model, task.fields)
        self.action_dim = model.nu
        self.observation_dim, terms = _check_functions(task, self.physics, self._names, num_envs, model.nu)
        self._state: State | None = None
        self._observation = torch.empty(0)
        self._elapsed = self._per_world(torch.int64)
        self._return = self._per_world(torch.float64)
        zero = torch.zeros((), dtype=torch.float64, device=where)
        self._totals = {name: zero.clone() for name in (*_TOTALS, *(f"{_TERM}{term}" for term in terms))}
        self._told: set[str] = set()
        self.failed = torch.zeros(num_envs, dtype=torch.bool, device=self.device)
        self.reward_terms: dict[str, Tensor] = {}
        self._graph: CudaGraph | None = None
        if where.type == "cuda":
            self._graph = CudaGraph(self._advance_in_place, f"a step of {type(task).__name__}", where, self._generator)

    @_one_torch_thread()
    def reset(self) -> Tensor:
        """Start a new episode in every world; return its first observation, (N, obs_dim) float32."""
        everywhere = torch.ones(self.num_envs, dtype=torch.bool, device=self.physics.device)
        with self._in_place():
            self._state, self._observation = self._start(everywhere)
            self._elapsed = torch.zeros_like(self._elapsed)
            self._return = torch.zeros_like(self._return)
        return self._sent(self._observation.clone())

    @_one_torch_thread()
    def step(self, action: Tensor) -> tuple[TensorDict, Tensor]:
        """One control step of every world.

        Args:
            action: (N, action_dim) float32, in the model's units; on `device`, or where the physics runs.

        Returns:
            The transition, of batch size [N], and the observation to act on next, (N, obs_dim) float32.

        Raises:
            ValueError: an action of a wrong shape or dtype, or not finite.
            RuntimeError: before the first `reset`.
        """
        self._check(action)
        action = action.to(self.physics.device)
        if self._graph is None:
            result = self._advance(action)
        else:  # what a graph gives its next replay writes into
            result = {name: value.clone() for name, value in self._graph(action).items()}
        self.failed, following = self._sent(result.pop("failed")), self._sent(result.pop("following"))
        terms = [name for name in result if name.startswith(_TERM)]
        self.reward_terms = {name.removeprefix(_TERM): result.pop(name) for name in terms}
        transition = transitions.make(**result)
        if self.device != self.physics.device:
            transition = transition.apply(self._sent, device=self.device)
        return transition, following

    def _advance(self, action: Tensor) -> dict[str, Tensor]:
        """A step: the parts of its transition, ``failed``, ``following`` (the observations to go on from), terms."""
        assert self._state is not None
        before, observation = self._state, self._observation
        usable = torch.isfinite(action).all(dim=-1)
        ctrl = torch.where(usable[:, None], action, 0.0)
        self.physics.step(ctrl, self.task.frame_skip)
        after = State(self.physics.read(), self._names)

        reward, terms = _reward_and_terms(self.task.reward(before, ctrl, after))
        terms = {f"{_TERM}{name}": term.clone() for name, term in terms.items()}
        next_observation, reward32 = self.task.observation(after).float(), reward.float()
        diverged = self.physics.unstable()
        finite = usable & torch.isfinite(next_observation).all(dim=-1) & torch.isfinite(reward32)
        failed = diverged | ~finite
        next_observation = torch.where(failed[:, None], observation, next_observation)
        reward32 = torch.where(failed, 0.0, reward32)
        self._elapsed = self._elapsed + 1
        terminated = self.task.terminated(after) & ~failed
        truncated = (self._elapsed >= self.task.max_episode_steps) | failed
        done = terminated | truncated

        self._count(reward32, done, diverged, failed, terms)
        self._state, self._observation = self._reset_where(done, after, next_observation)
        return {
            "observation": observation,
            "action": ctrl,
            "next_observation": next_observation,
            "reward": reward32,
            "terminated": terminated,
            "truncated": truncated,
            "failed": failed,
            "following": self._observation.clone(),
            **terms,
        }

    def _advance_in_place(self, action: Tensor) -> dict[str, Tensor]:
        """`_advance`, with what it carries on where it was in memory."""
        with self._in_place():
            result = self._advance(action)
            return result | {"observation": result["observation"].clone()}  # which is written over on leaving

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """Leave where it was in memory what steps carry on: a CUDA graph reads and writes it there."""
        if self._graph is None or self._state is None:
            yield
            return
        fixed = self._carried()
        try:
            yield
            for part, values in self._carried().items():
                for name, value in values.items():
                    fixed[part][name].copy_(value)
        finally:
            self._carry(fixed)

    def _carried(self) -> dict[str, dict[str, Tensor]]:
        """What a step leaves to the next one, beside the physics' own state and the random generator."""
        assert self._state is not None
        worlds = {"observation": self._observation, "elapsed": self._elapsed, "return": self._return}
        return {"worlds": worlds, "fields": dict(self._state.values()), "totals": dict(self._totals)}

    def _carry(self, carried: Mapping[str, dict[str, Tensor]]) -> None:
        """Go on from what `_carried` gave."""
        worlds = carried["worlds"]
        self._observation, self._elapsed, self._return = worlds["observation"], worlds["elapsed"], worlds["return"]
        self._state, self._totals = State(carried["fields"], self._names), carried["totals"]

    def _sent(self, value: Tensor) -> Tensor:
        """What is where the physics is, on `device`. To a GPU it is sent from pinned memory, and not waited for."""
        if self.device == self.physics.device:
            return value
        return value.pin_memory().to(self.device, non_blocking=True)

    def _check(self, action: Tensor) -> None:
        if self._state is None:
            raise RuntimeError("call reset() before step()")
        if action.shape != (self.num_envs, self.action_dim) or action.dtype != torch.float32:
            raise ValueError(
                f"the action is {action.dtype} of shape {tuple(action.shape)}; "
                f"expected torch.float32 of shape {(self.num_envs, self.action_dim)}"
            )
        if self._may_look and not torch.isfinite(action).all():
            world = int((~torch.isfinite(action)).any(dim=-1).nonzero()[0])
            raise ValueError(f"the action of world {world} is not finite: {action[world].tolist()}")

    def _start(self, mask: Tensor) -> tuple[State, Tensor]:
        """Begin an episode where `mask`; return every world's state, and the observation of it.

        A start that the physics refuses, or whose observation is not finite, is counted and replaced by the model's
        own initial state.
        """
        state, first = self._place(mask, *self.task.reset(self.num_envs, self._generator))
        self._add("overflowed", mask & self.physics.overflowed())
        diverged = mask & self.physics.unstable()
        failed = diverged | (mask & ~torch.isfinite(first).all(dim=-1))
        if not self._may_look:
            self._add("unstable", diverged)
            self._add("nonfinite", failed & ~diverged)
            # To try again would cost every step another reset: the world fails at its next step, and starts anew then.
            return state, torch.where(failed[:, None], 0.0, first)
        if failed.any():
            self._add("unstable", diverged)
            self._add("nonfinite", failed & ~diverged)
            state, first = self._place(failed, *Task.reset(self.task, self.num_envs, self._generator))
            if not torch.isfinite(first[failed]).all():
                raise FloatingPointError(
                    f"{type(self.task).__name__}.observation is not finite in the model's own initial state"
                )
        return state, first

    def _place(self, mask: Tensor, qpos: Tensor, qvel: Tensor) -> tuple[State, Tensor]:
        self.physics.reset(mask, qpos, qvel)
        state = State(self.physics.read(), self._names)
        return state, self.task.observation(state).float()

    def _reset_where(self, done: Tensor, state: State, observation: Tensor) -> tuple[State, Tensor]:
        """The states and observations to go on from, with a new episode where `done`."""
        if self._may_look and not done.any():
            return state, observation.clone()  # the transition keeps the other one
        state, first = self._start(done)
        self._elapsed = torch.where(done, 0, self._elapsed)
        self._return = torch.where(done, 0.0, self._return)
        return state, torch.where(done[:, None], first, observation)

    def _count(
        self, reward: Tensor, done: Tensor, diverged: Tensor, failed: Tensor, terms: Mapping[str, Tensor]
    ) -> None:
        """Add the step to the running totals that `statistics` reports."""
        self._return = self._return + reward
        self._add("steps", torch.ones_like(done))
        self._add("reward", reward)
        self._add("episodes", done)
        self._add("episode_return", torch.where(done, self._return, 0.0))
        self._add("episode_length", torch.where(done, self._elapsed, 0))
        self._add("unstable", diverged)
        self._add("nonfinite", failed & ~diverged)
        self._add("overflowed", self.physics.overflowed())
        for name, term in terms.items():
            self._add(name, torch.where(failed | ~torch.isfinite(term), 0.0, term))

    def _add(self, name: str, values: Tensor) -> None:
        self._totals[name] = self._totals[name] + values.sum(dtype=torch.float64)

    def statistics(self) -> dict[str, float]:
        """Totals over all worlds since the environment was made.

        ``steps``, ``reward``; ``episodes`` that ended, and the sums of their ``episode_return`` and
        ``episode_length``; ``unstable`` (world-steps in which the physics diverged) and ``nonfinite`` (in which the
        physics was sound, but the task's observation or reward was not finite) and ``overflowed`` (in which contacts or
        constraints were dropped for lack of memory), which count first states, too; ``reward_terms/<name>``.
        Differences between two calls, divided by the difference of steps or episodes, are means over that time.
        """
        totals = to_floats(self._totals)
        self._tell(totals, "unstable", "physics diverged: a smaller timestep, or actions less extreme, may help")
        self._tell(totals, "nonfinite", "observation or reward was not finite: look at the task's own functions")
        if totals.get("overflowed") and "overflowed" not in self._told:  # to read the advice waits for the device
            self._tell(totals, "overflowed", f"contacts or constraints did not fit: {self.physics.overflow_advice}")
        return totals

    def _tell(self, totals: dict[str, float], name: str, what: str) -> None:
        if totals.get(name) and name not in self._told:
            self._told.add(name)
            warnings.warn(f"{type(self.task).__name__}: {int(totals[name])} world-steps whose {what}", stacklevel=3)

    def get_state(self) -> TensorDict:
        """All that is needed to continue bit for bit, in the middle of episodes, random generator included."""
        if self._state is None:
            raise RuntimeError("call reset() before get_state()")
        carried = self._carried()
        others = {"physics": self.physics.get_state(), "generator": self._generator.get_state()}
        return TensorDict({**carried.pop("worlds"), **carried, **others}).clone()

    def set_state(self, state: TensorDictBase | Mapping[str, Any]) -> None:
        """Continue from what `get_state` returned, in an environment made with the same arguments.

        Raises:
            ValueError: the state of another number of worlds or of another task.
        """
        fields, num_worlds = sorted(state["fields"].keys()), state["elapsed"].shape[0]
        if fields != sorted(self.task.fields) or num_worlds != self.num_envs:
            raise ValueError(
                f"this state is of {num_worlds} worlds with fields {fields}; the environment has "
                f"{self.num_envs} worlds with fields {sorted(self.task.fields)}"
            )
        self.physics.set_state(state["physics"])
        worlds = {name: state[name] for name in ("observation", "elapsed", "return")}
        totals = {name: torch.zeros_like(total) for name, total in self._totals.items()} | dict(state["totals"].items())
        parts = {"worlds": worlds, "fields": state["fields"], "totals": totals}
        where = self.physics.device
        with self._in_place():
            self._carry(
                {part: {name: value.to(where, copy=True) for name, value in parts[part].items()} for part in parts}
            )
        self._generator.set_state(state["generator"].cpu().clone())

    @_one_torch_thread()
    def place(self, qpos: Tensor, qvel: Tensor) -> None:
        """Put every world at a state, (N, nq) and (N, nv), in the middle of the episode that it is in.

        Raises:
            RuntimeError: before the first `reset`; ValueError: a wrong shape.
        """
        if self._state is None:
            raise RuntimeError("call reset() before place()")
        shapes = (self.num_envs, self.physics.model.nq), (self.num_envs, self.physics.model.nv)
        if (qpos.shape, qvel.shape) != shapes:
            raise ValueError(f"qpos and qvel are {tuple(qpos.shape)} and {tuple(qvel.shape)}; expected {shapes}")
        qpos, qvel = (one.to(self.physics.device, self.physics.dtype) for one in (qpos, qvel))
        everywhere = torch.ones(self.num_envs, dtype=torch.bool, device=self.physics.device)
        with self._in_place():
            self._state, self._observation = self._place(everywhere, qpos, qvel)

    def _per_world(self, dtype: torch.dtype) -> Tensor:
        return torch.zeros(self.num_envs, dtype=dtype, device=self.physics.device)


def _suited_physics(device: torch.device) -> str:
    """The engine that suits a device."""
    if device.type != "cuda":
        return "cpu"
    if missing_packages():
        warnings.warn("Warp is not installed, so the CPU simulates: pip install 'saltus[warp]'", stacklevel=3)
        return "cpu"
    return "warp"


def _action_bounds(model: Any, task_name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    if model.nu == 0:
        raise ValueError(f"the model of task {task_name} has no actuators: there is nothing to control")
    unbounded = [model.actuator(i).name or f"#{i}" for i in range(model.nu) if not model.actuator_ctrllimited[i]]
    if unbounded:
        raise ValueError(
            f"actuators of task {task_name} without bounds: {', '.join(unbounded)}. Actions are scaled to the "
            "actuators' bounds: give each a ctrlrange in the MJCF"
        )
    low, high = torch.as_tensor(model.actuator_ctrlrange, dtype=torch.float32, device=device).unbind(-1)
    return low.clone(), high.clone()


def _randomized(task: Task, num_envs: int, generator: torch.Generator) -> dict[str, Tensor]:
    fields = task.randomize(num_envs, generator)
    if not isinstance(fields, dict):
        raise ValueError(
            f"{type(task).__name__}.randomize returned a {type(fields).__name__}; expected a dict of tensors"
        )
    for name, values in fields.items():
        shape = getattr(getattr(task.model, name, None), "shape", None)
        if shape is None or not isinstance(values, Tensor) or tuple(values.shape) != (num_envs, *shape):
            expected = (
                f"expected a tensor of {(num_envs, *shape)}" if shape is not None else "MjModel has no such field"
            )
            raise ValueError(
                f"{type(task).__name__}.randomize gave {name!r} as a {type(values).__name__} of shape "
                f"{tuple(getattr(values, 'shape', ()))}; {expected}"
            )
    return fields


def _reward_and_terms(returned: Tensor | tuple[Tensor, dict[str, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
    return (returned, {}) if isinstance(returned, Tensor) else returned


def _check_functions(
    task: Task, physics: Physics, names: Names, num_envs: int, action_dim: int
) -> tuple[int, list[str]]:
    """Call each of the task's functions once; return the width of its observation, and the names of its rewards' terms.

    Leaves the physics at a first state of its own generator: the environment's is not drawn from.
    """

    def expect(function: str, value: Any, shape: tuple[int | str, ...], dtype: str) -> None:
        kind = f"{type(task).__name__}.{function}"
        sizes = ", ".join(map(str, shape)) + "," * (len(shape) == 1)
        wanted = f"expected a {dtype} tensor of shape ({sizes}) on {physics.device}"
        if not isinstance(value, Tensor):
            raise ValueError(f"{kind} returned a {type(value).__name__}; {wanted}")
        right_shape = len(value.shape) == len(shape) and all(
            isinstance(want, str) or want == have for want, have in zip(shape, value.shape, strict=True)
        )
        right_dtype = value.dtype == torch.bool if dtype == "bool" else value.dtype.is_floating_point
        if not (right_shape and right_dtype and value.device == physics.device):
            raise ValueError(
                f"{kind} returned a {value.dtype} tensor of shape {tuple(value.shape)} on {value.device}; {wanted}"
            )

    model = physics.model
    start = task.reset(num_envs, torch.Generator(physics.device).manual_seed(0))
    if not (isinstance(start, tuple) and len(start) == 2):
        raise ValueError(f"{type(task).__name__}.reset returned a {type(start).__name__}; expected (qpos, qvel)")
    expect("reset (qpos)", start[0], (num_envs, model.nq), "floating-point")
    expect("reset (qvel)", start[1], (num_envs, model.nv), "floating-point")
    if not all(torch.isfinite(part).all() for part in start):
        raise ValueError(f"{type(task).__name__}.reset returned values that are not finite")
    physics.reset(torch.ones(num_envs, dtype=torch.bool, device=physics.device), *start)
    state = State(physics.read(), names)
    action = torch.zeros(num_envs, action_dim, device=physics.device)
    observation = task.observation(state)
    expect("observation", observation, (num_envs, "obs_dim"), "floating-point")
    returned = task.reward(state, action, state)
    if not isinstance(returned, Tensor) and not (
        isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], dict)
    ):
        raise ValueError(
            f"{type(task).__name__}.reward returned a {type(returned).__name__}; expected a tensor of shape "
            f"({num_envs},), or that and a dict of its terms"
        )
    reward, terms = _reward_and_terms(returned)
    expect("reward", reward, (num_envs,), "floating-point")
    for name, term in terms.items():
        expect(f"reward (term {name!r})", term, (num_envs,), "floating-point")
    expect("terminated", task.terminated(state), (num_envs,), "bool")
    if observation.shape[1] == 0:
        raise ValueError(f"{type(task).__name__}.observation is empty")
    if not math.isfinite(float(observation.double().abs().max())):
        raise ValueError(f"{type(task).__name__}.observation is not finite at a first state of an episode")
    return observation.shape[1], list(terms)

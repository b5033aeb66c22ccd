"""A rollout with random actions: the ranges of its numbers, its episodes, its failures."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import mujoco
import torch
from mujoco.batch import SimulationError
from tensordict import TensorDict
from torch import Tensor

from envs import BatchEnv
from envs.physics.cpu import available_cores
from envs.physics.model_fields import bare_batch, restore
from envs.state import State
from envs.task_functions import defines, inputs_of
from pipeline.seeding import derive_seed

PICTURES = 3


@dataclass
class Range:
    """Lowest, highest, mean and standard deviation of columns of numbers, (columns,) float64 each."""

    low: Tensor
    high: Tensor
    mean: Tensor
    std: Tensor

    @property
    def known(self) -> bool:
        """Whether there were any numbers."""
        return not bool(self.low.isnan().all())


class _Columns:
    """Collects the ranges of columns."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._kept: list[Tensor] = []

    def add(self, values: Tensor, kept: Tensor) -> None:
        """Add the values (N, columns) of the worlds of `kept`, (N,) bool."""
        self._rows.append(values.double())
        self._kept.append(kept)

    def range(self, worlds: Tensor | None = None) -> Range:
        """The ranges of everything added, or of that of `worlds`, (N,) bool."""
        rows = torch.cat(
            [rows[kept if worlds is None else kept & worlds] for rows, kept in zip(self._rows, self._kept, strict=True)]
        )
        if not len(rows):  # every world-step failed
            unknown = torch.full(rows.shape[1:], torch.nan, dtype=torch.float64)
            return Range(unknown, unknown, unknown, unknown)
        low, high = rows.aminmax(dim=0)
        return Range(low, high, rows.mean(dim=0), rows.std(dim=0, correction=0))


@dataclass(frozen=True)
class Failure:
    """A world-step whose physics failed, or whose numbers were not finite.

    Attributes:
        world, step: where and when.
        unstable: the physics failed.
        before: the physics' state before the step, of all worlds.
        inputs: the fields that the action set, of this world: ``ctrl``, or those of `Task.control`.
    """

    world: int
    step: int
    unstable: bool
    before: TensorDict
    inputs: dict[str, Tensor]


@dataclass(frozen=True)
class Overflow:
    """A step in which a world dropped contacts or constraints, or after which it did at the start of an episode.

    Attributes:
        step: when.
        before: the physics' state before the step, of all worlds.
        inputs: the fields that the actions set, (N, ...) by name.
    """

    step: int
    before: TensorDict
    inputs: dict[str, Tensor]


@dataclass(frozen=True)
class Rollout:
    """The result of `roll_out`.

    Attributes:
        observations, rewards, terms: ranges over all world-steps that did not fail; terms by name.
        privileged: those of the group "critic", if the task has one.
        sound_observations, sound_privileged: these in worlds that never failed.
        start_spread: (obs_dim,) standard deviation of the first observations over the worlds.
        totals: `BatchEnv.statistics` of the rollout.
        lengths: of the episodes that ended, in control steps.
        clamped: (nu,) share of each control that was beyond its range, to which MuJoCo clamps it.
        first_failure: the first failed world-step.
        first_overflow: the first step with an overflow.
        states: the physics' states at the beginning, in the middle and at the end.
        steps_per_second: env steps per second of `BatchEnv.step`.
        bare_steps_per_second: those of `mujoco.batch` alone, from the same states.
    """

    observations: Range
    privileged: Range | None
    sound_observations: Range
    sound_privileged: Range | None
    rewards: Range
    terms: dict[str, Range]
    start_spread: Tensor
    totals: dict[str, float]
    lengths: list[int]
    clamped: Tensor
    first_failure: Failure | None
    first_overflow: Overflow | None
    states: list[TensorDict]
    steps_per_second: float
    bare_steps_per_second: float

    @property
    def share_of_bare_rate(self) -> float:
        """`steps_per_second` as a share of the bare engine's, at most 1: one noisy measurement."""
        return min(1.0, self.steps_per_second / self.bare_steps_per_second)


def roll_out(env: BatchEnv, steps: int, seed: int) -> Rollout:
    """Take `steps` control steps with uniformly random actions in every world.

    Args:
        env: an environment of the CPU engine, with normalized actions.
        steps: control steps.
        seed: of the actions.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "check"))
    observations, privileged, rewards, terms = _Columns(), _Columns(), _Columns(), dict[str, _Columns]()
    lengths, states, failure, overflow, seconds = list[int](), list[TensorDict](), None, None, 0.0
    elapsed = torch.zeros(env.num_envs, dtype=torch.int64)
    clamped = torch.zeros(env.task.model.nu, dtype=torch.float64)
    sound = torch.ones(env.num_envs, dtype=torch.bool)
    bare = _Bare(env)
    start, totals = env.reset(), env.statistics()
    pictured = [round(number * (steps - 1) / (PICTURES - 1)) for number in range(PICTURES)]
    for step in range(steps):
        action = 2 * torch.rand(env.num_envs, env.action_dim, generator=generator) - 1
        inputs = control_inputs(env, action, env.state)
        before, counts = env.physics.get_state(), env.statistics()
        if step in pictured:
            states.append(before)
        bare.step(before)
        began = time.perf_counter()
        transition, _ = env.step(action)
        seconds += time.perf_counter() - began
        stable = ~env.failed
        sound &= stable
        observations.add(transition["next", "observation"], stable)
        if env.privileged_dim:
            privileged.add(transition["next", "privileged"], stable)
        rewards.add(transition["next", "reward"], stable)
        for name, value in env.reward_terms.items():
            terms.setdefault(name, _Columns()).add(value[:, None], stable)
        if failure is None and env.failed.any():
            world = int(env.failed.nonzero()[0])
            of_world = {name: values[world] for name, values in inputs.items()}
            failure = Failure(world, step, env.statistics()["unstable"] > counts["unstable"], before, of_world)
        if overflow is None and env.statistics()["overflowed"] > counts["overflowed"]:
            overflow = Overflow(step, before, inputs)
        if "ctrl" in inputs:
            clamped += _outside(env, inputs["ctrl"])
        elapsed += 1
        done = transition["next", "done"].flatten()
        lengths += elapsed[done].tolist()
        elapsed[done] = 0
    return Rollout(
        observations=observations.range(),
        privileged=privileged.range() if env.privileged_dim else None,
        sound_observations=observations.range(sound),
        sound_privileged=privileged.range(sound) if env.privileged_dim else None,
        rewards=rewards.range(),
        terms={name: columns.range() for name, columns in terms.items()},
        start_spread=start.double().std(dim=0, correction=0),
        totals=_difference(env.statistics(), totals),
        lengths=lengths,
        clamped=clamped / steps,
        first_failure=failure,
        first_overflow=overflow,
        states=states,
        steps_per_second=steps * env.num_envs / seconds,
        bare_steps_per_second=steps * env.num_envs / bare.seconds,
    )


def control_inputs(env: BatchEnv, action: Tensor, state: State) -> dict[str, Tensor]:
    """The fields that actions in [-1, 1] set in a state, (N, ...) by name."""
    control = to_control(env, action)
    if not defines(env.task, "control"):
        return {"ctrl": control}
    return {name: values.clone() for name, values in inputs_of(env.task.control(state, control)).items()}


def _outside(env: BatchEnv, ctrl: Tensor) -> Tensor:
    """The share of worlds in which MuJoCo clamps each control of `ctrl` (N, nu), (nu,)."""
    model = env.task.model
    low, high = torch.from_numpy(model.actuator_ctrlrange).to(ctrl).unbind(-1)
    limited = torch.from_numpy(model.actuator_ctrllimited.astype(bool))
    clamps = not model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_CLAMPCTRL
    return (limited & clamps & ((ctrl < low) | (ctrl > high))).double().mean(dim=0)


def to_control(env: BatchEnv, action: Tensor) -> Tensor:
    """Actions in [-1, 1], in the task's units."""
    return env._actions.to_control(action)


def _difference(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {name: value - before[name] for name, value in after.items()}


class _Bare:
    """Times `mujoco.batch` alone, with neither task functions nor resets."""

    def __init__(self, env: BatchEnv):
        self._frame_skip, self.seconds = env.task.frame_skip, 0.0
        self._batch = bare_batch(env.physics.model, env.num_envs, available_cores())

    def step(self, state: TensorDict) -> None:
        """Take a control step from a state of the physics, which has the controls of the step before."""
        restore(self._batch, state["integration"])
        began = time.perf_counter()
        with suppress(SimulationError):  # the environment meets and counts it as well
            self._batch.step(nstep=self._frame_skip)
        self.seconds += time.perf_counter() - began

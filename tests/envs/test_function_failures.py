"""Worlds whose task functions or contacts fail: truncated, counted and reset, with a warning."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from divergence_helpers import BAD, OTHERS, assert_failed
from env_helpers import Actions, CartBall, equal, is_finite, overwrite, qpos_qvel
from torch import Tensor

import envs
from envs import BatchEnv, State, Task


@dataclass
class Fussy(CartBall):
    """A task with a non-finite observation, reward or term when the cart is far to the right."""

    spoil: str = "observation"
    value: float = math.nan
    noise: float = 0.02
    far: ClassVar[float] = 0.3

    def observation(self, state: State) -> Tensor:
        spoiled = (state.qpos[:, :1] > self.far) & (self.spoil == "observation")
        return torch.where(spoiled, self.value, state.qpos)

    def reward(self, state: State, action: Tensor, next_state: State) -> tuple[Tensor, dict[str, Tensor]]:
        far, reward = next_state.qpos[:, 0] > self.far, next_state.xpos[:, 1, 0]
        spoiled = torch.where(far, self.value, reward)
        return spoiled if self.spoil == "reward" else reward, {"x": spoiled if self.spoil != "observation" else reward}


def push_one_world(env: BatchEnv) -> Tensor:
    action = torch.zeros(env.num_envs, env.action_dim)
    action[BAD, 0] = 1
    return action


@pytest.mark.parametrize("reach", [1.0, Fussy.far])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300])
@pytest.mark.parametrize("function", ["observation", "reward"])
def test_nonfinite_function_truncates_the_world(function: str, value: float, reach: float):
    """1e300 is finite in float64 and infinite in float32. With a small `reach` the world would also terminate."""
    env, healthy = envs.make(Fussy, 3, spoil=function, value=value, reach=reach), envs.make(Fussy, 3, spoil="nothing")
    env.reset()
    healthy.reset()
    failures = 0
    for _ in range(25):
        (ours, obs), (theirs, _) = env.step(push_one_world(env)), healthy.step(push_one_world(env))
        assert is_finite(ours)
        assert torch.isfinite(obs).all()
        assert equal(ours[OTHERS], theirs[OTHERS])
        assert not ours["next", "terminated"].any()
        assert env.failed.tolist() == [False, bool(ours["next", "done"][BAD]), False]
        if env.failed[BAD]:
            failures += 1
            assert_failed(ours)
            assert abs(float(obs[BAD, 0])) <= 0.02
    assert failures >= 1
    with pytest.warns(UserWarning, match="Fussy.*not finite"):
        totals = env.statistics()
    assert (totals["nonfinite"], totals["unstable"]) == (failures, 0)
    assert all(math.isfinite(total) for total in totals.values())


def test_nonfinite_term_is_not_added_to_the_totals():
    """A total that is NaN once would stay NaN."""
    env = envs.make(Fussy, 3, spoil="term")
    env.reset()
    for _ in range(25):
        assert is_finite(env.step(push_one_world(env))[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert all(math.isfinite(total) for total in env.statistics().values())


def test_each_kind_of_failure_warns_once_and_names_the_task():
    env = envs.make(Fussy, 3)
    env.reset()
    draw = Actions(env)
    assert no_warnings(env)
    for _ in range(25):
        env.step(push_one_world(env))
    with pytest.warns(UserWarning, match="Fussy") as warned:
        env.statistics()
    assert len(warned) == 1
    assert no_warnings(env)
    for _ in range(2):
        overwrite(env.physics, "qvel", math.nan, BAD)
        env.step(draw())
    with pytest.warns(UserWarning, match="Fussy.*diverged") as warned:
        env.statistics()
    assert len(warned) == 1
    assert no_warnings(env)


def no_warnings(env: BatchEnv) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.statistics()
    return True


@dataclass
class BadStarts(CartBall):
    """Some initial states are NaN (`what`: the state, or only its observation)."""

    what: str = "state"

    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        qpos, qvel = super().reset(num_envs, generator)
        if hasattr(self, "armed") and self.what == "state":
            qpos[torch.rand(num_envs, generator=generator) < 1 / 8, 0] = math.nan
        return qpos, qvel

    def observation(self, state: State) -> Tensor:
        spoiled = (state.qpos[:, :1].abs() > 0.07) & (self.what == "observation") & hasattr(self, "armed")
        return torch.where(spoiled, math.nan, state.qpos)


@pytest.mark.parametrize("what", ["state", "observation"])
def test_nonfinite_initial_state_is_counted_and_replaced(what: str):
    env = envs.make(BadStarts, 16, what=what, max_episode_steps=3)
    env.task.armed = True  # after the check at construction
    draw = Actions(env)
    obs = env.reset()
    for _ in range(20):
        assert torch.isfinite(obs).all()
        transition, obs = env.step(draw())
        assert is_finite(transition)
    with pytest.warns(UserWarning, match="BadStarts"):
        totals = env.statistics()
    assert totals["unstable"] + totals["nonfinite"] > 0


class BadFirst(CartBall):
    """Once armed, the first observation of one world is not finite, though its state is."""

    armed = False
    fields: ClassVar[tuple[str, ...]] = (*CartBall.fields, "time")

    def observation(self, state: State) -> Tensor:
        spoiled = self.armed & (state.time == 0) & (torch.arange(len(state)) == BAD)
        return torch.where(spoiled[:, None], math.nan, state.qpos)


@pytest.mark.parametrize("execution", ["host", "device"])
def test_world_whose_first_observation_is_not_finite_fails_in_its_next_step(execution: Any):
    """The host replaces a start by the default one, which fails here too. The device reads no value, and cannot."""
    env = BatchEnv(BadFirst(), 3, execution=execution)
    env.task.armed = True
    obs, draw = env.reset(), Actions(env)
    for step in range(2):  # the start after a failed step also fails
        assert (obs[BAD] == 0).all()
        state = env.get_state()
        transition, obs = env.step(draw())
        assert is_finite(transition)
        assert_failed(transition)
        assert env.failed.tolist() == [False, True, False]
        assert env.statistics()["nonfinite"] == step + 2, "one for each start"
    env.set_qpos_qvel(*qpos_qvel(env))
    transition, _ = env.step(draw())
    assert is_finite(transition)
    assert_failed(transition)
    env.task.armed = False
    env.step(draw())
    assert env.failed.tolist() == [False, True, False]
    env.step(draw())
    assert not env.failed.any()
    env.set_state(state)
    env.step(draw())
    assert env.failed.tolist() == [False, True, False], "the state says which starts failed"
    env.set_state(state)
    env.set_qpos_qvel(*qpos_qvel(env))
    env.step(draw())
    assert not env.failed.any()
    env.set_state(state.exclude("failed_starts"))  # as of saltus 0.5.0
    env.step(draw())
    assert not env.failed.any()


class Boxes(Task):
    """Eight boxes on the floor, with memory for few of their contacts."""

    mjcf = """
    <mujoco>
      <size memory="40000"/>
      <worldbody>
        <geom type="plane" size="5 5 .1"/>
        {}
      </worldbody>
      <actuator><motor joint="free0" ctrlrange="-1 1"/></actuator>
    </mujoco>""".format(
        "".join(
            f'<body pos="{i} 0 .09"><joint name="free{i}" type="free"/><geom type="box" size=".1 .1 .1"/></body>'
            for i in range(8)
        )
    )

    def observation(self, state: State) -> Tensor:
        return state.qpos

    def reward(self, state: State, action: Tensor, next_state: State) -> Tensor:
        return next_state.qpos[:, 0]


def test_contacts_that_do_not_fit_are_counted_and_warned_about(monkeypatch: pytest.MonkeyPatch):
    env = envs.make(Boxes, 2)
    env.reset()
    with pytest.warns(UserWarning, match="Boxes.*did not fit.*size memory"):
        assert env.statistics()["overflowed"] == 2  # in the initial states
    for _ in range(5):
        env.step(torch.zeros(2, env.action_dim))
    # Reading the advice may synchronise: it happens once.
    monkeypatch.setattr(type(env.physics), "overflow_advice", property(lambda self: pytest.fail("read again")))
    assert env.statistics()["overflowed"] == 12

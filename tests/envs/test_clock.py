"""MuJoCo's clock, which the CPU engine stops."""

from __future__ import annotations

from collections.abc import Iterator

import mujoco
import pytest
import torch
from env_helpers import MODEL

import envs
from envs.physics import cpu


@pytest.fixture(autouse=True)
def stopped_again() -> Iterator[None]:
    yield
    mujoco.set_mjcb_time(None)
    cpu.stop_clock()


def seconds_timed() -> float:
    """What MjData's timers measured over some steps."""
    model = mujoco.MjModel.from_xml_string(MODEL)
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data, 10)
    return float(data.timer.duration.sum())


def returns(task: str) -> torch.Tensor:
    env = envs.make(task, 8, seed=2)
    env.reset()
    actions = torch.rand(20, 8, env.action_dim, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.stack([env.step(action)[0]["next", "observation"] for action in actions])


def test_the_clock_is_stopped_and_can_be_restored():
    assert seconds_timed() == 0
    mujoco.set_mjcb_time(None)
    assert seconds_timed() > 0
    cpu.stop_clock()
    assert seconds_timed() == 0


def test_a_callback_of_the_user_is_kept():
    ticks = iter(range(10**6))
    mujoco.set_mjcb_time(lambda: float(next(ticks)))
    cpu.stop_clock()
    assert seconds_timed() > 0


@pytest.mark.parametrize("task", ["Hopper-v5", "Humanoid-v5"])
def test_the_clock_changes_no_bit(task: str):
    without = returns(task)
    mujoco.set_mjcb_time(None)
    assert torch.equal(returns(task), without)


def test_another_build_of_mujoco_only_costs_time(monkeypatch: pytest.MonkeyPatch):
    mujoco.set_mjcb_time(None)
    monkeypatch.setattr(mujoco._callbacks, "__file__", "no/such/library.so")
    cpu.stop_clock()
    assert seconds_timed() > 0

"""`saltus check` names the first failure and the first overflow, and saves a failure that plain MuJoCo repeats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from check_helpers import CART, Cart
from physics_helpers import HEAP

from envs import Task
from pipeline.check.check import Check, check
from pipeline.check.command import _new_path
from pipeline.check.report import save_failure

pytestmark = pytest.mark.usefixtures("short_capacity_rollouts")

DIVERGES = -2000.0  # damping


class Diverges(Cart):
    mjcf = CART.replace('damping="1"', f'damping="{DIVERGES}"').format(actuators="")


class SomeDiverge(Cart):
    """Draws a model in which physics diverges for every third world."""

    def randomize(self, num_envs: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        damping = torch.where(torch.arange(num_envs) % 3 == 2, DIVERGES, 1.0)
        return {"dof_damping": damping.double()[:, None]}


class SomeEpisodesDiverge(SomeDiverge):
    model_variants = 3


def run(task: type[Task], steps: int = 60, max_episode_steps: int = 50) -> Check:
    return check(task, {"max_episode_steps": max_episode_steps}, num_envs=6, steps=steps, seed=0)


@pytest.mark.parametrize("task", [Diverges, SomeDiverge, SomeEpisodesDiverge])
def test_saved_failure_fails_again_in_plain_mujoco(task: type[Task], tmp_path: Path) -> None:
    result = run(task)
    assert result.env is not None
    assert result.rollout is not None
    saved = save_failure(result.env, result.rollout, tmp_path / "failure.npz")
    assert sorted(saved) == sorted(tmp_path.iterdir())
    file, model = np.load(saved[0]), result.env.task.model
    if task is not Diverges:
        model = mujoco.MjModel.from_binary_path(str(saved[1]))
        assert model.dof_damping[0] == DIVERGES
    data = mujoco.MjData(model)
    mujoco.mj_setState(model, data, file["state"], mujoco.mjtState.mjSTATE_INTEGRATION)
    data.ctrl[:] = file["ctrl"]
    assert np.isfinite(data.qpos).all()
    mujoco.mj_step(model, data, result.env.task.frame_skip)
    kinds = (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)
    assert any(data.warning[kind].number for kind in kinds)


def observe_angle(_task: Task, state: Any) -> torch.Tensor:
    return torch.cat([state.qpos.sin(), state.qvel], dim=-1)


@pytest.mark.parametrize("task", [Diverges, SomeDiverge])
def test_scales_are_those_of_worlds_that_did_not_diverge(task: type[Task]) -> None:
    result = run(type("Watched", (task,), {"observation": observe_angle}))
    assert result.rollout is not None
    assert result.rollout.observations.high[1] > 1e4
    assert not any("standard deviation" in one.text for one in result.findings)


def test_models_of_earlier_failures_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "check.mjb").touch()
    assert _new_path("check", ".npz", ".mjb") == Path("check-2.npz")


class Heap(Cart):
    """Spheres which, in the third world, come to lie on the floor: their contacts do not fit into the memory."""

    mjcf = HEAP.format(size="<size memory='12000'/>")

    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        qpos, qvel = Task.reset(self, num_envs, generator)
        qpos[:, 2:-1:7] += torch.where(torch.arange(num_envs) == 2, 0.002, 1.0)[:, None]
        return qpos, qvel


class PressedHeap(Heap):
    """Some later episodes begin in such a state."""

    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        qpos, qvel = Task.reset(self, num_envs, generator)
        qpos[:, 2:-1:7] += torch.where(torch.rand(num_envs, generator=generator) < 0.1, -0.01, 1.0)[:, None]
        return qpos, qvel


@pytest.mark.parametrize(
    ("task", "length", "place"),
    [(Heap, 50, "in world 2 at step 4"), (PressedHeap, 4, "in an initial state after step 3")],
)
def test_first_overflow_is_named(task: type[Task], length: int, place: str) -> None:
    (text,) = [one.text for one in run(task, 20, max_episode_steps=length).findings if "dropped" in one.text]
    assert f"world-steps, the first {place}: raise <size memory=.../>" in text

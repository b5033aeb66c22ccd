"""Names of observations and actions: true for the states that the physics reaches."""

from __future__ import annotations

import re
from pathlib import Path

import mujoco
import pytest
import torch
from torch import Tensor

import envs
from envs import BatchEnv, Task
from envs.control_map import control_map
from envs.entry_names import action_names, observation_entries

EXAMPLES = Path(__file__).parents[2] / "examples"
TASKS = [
    *envs.list_tasks(),
    *(f"{EXAMPLES / name}.py:{name.title()}" for name in ("lift", "push", "reach", "walk")),
]
MODEL = """
<mujoco>
  <worldbody>
    <body name="ball"><freejoint/><geom size="0.1"/></body>
    <body name="pole" pos="1 0 0">
      <joint name="hinge" axis="0 1 0"/><geom type="capsule" fromto="0 0 0 0 0 1" size="0.1"/><site name="tip"/>
    </body>
  </worldbody>
  <tendon><fixed name="cord"><joint joint="hinge" coef="1"/></fixed></tendon>
  <actuator>
    <motor name="motor" joint="hinge" ctrlrange="-1 1"/>
    <motor joint="hinge" ctrlrange="-1 1"/>
    <motor tendon="cord" ctrlrange="-1 1"/>
    <motor site="tip" ctrlrange="-1 1"/>
    <adhesion body="pole" ctrlrange="0 1"/>
    <general slidersite="tip" cranksite="tip" cranklength="1" ctrlrange="-1 1"/>
  </actuator>
  <sensor><gyro name="gyro" site="tip"/></sensor>
</mujoco>
"""


class Named(Task):
    """Observes numbers, clipped ones and computed ones."""

    mjcf = MODEL
    fields = ("qpos", "qvel", "sensordata", "xpos")

    def reset(self, num_envs, generator):
        return {"goal": torch.rand(num_envs, 2, generator=generator), "count": torch.zeros(num_envs, 1).long()}

    def observation(self, state):
        parts = [
            state.qpos[:, 7:], state.qpos[:, 7:].sin(), 2 * state.qpos[:, 7:], state.qvel[:, :2].clamp(-0.5, 0.1),
            state.sensor("gyro")[:, 1:2], state.body("pole").xpos[:, 2:], state.goal[:, 1:], state.count,
            torch.ones_like(state.goal[:, :1]),
        ]  # fmt: skip
        return torch.cat(parts, dim=-1)

    def reward(self, state, action, next_state):
        return next_state.qpos[:, 0]


def test_numbers_have_names_and_computed_entries_none() -> None:
    expected = [
        {"name": "joint hinge qpos", "field": "qpos", "index": 7}, None, None,
        {"name": "joint #0 of ball qvel 0", "field": "qvel", "index": 0},
        {"name": "joint #0 of ball qvel 1", "field": "qvel", "index": 1},
        {"name": "sensor gyro data 1", "field": "sensordata", "index": 1},
        {"name": "body pole xpos 2", "field": "xpos", "index": 8}, {"name": "goal 1"}, None, None,
    ]  # fmt: skip
    assert observation_entries(envs.make(Named, 1)) == expected


class Grouped(Named):
    """Shows its critics numbers of MjData, and of the world's model."""

    def randomize(self, num_envs, generator):
        return envs.draw_fields(self.model, num_envs, generator, envs.scale("body_mass", 0.5, 2))

    def observation(self, state):
        critic = [state.qpos[:, 7:], state.drawn["body_mass"][:, 1:], 2 * state.drawn["body_mass"][:, 1:]]
        return {"policy": super().observation(state), "critic": torch.cat(critic, dim=-1)}


def test_entries_of_the_critics_are_named_as_those_of_the_policy() -> None:
    env = envs.make(Grouped, 8)
    assert observation_entries(env) == observation_entries(envs.make(Named, 1))
    names = [entry and entry["name"] for entry in observation_entries(env, "critic")]
    assert names == ["joint hinge qpos", "drawn body_mass 1", "drawn body_mass 2", None, None]
    assert observation_entries(envs.make(Named, 1), "critic") == []


def names_of(task: type[Task] | str) -> list[str]:
    env = envs.make(task, 1)
    return action_names(env, control_map(env))


def test_actions_are_named_by_actuators_or_what_they_move() -> None:
    assert names_of(Named) == ["motor", "#1 of hinge", "#2 of cord", "#3 of tip", "#4 of pole", "#5"]


class Controlled(Named):
    """Has one action for all actuators, and one for none."""

    action_low, action_high = (-1, -1), (1, 1)

    def control(self, state, action):
        return action[:, :1].expand(-1, 6)


def test_actions_of_several_actuators_or_none_have_numbers() -> None:
    assert names_of(Controlled) == ["action 0", "action 1"]


class Bent(Named):
    """Computes entries from large, or from small, numbers only."""

    def observation(self, state):
        large = torch.where(state.qvel.abs() > 5, 0.5 * state.qvel, state.qvel)
        small = torch.where(state.qvel.abs() < 0.01, 0 * state.qvel, state.qvel)
        return torch.cat([large, small, state.qvel], dim=-1)


def test_entries_computed_at_some_numbers_only_have_no_names() -> None:
    entries = observation_entries(envs.make(Bent, 1))
    computed = 2 * len(entries) // 3
    assert entries[:computed] == [None] * computed
    assert None not in entries[computed:]


class Particular(Named):
    """Refuses states that its physics never reaches."""

    def observation(self, state):
        if (state.xpos[:, 0] != 0).any():
            raise ValueError("the world has moved")
        return state.qpos


def test_task_that_refuses_random_states_has_no_names() -> None:
    assert observation_entries(envs.make(Particular, 1)) == [None] * 8


def stepped(task: str) -> tuple[BatchEnv, Tensor]:
    env = envs.make(task, 8)
    observation = env.reset()
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        _, observation = env.step(2 * torch.rand(8, env.action_dim, generator=generator) - 1)
    return env, observation


@pytest.mark.parametrize("task", TASKS)
def test_names_are_true(task: str) -> None:
    """Each entry with a field is that number of MjData, unless it lies at a limit to which the task clips it."""
    env, observation = stepped(task)
    assert len(names_of(task)) == env.action_dim
    entries = observation_entries(envs.make(task, 1))
    assert len(entries) == env.observation_dim
    data = mujoco.MjData(env.task.model)
    for entry, column in zip(entries, observation.unbind(-1), strict=True):
        if entry is None or "field" not in entry:
            continue
        field, index = entry["field"], entry["index"]
        number = env.state.values()[field].flatten(1)[:, index].float()
        assert torch.equal(number.clamp(column.min(), column.max()), column), entry
        if entry["name"] != f"{field} {index}":
            getattr(data, field).flat[index] = 7
            kind, name, *_of_body, attribute, component = re.sub(r"(\D)$", r"\1 0", entry["name"]).split()
            number = int(name[1:]) if name.startswith("#") else name
            assert getattr(getattr(data, kind)(number), attribute).flat[int(component)] == 7, entry
            getattr(data, field).flat[index] = 0

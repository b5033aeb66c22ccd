"""ControlMap: the affine function of actions that sets ctrl, found only where there is one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import envs
from envs import Task
from envs.control_map import ControlMap, control_map
from envs.entry_names import action_names

MODEL = """
<mujoco>
  <worldbody>
    <body name="hand" mocap="true"/>
    <body name="arm">
      <joint name="x" type="slide"/><joint name="y" type="slide" axis="0 1 0"/><geom size="0.1"/>
    </body>
  </worldbody>
  <actuator>
    <position name="left" joint="x" kp="10" ctrlrange="-3 3"/>
    <position name="right" joint="y" kp="10" ctrlrange="-3 3"/>
  </actuator>
  <keyframe><key name="home" ctrl="0.9123456 -0.3"/></keyframe>
</mujoco>
"""


class Servos(Task):
    """Has two servos whose actions are offsets."""

    mjcf, home = MODEL, "home"
    action_low, action_high = (-0.5, 0.5), (2.0, 1.0)

    def reset(self, num_envs, generator):
        goal = torch.rand(num_envs, generator=generator)
        return {"goal": goal, "phase": torch.zeros(num_envs).long(), "switched": torch.zeros(num_envs).bool()}

    def control(self, state, action):
        return self.ctrl0 + 0.3 * action

    def observation(self, state):
        return torch.cat([state.qpos, state.qvel], dim=-1)

    def reward(self, state, action, next_state):
        return next_state.qvel[:, 0]

    def randomize(self, num_envs, generator):
        return {"body_mass": torch.as_tensor(self.model.body_mass) * torch.linspace(1, 2, num_envs)[:, None]}


def map_of(task: type[Task], function: object = Servos.control) -> ControlMap:
    return control_map(envs.make(type("Changed", (task,), {"control": function}), 2, check_task=False))


def test_servos_have_an_offset_and_a_scale() -> None:
    env = envs.make(Servos, 1)
    controls = control_map(env)
    assert controls.offset is not None
    assert controls.matrix is not None
    assert controls.offset.tolist() == [0.9123456, -0.3]
    assert controls.matrix.tolist() == [[0.3, 0], [0, 0.3]]
    assert controls.computed_inputs == ()
    assert action_names(env, controls) == ["left", "right"]


def test_actions_are_named_by_the_servos_that_they_set() -> None:
    env = envs.make(type("Crossed", (Servos,), {"control": lambda self, state, action: action.flip(-1)}), 1)
    assert action_names(env, control_map(env)) == ["right", "left"]


def test_mixed_actions_have_a_matrix() -> None:
    def control(self: Task, state: object, action: Tensor) -> Tensor:
        return 1 + action @ torch.tensor([[1.0, -0.25], [2.0, 0.0]])

    controls = map_of(Servos, control)
    assert controls.offset is not None
    assert controls.matrix is not None
    assert controls.offset.tolist() == [1, 1]
    assert controls.matrix.tolist() == [[1, 2], [-0.25, 0]]
    assert (controls.actions_of(1), controls.only_control_of(0)) == ([0], None)


def test_controls_that_the_task_leaves_stay_at_the_start() -> None:
    controls = map_of(Servos, lambda self, state, action: {"mocap_pos": state.goal[:, None, None].expand(-1, 1, 3)})
    assert controls.offset is not None
    assert controls.matrix is not None
    assert controls.offset.tolist() == [0.9123456, -0.3]
    assert not controls.matrix.any()
    assert controls.computed_inputs == ("mocap_pos",)


COMPUTED = {
    "physics": lambda self, state, action: action - 0.01 * state.qpos,
    "own": lambda self, state, action: action + 0.01 * state.goal[:, None],
    "whole": lambda self, state, action: action + 0.01 * (state.phase[:, None] % 2),
    "bool": lambda self, state, action: torch.where(state.switched[:, None], action, 0.9 * action),
    "model": lambda self, state, action: action * state.drawn["body_mass"][:, 2:],
    "clipped": lambda self, state, action: action.clamp(max=1.9),
    "square": lambda self, state, action: action.square(),
    "product": lambda self, state, action: action * action.flip(-1),
    "sometimes": lambda self, state, action: torch.where(state.qvel > 5, 0.0, action),
    "not finite": lambda self, state, action: action + 0 * state.qpos.sqrt(),
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_other_functions_are_computed(kind: str) -> None:
    controls = map_of(Servos, COMPUTED[kind])
    assert controls == ControlMap(None, None, ("ctrl",))


def test_task_that_refuses_random_states_computes_its_controls() -> None:
    def control(self: Task, state: envs.State, action: Tensor) -> Tensor:
        if (state.qpos != 0).any():
            raise ValueError("the world has moved")
        return action

    assert map_of(Servos, control) == ControlMap(None, None, ("ctrl",))


def test_actions_of_actuators_are_their_controls() -> None:
    env = envs.make("Hopper-v5", 1)
    controls = control_map(env)
    assert controls.offset is not None
    assert controls.matrix is not None
    assert not controls.offset.any()
    assert torch.equal(controls.matrix, torch.eye(3, dtype=torch.float64))

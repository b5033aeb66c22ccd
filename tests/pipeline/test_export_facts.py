"""Facts of policy.json: a program that follows them in plain MuJoCo sees what the policy saw in training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from control_helpers import Controls
from torch import Tensor

import envs
from envs import BatchEnv, State, Task
from envs.control_map import control_map
from envs.entry_names import observation_entries
from pipeline.export import _simulation_facts, _task_options

EXAMPLES = Path(__file__).parents[2] / "examples"
ARM = """
<mujoco>
  <option timestep="0.01"><flag energy="enable"/></option>
  <worldbody>
    <geom name="floor" type="plane" size="2 2 0.1"/>
    <body name="arm" pos="0 0 0.3">
      <joint name="shoulder" axis="0 1 0" damping="0.1"/>
      <geom type="capsule" fromto="0 0 0 0.4 0 0" size="0.05"/><site name="tip" pos="0.4 0 0"/>
    </body>
  </worldbody>
  <actuator><motor name="motor" joint="shoulder" ctrlrange="-2 2"/></actuator>
  <sensor><framepos objtype="site" objname="tip"/><gyro site="tip"/><actuatorfrc actuator="motor"/></sensor>
</mujoco>
"""


class Arm(Task):
    """Observes sensors, derived fields and forces of contacts."""

    mjcf = ARM
    frame_skip = 3
    fields = ("qpos", "qvel", "sensordata", "xpos", "cvel", "energy", "cfrc_ext")

    def observation(self, state):
        return torch.cat([getattr(state, field).flatten(1) for field in self.fields], dim=-1)

    def reward(self, state, action, next_state):
        return next_state.qvel[:, 0]


class LaggingArm(Arm):
    """The same, as MuJoCo's steps leave derived fields."""

    recompute_derived = False


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module run_exported_policy."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import run_exported_policy

    return run_exported_policy


def exported_facts(env: BatchEnv) -> dict[str, Any]:
    return json.loads(json.dumps(_simulation_facts(env, control_map(env))))


def normalized_actions(env: BatchEnv, steps: int = 25) -> Tensor:
    return 2 * torch.rand(steps, 1, env.action_dim, generator=torch.Generator().manual_seed(0)) - 1


def in_task_units(env: BatchEnv, action: Tensor) -> np.ndarray:
    """An exported policy's output for an action in [-1, 1]."""
    return (env.control_low + (action + 1) / 2 * (env.control_high - env.control_low))[0].numpy()


# Derived fields


@pytest.mark.parametrize("task", [Arm, LaggingArm])
def test_plain_mujoco_has_the_observations_of_training(task: type[Task], example: Any) -> None:
    env = envs.make(task, 1)
    facts, entries = exported_facts(env), observation_entries(env)
    assert facts["recompute_derived"] is task.recompute_derived
    assert None not in entries
    env.reset()
    data = example.start(env.model, facts)
    for action in normalized_actions(env):
        _, observation = env.step(action)
        example.step(env.model, data, facts, in_task_units(env, action))
        found = [getattr(data, entry["field"]).flat[entry["index"]] for entry in entries]
        np.testing.assert_allclose(found, observation[0], rtol=1e-5, atol=1e-5)
    assert np.abs(data.cfrc_ext).max() > 1


# The start of episodes

MOCAP = """
<mujoco>
  <size nuserdata="2"/>
  <worldbody>
    <body name="hand" mocap="true"/>
    <body name="arm"><joint name="shoulder"/><geom size="0.1"/></body>
  </worldbody>
  <actuator>
    <position name="servo" joint="shoulder" kp="10" ctrlrange="-2 2" timeconst="0.1" nsample="3" delay="0.004"/>
  </actuator>
  <keyframe>
    <key name="start" time="3" qpos="0.5" qvel="1" act="0.2" ctrl="0.3" mpos="0.1 0 0.2" mquat="0 1 0 0"/>
  </keyframe>
</mujoco>
"""


class Mocap(Task):
    """Starts from a keyframe with a mocap body, after its servo has settled."""

    mjcf, home, settle_steps = MOCAP, "start", 2
    frame_skip = 4

    def observation(self, state):
        return torch.cat([state.qpos, state.qvel], dim=-1)

    def reward(self, state, action, next_state):
        return next_state.qvel[:, 0]


def test_start_is_the_whole_state_of_the_physics(example: Any) -> None:
    env = envs.make(Mocap, 1)
    facts = exported_facts(env)
    assert facts["start"].keys() == {
        "time", "qpos", "qvel", "act", "history", "ctrl", "mocap_pos", "mocap_quat", "userdata",
    }  # fmt: skip
    assert (facts["start"]["time"], facts["start"]["mocap_pos"]) == (3, [[0.1, 0, 0.2]])
    data = example.start(env.model, facts)
    kind = mujoco.mjtState.mjSTATE_FULLPHYSICS | mujoco.mjtState.mjSTATE_USER
    found, expected = np.empty((2, mujoco.mj_stateSize(env.model, kind)))
    mujoco.mj_getState(env.model, data, found, kind)
    mujoco.mj_getState(env.model, env.task.data0, expected, kind)
    np.testing.assert_array_equal(found, expected)


# Controls


@dataclass
class Servo(Mocap):
    """Has an action around the servo's home, as `saltus new` writes it, and one that moves the mocap body."""

    action_low, action_high = (-1, -0.5), (1, 0.5)
    action_scale: float = 0.3
    reach: float = 0.5
    shape: Any = print

    def control(self, state, action):
        place = state.qpos[:, None, :] * torch.ones(3) + action[:, 1:, None]
        return {"ctrl": self.ctrl0 + self.action_scale * action[:, :1], "mocap_pos": place}


def test_plain_mujoco_moves_as_servos_did_in_training(example: Any) -> None:
    env = envs.make(Servo, 1)
    facts = exported_facts(env)
    assert not facts["action_is_ctrl"]
    assert facts["actuators"] == [{"name": "servo", "controls": [0]}]
    assert facts["ctrl"] == [{"name": "servo", "offset": 0.3, "actions": [0], "scales": [0.3]}]
    assert facts["computed_inputs"] == ["mocap_pos"]
    env.reset()
    data = example.start(env.model, facts)
    for action in normalized_actions(env):
        _, observation = env.step(action)
        example.step(env.model, data, facts, in_task_units(env, action))
        np.testing.assert_allclose([*data.qpos, *data.qvel], observation[0], rtol=1e-5, atol=1e-6)


def test_controls_that_depend_on_the_state_are_said_to_be_computed() -> None:
    def control(self: Task, state: State, action: Tensor) -> Tensor:
        return action[:, :1] - state.qvel

    facts = exported_facts(envs.make(type("Damped", (Servo,), {"control": control}), 1))
    assert (facts["ctrl"], facts["computed_inputs"]) == (None, ["ctrl"])


def test_actuators_list_their_controls() -> None:
    actuators = exported_facts(envs.make(Controls, 1))["actuators"]
    assert [(one["name"], one["controls"]) for one in actuators] == [
        ("brake", []), ("servo", [0, 1, 2]), ("pid", [3, 4]), ("#3 of wrist", [5]),
    ]  # fmt: skip


def test_task_options_include_defaults_but_nothing_that_json_lacks() -> None:
    assert _task_options(Servo(reach=0.2)) == {"action_scale": 0.3, "reach": 0.2}

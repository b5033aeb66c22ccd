"""Actuators with several controls or none: their bounds, names and randomised fields."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np
import pytest
import torch
from control_helpers import BOUNDED, CONTROL_NAMES, UNBOUNDED, Controls
from validation_helpers import refused

import envs
from envs import draw_fields, scale
from envs.control_map import control_map
from envs.entry_names import action_names, observation_entries


def test_bounds_are_those_of_controls():
    env = envs.make(Controls, 2)
    assert env.control_low.tolist() == [-3, -3, -3, -0.5, -2, -4]
    assert env.control_high.tolist() == [3, 3, 3, 1, 2, 5]
    env.reset()
    env.step(torch.ones(2, 6))
    assert env.state.ctrl[0].tolist() == [3, 3, 3, 1, 2, 5]


def test_controls_without_bounds_are_named_with_the_attribute_that_sets_them():
    quaternion = [f'servo {name} (its ctrlrange, "0 0", is missing or empty)' for name in ("qw", "qx", "qy", "qz")]
    refused(
        lambda: envs.make(type("Free", (Controls,), {"mjcf": UNBOUNDED}), 1),
        *quaternion, 'pid vel (its velrange, "0 0", is missing or empty). Actions', "velrange and a ffrange",
    )  # fmt: skip


def test_model_of_passive_actuators_has_no_action():
    passive = mujoco.MjSpec.from_string(BOUNDED)
    for actuator in passive.actuators[1:]:
        passive.delete(actuator)
    refused(
        lambda: envs.make(type("Passive", (Controls,), {"mjcf": passive}), 1), "has no actuators with controls. Give"
    )


def test_actions_and_observations_have_the_names_of_controls():
    env = envs.make(Controls, 1)
    assert action_names(env, control_map(env)) == [*CONTROL_NAMES[:-1], "#3 of wrist"]
    names = [f"actuator {name} ctrl {place}" for name, count in (("servo", 3), ("pid", 2)) for place in range(count)]
    assert [entry["name"] for entry in observation_entries(env)][5:] == [*names, "actuator #3 of wrist ctrl"]


@pytest.mark.parametrize(
    ("field", "name", "rows"),
    [
        ("actuator_ctrlrange", "servo", [0, 1, 2]),
        ("actuator_ctrlrange", "pid", [3, 4]),
        ("actuator_gear", "brake", [0]),
        ("actuator_gear", "servo", [1, 2, 3]),
        ("actuator_gear", "pid", [4]),
        ("actuator_damping", "pid", [2]),
    ],
)
def test_named_actuators_have_the_rows_of_their_controls_and_forces(field: str, name: str, rows: Sequence[int]):
    model = mujoco.MjModel.from_xml_string(BOUNDED)
    model.actuator_damping[:] = 1
    drawn = draw_fields(model, 1, torch.Generator().manual_seed(0), scale(field, 2, 2, name))[field][0].numpy()
    changed = (drawn != getattr(model, field)).reshape(len(drawn), -1).any(axis=1)
    assert np.flatnonzero(changed).tolist() == rows


def test_range_of_an_actuator_without_controls_is_refused():
    model = mujoco.MjModel.from_xml_string(BOUNDED)
    change = scale("actuator_ctrlrange", 1, 2, "brake")
    refused(lambda: draw_fields(model, 1, torch.Generator(), change), "actuator 'brake' has no control")

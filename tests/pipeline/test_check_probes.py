"""`saltus check` tries the model: contacts at the start, actions without effect, fields for Warp."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from check_helpers import CART, Cart
from control_helpers import Controls

import envs
from envs import BatchEnv, Task
from pipeline.check.probes import probe_functions, probe_model, probe_warp
from pipeline.check.report import describe_model


def made(task: type[Task]) -> BatchEnv:
    env = envs.make(task, 2, num_threads=1)
    env.reset()
    return env


def warnings(task: type[Task]) -> list[str]:
    return [finding.text for finding in probe_model(made(task))]


class Loose(Controls):
    """Two of its controls have no gain."""

    mjcf = Controls.mjcf.replace('kp="10" kv="1"', 'kp="10" kv="0"').replace('gear="2"', 'gear="0"')


def test_controls_are_named_by_their_actuators() -> None:
    assert warnings(Controls) == []
    assert warnings(Loose) == [
        "actions that change nothing from the initial states: pid vel, #3 of wrist. Check the actuators' gear and "
        "joints, and `control`"
    ]
    actuators = "actuators: brake (0 controls), servo (3 controls), pid (2 controls), #3 of wrist; cameras"
    assert actuators in describe_model(made(Loose))[1]


class Delayed(Cart):
    mjcf = Cart.mjcf.replace('gear="100"', 'gear="100" delay="0.1" nsample="10"')


class DelayedIdle(Cart):
    mjcf = Delayed.mjcf.replace('gear="100"', 'gear="0"')


def test_delayed_actuators_have_an_effect_after_their_delay() -> None:
    assert warnings(Delayed) == []
    assert warnings(DelayedIdle)[0].startswith("actions that change nothing from the initial states: push. Check")


class Paddle(Cart):
    """A mocap body that touches nothing yet."""

    mjcf = Cart.mjcf.replace("</worldbody>", '<body mocap="true" pos="0 0 1"><geom size="0.1"/></body></worldbody>')
    fields = ("qpos", "qvel", "mocap_pos")
    action_low, action_high = (-0.1,) * 3, 0.1

    def control(self, state: Any, action: torch.Tensor) -> Any:
        return {"mocap_pos": state.mocap_pos + action[:, None]}


class Sticky(Cart):
    """An adhesion of a body that touches nothing yet."""

    mjcf = CART.format(actuators='<adhesion body="cart" ctrlrange="0 1"/>')


@pytest.mark.parametrize("task", [Paddle, Sticky])
def test_actions_that_act_in_contact_only_are_not_called_without_effect(task: type[Task]) -> None:
    assert warnings(task) == []


class Late(Cart):
    """Applies each action two steps later."""

    def reset(self, num_envs: int, generator: torch.Generator) -> Any:
        qpos, qvel = super().reset(num_envs, generator)
        return {"qpos": qpos, "qvel": qvel, "sent": torch.zeros(num_envs, 2)}

    def advance(self, state: Any, action: torch.Tensor, generator: torch.Generator) -> Any:
        return {"sent": torch.cat([state.sent[:, 1:], action], dim=-1)}

    def control(self, state: Any, action: torch.Tensor) -> Any:
        return state.sent[:, :1]


class Ignored(Late):
    def control(self, state: Any, action: torch.Tensor) -> Any:
        return 0.3 * torch.ones_like(action)


def test_actions_that_a_task_applies_later_have_an_effect_and_ignored_ones_have_none() -> None:
    assert warnings(Late) == []
    assert [text.split(".")[0] for text in warnings(Ignored)] == [
        "actions that change nothing from the initial states: action 0"
    ]


class Grid(Cart):
    """Begins in states that only the world's number determines."""

    def reset(self, num_envs: int, generator: torch.Generator) -> Any:
        qpos, qvel = Task.reset(self, num_envs, generator)
        return qpos + torch.arange(num_envs)[:, None], qvel


@pytest.mark.parametrize(
    ("task", "found"), [(Grid, True), (Cart, False), (type("One", (Cart,), {"reset": Task.reset}), False)]
)
def test_starts_that_only_the_world_determines_are_noted(task: type[Task], found: bool) -> None:
    findings = [one for one in probe_functions(made(task)) if "begins all its episodes" in one.text]
    assert [one.severity for one in findings] == ["note"] * found


class Soft(Cart):
    mjcf = Cart.mjcf.replace(
        "</worldbody>",
        '<body name="sunk"><flexcomp name="soft" type="grid" count="2 2 2" dim="3" spacing="0.1 0.1 0.1" radius="0.01" '
        'mass="1"/></body></worldbody>',
    )


def test_overlaps_of_flexes_have_their_names() -> None:
    assert warnings(Soft)[0].startswith("geom floor of body world and flex soft overlap by ")


@pytest.mark.parametrize("field", ["site_xquat", "xiquat"])
def test_fields_that_warp_does_not_have_are_noted(field: str) -> None:
    pytest.importorskip("mujoco_warp")
    task = type("ReadsQuaternions", (Cart,), {"fields": ("qpos", "qvel", field)})
    (finding,) = probe_warp(made(task).task, 2)
    assert finding.text.startswith(
        "Warp: not supported, so that a GPU cannot simulate the task. not readable fields of MjData in Warp: "
        f"{field}; readable are "
    )

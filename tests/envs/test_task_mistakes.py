"""Messages for mistakes in tasks and in calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from env_helpers import MODEL, CartBall, equal
from task_helpers import FIELDS, assert_refused
from torch import Tensor

import envs
from envs import State, Task
from saltus.errors import SaltusError


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("Hoper-v5", ["'Hoper-v5'", "did you mean Hopper-v5", "Humanoid-v5", "file.py:ClassName"]),
        ("cheetah", ["did you mean HalfCheetah-v5? The registered tasks are"]),
        ("", ["there is no task ''. The registered tasks are"]),
        (
            "models/crank.xml",
            ["models/crank.xml is a model: `saltus new models/crank.xml` writes a task's file"],
        ),
        ("crank.mjb", ["crank.mjb is a model"]),
        ("Zzz", ["'Zzz'", "HalfCheetah-v5, Hopper-v5"]),
    ],
)
def test_unknown_task_lists_similar_names(name: str, parts: list[str]):
    assert_refused(lambda: envs.make(name, 1), *parts)


def test_unknown_task_without_similar_names_gets_no_guess():
    with pytest.raises(SaltusError, match=r"^(?!.*did you mean)"):
        envs.make("Zzz", 1)


@pytest.mark.parametrize("mjcf", [None, 3])
def test_task_without_a_model_is_refused(mjcf: Any):
    class Empty(CartBall):
        pass

    Empty.mjcf = mjcf
    assert_refused(lambda: envs.make(Empty, 1), "Empty", "mjcf", type(mjcf).__name__)


@pytest.mark.parametrize(
    ("replaced", "by", "parts"),
    [
        ('name="push" joint="slide" gear="20" ctrlrange="-1 1"', 'name="push" joint="slide"', ["push", "ctrlrange"]),
        ('name="servo" joint="hinge" kp="3" ctrlrange="-2 2"', 'joint="hinge" kp="3"', ["#1", "ctrlrange"]),
        (MODEL[MODEL.index("<actuator>") : MODEL.index("<sensor>")], "", ["no actuators"]),
    ],
)
def test_model_needs_bounded_actuators(replaced: str, by: str, parts: list[str]):
    class Other(CartBall):
        mjcf = MODEL.replace(replaced, by)

    assert_refused(lambda: envs.make(Other, 1), "Other", *parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"num_envs": 0}, ["num_envs is 0"]),
        ({"num_envs": -3}, ["num_envs is -3"]),
        ({"num_envs": 1, "seed": -1}, ["seed is -1"]),
        ({"num_envs": 1, "frame_skip": 0}, ["frame_skip", "CartBall", "is 0"]),
        ({"num_envs": 1, "frame_skip": -2}, ["frame_skip", "CartBall", "is -2"]),
        ({"num_envs": 1, "max_episode_steps": 0}, ["max_episode_steps", "CartBall", "is 0"]),
        ({"num_envs": 1, "nose": 3}, ["CartBall", "'nose'", "frame_skip, max_episode_steps, noise, reach"]),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any], parts: list[str]):
    assert_refused(lambda: envs.make(CartBall, **arguments), *parts)


def test_options_with_a_task_instance_are_refused():
    assert_refused(lambda: envs.make(CartBall(), 1, noise=0.1), "noise", "CartBall(...)")

    class Plain(Task):
        mjcf = MODEL

    assert_refused(lambda: envs.make(Plain, 1, noise=0.1), "Plain", "its options are none")


def test_error_in_a_constructor_is_not_taken_for_a_wrong_option():
    class Faulty(CartBall):
        def __init__(self) -> None:
            len(3)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="has no len"):
        envs.make(Faulty, 1)


def test_old_name_of_recompute_derived_is_refused():
    class Old(CartBall):
        fresh = False

    assert_refused(lambda: envs.make(Old, 1), "Old.fresh is now recompute_derived")


def test_registered_name_is_not_replaced():
    before = envs.list_tasks()
    assert_refused(lambda: envs.register("Hopper-v5", CartBall), "'Hopper-v5'")
    assert envs.list_tasks() == before
    assert envs.find_task("Hopper-v5") is not CartBall


TURNING = """<mujoco><worldbody>
  <body name="base"><freejoint/><geom size=".1"/><body><joint name="hip" type="ball"/><geom size=".1"/></body></body>
  <body name="hand" mocap="true"><geom size=".1"/></body>
</worldbody><actuator><motor joint="hip" ctrlrange="-1 1"/></actuator></mujoco>"""


class Turning(Task):
    """Starts with quaternions of norm `norm` in its last world, or sets them."""

    mjcf = TURNING
    norm = 0.0
    where = ""

    def reset(self, num_envs: int, generator: torch.Generator) -> Any:
        qpos, qvel = super().reset(num_envs, generator)
        start = {"qpos": qpos, "qvel": qvel, "mocap_quat": qpos[:, None, 3:7].clone()}
        places = {"base": start["qpos"][:, 3:7], "hip": start["qpos"][:, 7:11], "hand": start["mocap_quat"][:, 0]}
        if self.where in places:
            places[self.where][-1] *= self.norm
        return start

    def control(self, state: State, action: Tensor) -> Any:
        turn = torch.tensor([self.norm if self.where == "control" else 1.0, 0, 0, 0])
        return {"ctrl": action, "mocap_quat": turn.to(state.qpos).repeat(len(state), 1, 1)}

    def observation(self, state: State) -> Tensor:
        return state.qvel

    def reward(self, state: State, action: Tensor, next_state: State) -> Tensor:
        return next_state.qvel[:, 0]


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("base", "reset (qpos) returned a quaternion of zero for free joint #0 of base (qpos[:, 3:7])"),
        ("hip", "reset (qpos) returned a quaternion of zero for ball joint hip (qpos[:, 7:11])"),
        ("hand", "reset (mocap_quat) returned a quaternion of zero for mocap body hand (mocap_quat[:, 0])"),
        ("control", "control (mocap_quat) returned a quaternion of zero for mocap body hand (mocap_quat[:, 0])"),
    ],
)
def test_quaternions_of_zero_are_refused_and_others_normalised(where: str, text: str):
    task = type("Turned", (Turning,), {"where": where})
    assert_refused(lambda: envs.make(task, 2), f"Turned.{text}; (1, 0, 0, 0) is no rotation")
    envs.make(type("Longer", (Turning,), {"where": where, "norm": 2.0}), 2)


def test_worlds_are_not_moved_to_quaternions_of_zero():
    env = envs.make(type("Still", (Turning,), {"norm": 1.0}), 2)
    env.reset()
    qpos, qvel = env.task.reset(2, torch.Generator())["qpos"], env.task.qvel0.repeat(2, 1)
    qpos[1, 7:11] = 0
    assert_refused(lambda: env.set_qpos_qvel(qpos, qvel), "qpos has a quaternion of zero for ball joint hip (qpos[:, 7")


@pytest.mark.parametrize(
    ("action", "parts"),
    [
        (torch.zeros(2, 2), ["(2, 2)", "(3, 2)", "float32"]),
        (torch.zeros(3, 1), ["(3, 1)", "(3, 2)"]),
        (torch.zeros(6), ["(6,)", "(3, 2)"]),
        (torch.zeros(3, 2, dtype=torch.float64), ["float64", "float32"]),
        (torch.zeros(3, 2, dtype=torch.int64), ["int64", "float32"]),
        (torch.tensor([[0.0, 0], [0, 0], [0.5, torch.nan]]), ["world 2", "not finite", "[0.5, nan]"]),
        (torch.tensor([[0.0, 0], [torch.inf, 0], [0, 0]]), ["world 1", "not finite", "inf"]),
    ],
)
def test_wrong_action_is_refused_without_effect(action: Tensor, parts: list[str]):
    env = envs.make(CartBall, 3)
    env.reset()
    before = env.get_state()
    assert_refused(lambda: env.step(action), *parts)
    assert equal(env.get_state(), before)


def test_step_before_reset_is_refused():
    env = envs.make(CartBall, 3)
    assert_refused(lambda: env.step(torch.zeros(3, 2)), "reset()", error=RuntimeError)


WRONG_RESULTS = [
    ("observation", lambda self, state: state.qpos.flatten(), ["(27,)", "(3, obs_dim)"]),
    ("observation", lambda self, state: state.qpos[:1], ["(1, 9)", "(3, obs_dim)"]),
    ("observation", lambda self, state: state.qpos[:, None], ["(3, 1, 9)", "(3, obs_dim)"]),
    ("observation", lambda self, state: state.qpos > 0, ["torch.bool", "floating-point"]),
    ("observation", lambda self, state: state.qpos.long(), ["torch.int64", "floating-point"]),
    ("observation", lambda self, state: state.qpos.numpy(), ["ndarray", "floating-point", "(3, obs_dim)"]),
    ("observation", lambda self, state: None, ["NoneType"]),
    ("observation", lambda self, state: state.qpos.to("meta"), ["meta", "on cpu"]),
    ("observation", lambda self, state: state.qpos[:, :0], ["empty"]),
    ("observation", lambda self, state: state.qpos / 0, ["not finite"]),
    ("reward", lambda self, s, a, n: n.qpos[:, :1], ["(3, 1)", "(3,)"]),
    ("reward", lambda self, s, a, n: n.qpos.mean(), ["()", "(3,)"]),
    ("reward", lambda self, s, a, n: n.qpos[:, 0] > 0, ["torch.bool", "floating-point"]),
    ("reward", lambda self, s, a, n: 1.0, ["float", "(3,)", "terms"]),
    ("reward", lambda self, s, a, n: None, ["NoneType", "(3,)"]),
    ("reward", lambda self, s, a, n: (n.qpos[:, 0], {"height": n.qpos}), ["'height'", "(3, 9)", "(3,)"]),
    ("reward", lambda self, s, a, n: (n.qpos[:, 0], {"height": 1.0}), ["'height'", "float", "(3,)"]),
    ("reward", lambda self, s, a, n: (n.qpos[:, 0], n.qpos[:, 1]), ["dict"]),
    ("reward", lambda self, s, a, n: (n.qpos, {}), ["(3, 9)", "(3,)"]),
    ("terminated", lambda self, state: state.qpos[:, 0], ["torch.float64", "bool"]),
    ("terminated", lambda self, state: state.qpos > 0, ["(3, 9)", "(3,)"]),
    ("terminated", lambda self, state: False, ["a bool", "(3,)"]),
    ("reset", lambda self, n, g: self.qpos0.repeat(n, 1), ["Tensor", "(qpos, qvel)"]),
    ("reset", lambda self, n, g: (self.qpos0, self.qvel0), ["(qpos)", "(9,)", "(3, 9)"]),
    ("reset", lambda self, n, g: (self.qpos0.repeat(n, 1), self.qpos0.repeat(n, 1)), ["(qvel)", "(3, 9)", "(3, 8)"]),
    ("reset", lambda self, n, g: (self.qpos0.repeat(n, 1).long(), self.qvel0.repeat(n, 1)), ["torch.int64"]),
    ("reset", lambda self, n, g: (self.qpos0.repeat(n, 1) / 0, self.qvel0.repeat(n, 1)), ["not finite"]),
    ("reset", lambda self, n, g: None, ["NoneType", "(qpos, qvel)"]),
    ("randomize", lambda self, n, g: {"body_mass": torch.ones(4)}, ["'body_mass'", "(4,)", "(3, 4)"]),
    ("randomize", lambda self, n, g: {"body_mas": torch.ones(3, 4)}, ["'body_mas'", "no such field"]),
    ("randomize", lambda self, n, g: {"body_mass": np.ones((3, 4))}, ["'body_mass'", "ndarray"]),
    ("randomize", lambda self, n, g: {"nbody": torch.ones(3)}, ["'nbody'"]),
    ("randomize", lambda self, n, g: None, ["NoneType"]),
]


@pytest.mark.parametrize(("function", "wrong", "parts"), WRONG_RESULTS)
def test_wrong_result_names_the_function_and_the_expected_result(function: str, wrong: Callable, parts: list[str]):
    task = type("Wrong", (CartBall,), {function: wrong})
    assert_refused(lambda: envs.make(task, 3), f"Wrong.{function}", *parts)


FLOAT32 = torch.ones(9, 2)

MIXED_DTYPES = [
    ("observation", lambda self, state: state.qpos @ FLOAT32),
    ("observation", lambda self, state: torch.nn.functional.linear(state.qpos, FLOAT32.T)),
    ("reward", lambda self, s, a, n: torch.einsum("ni,ni->n", n.qpos[:, :2], a)),
    ("reward", lambda self, s, a, n: torch.lerp(n.qpos[:, 0], a[:, 0], 0.5)),
    ("reward", lambda self, s, a, n: torch.linalg.solve(n.qpos[:, :1, None], a[:, :1])[:, 0]),
    ("terminated", lambda self, state: torch.isclose(state.qpos[:, 0], FLOAT32[:3, 0])),
    ("control", lambda self, state, action: action @ self.qpos0.new_ones(2, 2)),
    ("reset", lambda self, n, g: (self.qpos0.repeat(n, 1), torch.ones(n, 9) @ self.qpos0.new_ones(9, 8))),
    ("advance", lambda self, s, a, g: {"goal": s.qpos.clone().index_put_((torch.tensor([0]),), a[0, 0])}),
]
DTYPES = (
    "dtypes differ. States and self.qpos0 are torch.float64 here, and torch.float32 on a GPU; actions are "
    "torch.float32. Convert others with .to(self.qpos0), constant tensors in `bind`"
)


def fail(error: Exception) -> Callable:
    def function(*_: Any) -> None:
        raise error

    return function


CALLED_WRONGLY = [
    *((function, wrong, DTYPES) for function, wrong in MIXED_DTYPES),
    (
        "terminated",
        lambda self, s: s.qpos[:, 0] > 1 and s.qpos[:, 1] > 1,
        "Use torch.where, &, |, ~, torch.minimum and",
    ),
    (
        "reward",
        lambda self, s, a, n: max(n.qpos[:, 0], 0.5),
        "Use torch.where, &, |, ~, torch.minimum and torch.maximum",
    ),
    ("observation", lambda self, s: math.sin(s.qpos[:, 0]), "Use torch's functions, such as torch.sin"),
    ("reward", lambda self, s, a, n: n.qpos[:, 0].item(), "Use torch's functions, such as"),
    # Errors on a GPU.
    (
        "observation",
        fail(TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor")),
        "NumPy does not read a GPU's tensors. Use torch's functions",
    ),
    (
        "observation",
        fail(RuntimeError("Expected all tensors to be on the same device, but found at least two devices")),
        "Make tensors with device=self.qpos0.device, and constant ones in `bind`",
    ),
    (
        "reset",
        fail(RuntimeError("Expected a 'cpu' device type for generator but found 'cuda'")),
        "Pass device=generator.device",
    ),
]


@pytest.mark.parametrize(("function", "wrong", "advice"), CALLED_WRONGLY)
def test_common_errors_of_torch_name_the_function_its_line_and_what_to_write(
    function: str, wrong: Callable, advice: str
):
    with pytest.raises(SaltusError) as caught:
        envs.make(type("Wrong", (CartBall,), {function: wrong}), 3)
    line = wrong.__code__.co_firstlineno + (wrong.__name__ == "function")
    assert str(caught.value).startswith(f"Wrong.{function} fails in test_task_mistakes.py:{line} (")
    assert advice in str(caught.value)


def test_other_errors_of_torch_keep_their_type():
    task = observe(lambda state: state.qpos @ state.qpos)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        envs.make(task, 3)


@pytest.mark.parametrize("function", ["observation", "reward"])
def test_missing_function_is_named(function: str):
    task = type("Lacking", (CartBall,), {function: getattr(Task, function)})
    assert_refused(
        lambda: envs.make(task, 1),
        f"Lacking does not define {function}: add {function}(self, state",
        "tensor of shape (1,",
    )


def observe(read: Callable[[State], Any], fields: tuple[str, ...] = FIELDS) -> type[Task]:
    return type("Asking", (CartBall,), {"fields": fields, "observation": lambda self, state: read(state)})


@pytest.mark.parametrize(
    ("kind", "existing"),
    [
        ("body", ["world", "cart", "pole", "ball"]),
        ("joint", ["slide", "hinge", "free"]),
        ("geom", ["floor", "box", "rod", "sphere"]),
        ("site", ["tip"]),
        ("actuator", ["push", "servo"]),
        ("tendon", ["cable"]),
        ("sensor", ["tip_position", "hinge_velocity", "imu"]),
    ],
)
def test_wrong_name_lists_existing_names(kind: str, existing: list[str]):
    attribute = {"joint": "qpos", "actuator": "ctrl", "tendon": "length"}.get(kind, "xpos")

    def read(state: State) -> Tensor:
        named = getattr(state, kind)("nobody")
        return named if kind == "sensor" else getattr(named, attribute)

    assert_refused(lambda: envs.make(observe(read), 1), kind, "'nobody'", *existing, error=AttributeError)


def test_wrong_attribute_lists_existing_attributes():
    task = observe(lambda state: state.body("pole").xposs)
    assert_refused(lambda: envs.make(task, 1), "body", "'xposs'", "xpos", "xquat", error=AttributeError)


@pytest.mark.parametrize(
    ("read", "field"),
    [
        (lambda state: state.xpos, "xpos"),
        (lambda state: state.body("pole").xpos, "xpos"),
        (lambda state: state.sensor("imu"), "sensordata"),
        (lambda state: state.site("tip").xmat, "site_xmat"),
        (lambda state: state.actuator("push").force, "actuator_force"),
    ],
)
def test_undeclared_field_is_named(read: Callable, field: str):
    assert_refused(
        lambda: envs.make(observe(read, ("qpos", "qvel")), 1), repr(field), "('qpos', 'qvel')", error=AttributeError
    )


def test_unknown_declared_field_is_named():
    task = observe(lambda state: state.qpos, ("qpos", "qvel", "xpoz"))
    assert_refused(lambda: envs.make(task, 1), "xpoz", "xpos", "qpos")

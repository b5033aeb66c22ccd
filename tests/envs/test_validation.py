"""Mistakes of users that are found when an environment is made, or at the call that contains them."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import mujoco
import numpy as np
import pytest
import torch
from env_helpers import MODEL, Actions, CartBall, equal, qpos_qvel
from torch import Tensor

import envs
from envs import Task, scale_masses
from saltus.errors import SaltusError


def refused(make: Callable[[], Any], *parts: str, error: type[Exception] = SaltusError) -> None:
    with pytest.raises(error) as caught:
        make()
    missing = [part for part in parts if part not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"


def variant(function: str, body: Callable[..., Any]) -> type[Task]:
    """CartBall with another function, which every check but those of its results accepts."""
    return type("Wrong", (CartBall,), {function: body})


def in_place(state: Any) -> Any:
    state.qpos[:, 0] -= 1
    return state


def drifting(self: Task, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    self.qpos0[0] += 0.1
    return self.qpos0.repeat(num_envs, 1), self.qvel0.repeat(num_envs, 1)


def spoiled_action(self: Task, state: Any, action: Tensor, next_state: Any) -> Tensor:
    action.clamp_(-0.1, 0.1)
    return next_state.qpos[:, 0]


REFUSED: list[tuple[str, Callable[..., Any], list[str]]] = [
    # Worlds mixed: by a mean, one world for all, the last one, a neighbour, a normalisation, a sorted batch.
    ("observation", lambda self, s: s.qpos - s.qpos.mean(), ["mixes worlds", "dim=-1"]),
    ("observation", lambda self, s: s.qpos - s.qpos.mean(dim=0), ["mixes worlds"]),
    ("observation", lambda self, s: s.qpos - s.qpos[0], ["mixes worlds"]),
    ("observation", lambda self, s: s.qpos - s.qpos[-1:], ["mixes worlds"]),
    ("observation", lambda self, s: s.qpos + s.qpos.roll(1, 0), ["mixes worlds"]),
    ("observation", lambda self, s: s.qpos.sort(dim=0).values, ["mixes worlds"]),
    ("reward", lambda self, s, a, n: n.qpos[:, 0] - n.qpos.max(), ["mixes worlds"]),
    ("reward", lambda self, s, a, n: n.qpos.mean().expand(len(n)), ["mixes worlds"]),
    ("reward", lambda self, s, a, n: (n.qpos[:, 0], {"all": n.qvel.sum().expand(len(n))}), ["mixes worlds"]),
    ("reward", lambda self, s, a, n: (a - a.mean(0)).square().sum(-1), ["mixes worlds"]),
    ("reward", lambda self, s, a, n: s.qpos[:, 0] - s.qpos[:, 0].mean(), ["mixes worlds"]),
    # Arguments changed in place.
    ("observation", lambda self, s: in_place(s).qpos, ["changes state.qpos in place", "clone"]),
    ("reward", lambda self, s, a, n: in_place(s).qpos[:, 0], ["changes state.qpos in place"]),
    ("reward", lambda self, s, a, n: in_place(n).qpos[:, 0], ["changes state.qpos in place"]),
    ("reward", spoiled_action, ["changes its action in place"]),
    ("terminated", lambda self, s: in_place(s).qpos[:, 0] > 9, ["changes state.qpos in place"]),
    ("reset", drifting, ["changes self.qpos0", "in place"]),
    # Not finite, but not at the first state.
    ("reward", lambda self, s, a, n: n.qpos[:, 0] * math.nan, ["not finite", "one step"]),
    ("reward", lambda self, s, a, n: n.qpos[:, 0] / 0, ["not finite", "one step"]),
    ("reward", lambda self, s, a, n: n.qpos[:, 4] + 1e300, ["not finite in float32", "one step"]),
    ("reward", lambda self, s, a, n: (n.qpos[:, 0], {"x": n.qpos[:, 0] / 0}), ["term 'x'", "not finite", "one step"]),
    ("observation", lambda self, s: s.qpos + 1e300, ["not finite in float32", "initial state"]),
    ("observation", lambda self, s: torch.where(s.time[:, None] > 0, math.nan, s.qpos), ["not finite", "one step"]),
]


@pytest.mark.parametrize(("function", "body", "parts"), REFUSED)
def test_mistake_is_refused_at_construction(function: str, body: Callable[..., Any], parts: list[str]):
    task = variant(function, body)
    task.fields = (*CartBall.fields, "time")
    refused(lambda: envs.make(task, 5), f"Wrong.{function}", *parts)


@pytest.mark.parametrize("name", ["", " ", "x\ny", 1, None])
def test_terms_have_names_of_columns(name: Any):
    task = variant("reward", lambda self, s, a, n: (n.qpos[:, 0], {name: n.qpos[:, 0]}))
    refused(lambda: envs.make(task, 5), "Wrong.reward", f"a term named {name!r}; expected a printable name")


@pytest.mark.parametrize("timestep", ["0", "-0.002"])
def test_time_that_stands_still_is_refused(timestep: str):
    class Still(CartBall):
        mjcf = CartBall.mjcf.replace("0.005", timestep)

    refused(lambda: envs.make(Still, 2), "Still", "timestep", "above 0")


@pytest.mark.parametrize("scale", [-1, math.nan, math.inf])
@pytest.mark.parametrize("task", ["Ant-v5", "Hopper-v5", "HalfCheetah-v5", "Humanoid-v5", "InvertedPendulum-v5"])
def test_scale_of_initial_noise_is_0_or_more(task: str, scale: float):
    refused(lambda: envs.make(task, 2, reset_noise_scale=scale), f"reset_noise_scale is {scale}", "0 or more")


@pytest.mark.parametrize("body", [lambda self, s: s.qpos[:, 0] > -9, lambda self, s: torch.ones(len(s)).bool()])
def test_episodes_of_one_step_are_refused_in_many_worlds(body: Callable[..., Any]):
    task = variant("terminated", body)
    refused(lambda: envs.make(task, 32), "Wrong.terminated", "every episode would have one step")
    with pytest.warns(UserWarning, match="terminated is true at 31 of 31 initial states"):
        envs.make(task, 31)  # which may be chance


def test_task_that_was_checked_before_is_checked_for_forms_only():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs.make(variant("reward", lambda self, s, a, n: n.qpos[:, 0] - n.qpos[:, 0].mean()), 4, check_task=False)
        envs.make(variant("terminated", lambda self, s: torch.ones(len(s)).bool()), 40, check_task=False)
    scalar = variant("reward", lambda self, s, a, n: n.qpos.sum())
    refused(lambda: envs.make(scalar, 4, check_task=False), "Wrong.reward", "shape ()")


def counting(self: Task, state: Any) -> Tensor:
    self.count = getattr(self, "count", 0) + 1
    return state.qpos + self.count


WARNED: list[tuple[str, Callable[..., Any], str]] = [
    ("reset", lambda self, n, g: (self.qpos0 + torch.rand(n, 9), self.qvel0.repeat(n, 1)), "reset .*equal generators"),
    (
        "reset",
        lambda self, n, g: (self.qpos0 + torch.as_tensor(np.random.rand(n, 9)), self.qvel0.repeat(n, 1)),
        "reset .*equal generators",
    ),
    ("observation", lambda self, s: s.qpos + torch.rand_like(s.qpos), "observation .*the same state"),
    ("observation", counting, "observation .*the same state"),
    ("reward", lambda self, s, a, n: torch.rand(len(n)), "reward .*the same state"),
    ("terminated", lambda self, s: torch.rand(len(s)) > 0.5, "terminated .*the same state"),
    ("randomize", lambda self, n, g: {"body_mass": 1 + torch.rand(n, 4)}, "randomize .*equal generators"),
    ("terminated", lambda self, s: s.qpos[:, 0] > 0, r"terminated is true at \d+ of 40 initial states"),
]


@pytest.mark.parametrize(("function", "body", "message"), WARNED)
@pytest.mark.filterwarnings("ignore:Wrong")
def test_doubtful_task_is_warned_about(function: str, body: Callable[..., Any], message: str):
    with pytest.warns(UserWarning, match=rf"Wrong\.{message}"):
        envs.make(variant(function, body), 40).reset()


ACCEPTED: list[tuple[str, Callable[..., Any]]] = [
    ("observation", lambda self, s: s.qpos - s.qpos.mean(dim=-1, keepdim=True)),
    ("observation", lambda self, s: torch.cat([s.qpos.sin(), s.qvel.tanh() * 1e3], -1)),
    ("observation", lambda self, s: s.qpos @ torch.ones(9, 300, dtype=s.qpos.dtype)),
    ("observation", lambda self, s: s.qpos + torch.arange(len(s))[:, None]),  # a constant of its own for each world
    ("observation", lambda self, s: s.qpos.clone().clamp_(-0.1, 0.1)),
    ("reward", lambda self, s, a, n: n.qvel.norm(dim=-1)),
    ("reward", lambda self, s, a, n: a.square().sum(-1)),
    ("terminated", lambda self, s: s.qpos[:, 0].abs() > 5),
]


@pytest.mark.parametrize(("function", "body"), ACCEPTED)
@pytest.mark.parametrize("num_envs", [1, 2, 7])
def test_sound_task_is_accepted_without_a_warning(function: str, body: Callable[..., Any], num_envs: int):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs.make(variant(function, body), num_envs).reset()


def test_checks_do_not_change_what_follows():
    """The first draw of the environment's generator is its first initial state."""
    env = envs.make(CartBall, 4, seed=3)
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(3).generate_state(1)[0]))
    qpos, qvel = env.task.reset(4, generator)
    env.reset()
    assert torch.equal(env.state.qpos, qpos)
    assert torch.equal(env.state.qvel, qvel)
    assert env.statistics()["steps"] == 0


def test_physics_that_fails_at_every_initial_state_is_refused_with_mujocos_words():
    boxes = "".join(f'<body pos="{i} 0 .09"><freejoint/><geom type="box" size=".1 .1 .1"/></body>' for i in range(8))
    xml = f"""<mujoco><size memory="12K"/><worldbody><geom type="plane" size="5 5 .1"/>{boxes}
    <body pos="0 0 9"><joint name="j"/><geom size=".1"/></body></worldbody>
    <actuator><motor joint="j" ctrlrange="-1 1"/></actuator></mujoco>"""

    class Heap(CartBall):
        mjcf = xml
        fields = ("qpos", "qvel")
        reset, observation = Task.reset, lambda self, state: state.qpos
        reward, terminated = lambda self, state, action, next_state: next_state.qpos[:, 0], Task.terminated

    refused(lambda: envs.make(Heap, 2), "Heap", "initial state", "stack overflow", "raise <size memory=.../>")


def test_physics_that_fails_in_the_first_step_is_warned_about():
    xml = HINGE.format('<motor joint="j" ctrlrange="1 2" gear="1e15"/>')
    with pytest.warns(
        UserWarning, match="physics of task Strong fails in the first step, with random controls: it div"
    ):
        envs.make(type("Strong", (Hinge,), {"mjcf": xml}), 2)


# Results that change after construction


def later(function: str) -> Callable[[Task, Callable[[Any], Any]], None]:
    """A way to replace what one of the task's functions returns."""

    def change(task: Task, spoil: Callable[[Any], Any]) -> None:
        original = getattr(task, function)
        setattr(task, function, lambda *arguments: spoil(original(*arguments)))

    return change


LATER: list[tuple[str, Callable[[Any], Any], list[str]]] = [
    ("observation", lambda value: value[:, :1], ["(3, 1)", "(3, 23)"]),
    ("observation", lambda value: value.sum(), ["()", "(3, 23)"]),
    ("observation", lambda value: value.numpy(), ["ndarray", "(3, 23)"]),
    ("reward", lambda value: value[0].mean(), ["()", "(3,)"]),
    ("reward", lambda value: value[0][:, None], ["(3, 1)", "(3,)"]),
    ("reward", lambda value: (1.0, value[1]), ["a float", "(3,)"]),
    ("reward", lambda value: None, ["a NoneType", "(3,)"]),
    ("reward", lambda value: (value[0], {name: one.mean() for name, one in value[1].items()}), ["terms", "height ()"]),
    ("reward", lambda value: (value[0], dict.fromkeys(value[1], 0.0)), ["terms", "height ()"]),
    ("terminated", lambda value: value.any(), ["()", "bool", "(3,)"]),
    ("terminated", lambda value: value.double(), ["float64", "bool"]),
]


@pytest.mark.parametrize(("function", "spoil", "parts"), LATER)
def test_result_that_changes_its_form_is_refused(function: str, spoil: Callable[[Any], Any], parts: list[str]):
    env = envs.make(CartBall, 3)
    env.reset()
    later(function)(env.task, spoil)
    refused(lambda: env.step(torch.zeros(3, 2)), f"CartBall.{function}", *parts)


def test_initial_states_that_change_their_form_are_refused():
    env = envs.make(CartBall, 3)
    later("reset")(env.task, lambda start: (start[0][:1], start[1]))
    refused(env.reset, "(1, 9)", "(3, 9)")


# Gradients


def test_learned_functions_and_actions_need_no_detach():
    class Learned(CartBall):
        weight: ClassVar[Tensor] = torch.nn.Parameter(torch.ones(9, dtype=torch.float64))

        def observation(self, state: Any) -> Tensor:
            return state.qpos * self.weight

        def reward(self, state: Any, action: Tensor, next_state: Any) -> Tensor:
            return next_state.qpos @ self.weight

    for normalized in (True, False):
        learned, plain = (envs.make(Learned, 2, normalized_actions=normalized) for _ in range(2))
        assert torch.equal(learned.reset(), plain.reset())
        action = Actions(plain)()
        with torch.enable_grad():
            transition, obs = learned.step(action.clone().requires_grad_())
        assert equal(transition, plain.step(action)[0])
        assert not any(value.requires_grad for value in [obs, *transition.values(True, True)])


@pytest.mark.parametrize(
    "action", [[[0.0, 0.0]] * 2, np.zeros((2, 2), np.float32), None], ids=["list", "array", "None"]
)
def test_action_of_another_type_is_refused(action: Any):
    env = envs.make(CartBall, 2)
    env.reset()
    refused(
        lambda: env.step(action), f"the action is a {type(action).__name__}", "torch.float32 tensor of shape (2, 2)"
    )


# Arguments


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"num_envs": 2.0}, "num_envs is 2.0"),
        ({"num_envs": "4"}, "num_envs is '4'"),
        ({"num_envs": None}, "num_envs is None"),
        ({"num_envs": True}, "num_envs is True"),
        ({"num_envs": 2, "seed": False}, "seed is False"),
        ({"num_envs": 2, "seed": None}, "seed is None"),
        ({"num_envs": 2, "seed": 0.5}, "seed is 0.5"),
        ({"num_envs": 2, "frame_skip": 2.5}, "frame_skip of task CartBall is 2.5"),
        ({"num_envs": 2, "frame_skip": "2"}, "frame_skip of task CartBall is '2'"),
        ({"num_envs": 2, "max_episode_steps": math.inf}, "max_episode_steps of task CartBall is inf"),
    ],
)
def test_count_that_is_not_whole_is_refused(arguments: dict[str, Any], name: str):
    def make() -> None:
        task = CartBall(**{key: value for key, value in arguments.items() if key not in ("num_envs", "seed")})
        envs.BatchEnv(task, arguments["num_envs"], seed=arguments.get("seed", 0))

    refused(make, name, "it must be a whole number")


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e12])
def test_placement_that_mujoco_would_reset_is_refused(which: int, value: float):
    env = envs.make(CartBall, 3)
    env.reset()
    before, state = env.get_state(), qpos_qvel(env)
    state[which][1, 2] = value
    refused(lambda: env.set_qpos_qvel(*state), f"{('qpos', 'qvel')[which]}[1, 2] is {value}", "finite", "1e+10")
    assert equal(env.get_state(), before)


def test_placement_of_another_type_is_refused():
    env = envs.make(CartBall, 1)
    env.reset()
    refused(lambda: env.set_qpos_qvel(np.zeros((1, 9)), torch.zeros(1, 8)), "qpos is a ndarray", "tensor")


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (np.ones(3, bool), "the mask is a ndarray"),
        (torch.ones(3), "the mask is torch.float32 of shape (3,)"),
        (torch.ones(3, 1, dtype=torch.bool), "the mask is torch.bool of shape (3, 1)"),
    ],
)
def test_impossible_masks_are_refused(mask: Any, found: str):
    env = envs.make(CartBall, 3)
    with pytest.raises(RuntimeError, match=r"call reset\(\) before reset\(mask\)"):
        env.reset(torch.ones(3, dtype=torch.bool))
    env.reset()
    refused(lambda: env.reset(mask), found, "torch.bool", "(3,)")


def test_impossible_seeds_are_refused():
    env = envs.make(CartBall, 1)
    refused(lambda: env.seed(-1), "seed is -1", "whole number, 0 or more")


# Bounds of actuators

HINGE = (
    '<mujoco><worldbody><body><joint name="j" range="-1 1"/><geom size=".1"/></body></worldbody>'
    "<actuator>{}</actuator></mujoco>"
)
UNBOUNDED = [
    ('<motor name="m" joint="j"/>', ['m (its ctrlrange, "0 0", is missing or empty)', "inheritrange"]),
    ('<motor joint="j" ctrlrange="0 0"/>', ["#0", "is missing or empty"]),
    ('<motor joint="j" ctrlrange="1 -1"/>', ['"1 -1", is empty: its lower end is not below its upper end']),
    ('<motor joint="j" ctrlrange="1 1"/>', ['"1 1", is empty']),
    ('<motor joint="j" ctrlrange="-1 1" ctrllimited="false"/>', ['"-1 1"', 'ctrllimited="false"', "remove"]),
    ('<motor joint="j" ctrlrange="-inf inf"/>', ['"-inf inf", is not finite']),
    ('<motor joint="j" ctrlrange="-1e300 1e300"/>', ["is not finite"]),
    ('<position joint="j"/>', ["is missing", 'inheritrange="1"']),
    ('<motor joint="j" ctrlrange="-1 1"/><velocity name="v" joint="j"/>', ["v (its", 'ctrlrange="-1 1"/>']),
]


class Hinge(Task):
    """A hinge whose actuators each test sets."""

    def observation(self, state: Any) -> Tensor:
        return state.qpos

    def reward(self, state: Any, action: Tensor, next_state: Any) -> Tensor:
        return next_state.qpos[:, 0]


@pytest.mark.parametrize(("actuator", "parts"), UNBOUNDED)
def test_actuator_without_usable_bounds_is_told_how_to_get_them(actuator: str, parts: list[str]):
    task = type("Free", (Hinge,), {"mjcf": HINGE.format(actuator)})
    refused(lambda: envs.make(task, 1), "actuators of task Free without usable bounds", *parts)


@pytest.mark.parametrize(
    ("actuator", "bounds"),
    [
        ('<motor joint="j" ctrlrange="-2 3"/>', (-2, 3)),
        ('<motor joint="j" ctrllimited="true" ctrlrange="0 1"/>', (0, 1)),
        ('<position joint="j" inheritrange="1"/>', (-math.pi / 180, math.pi / 180)),
    ],
)
def test_bounded_actuator_is_accepted(actuator: str, bounds: tuple[float, float]):
    env = envs.make(type("Bounded", (Hinge,), {"mjcf": HINGE.format(actuator)}), 1)
    assert [float(env.control_low), float(env.control_high)] == pytest.approx(bounds)


# State

NEAR_MISSES: list[tuple[Callable[[Any], Any], list[str]]] = [
    (lambda state: state.qposs, ["state.qposs", "Did you mean", "qpos"]),
    (lambda state: state.bodies, ["state.bodies", "state.body(name)"]),
    (lambda state: state.cameras, ["state.cameras", "camera", "state.camera(name)"]),
    (lambda state: state.light("sun"), ["state.light", "state.camera(name)"]),
    (lambda state: state.body_mass, ["state.body_mass", "self.model"]),
    (lambda state: state.model, ["state.model", "self.model"]),
    (lambda state: state.contact, ["state.contact", "nor a field of MjData that can be read in a batch"]),
    (lambda state: state.cvel, ["add 'cvel' to `fields`"]),
    (lambda state: state.camera("eye").xpos, ["add 'cam_xpos' to `fields`"]),
    (lambda state: state.camera("nose").xpos, ["no camera 'nose'", "eye"]),
    (lambda state: state.geom("rod").size, ["a geom has no 'size'", "xpos", "self.model.geom('rod') has it"]),
    (lambda state: state.joint("hinge").damping, ["self.model.joint('hinge') has it"]),
]


@pytest.mark.parametrize(("read", "parts"), NEAR_MISSES)
def test_near_miss_in_a_state_gets_a_hint(read: Callable[[Any], Any], parts: list[str]):
    task = type("Asking", (CartBall,), {"observation": lambda self, state: read(state)})
    refused(lambda: envs.make(task, 1), *parts, error=AttributeError)


def test_cameras_are_read_by_name():
    class Watching(CartBall):
        fields = (*CartBall.fields, "cam_xpos", "cam_xmat")

        def observation(self, state: Any) -> Tensor:
            return torch.cat([state.camera("eye").xpos, state.camera("eye").xmat], -1)

    env = envs.make(Watching, 2)
    first = env.reset()
    camera = env.physics.mj_data(1).camera("eye")
    assert torch.equal(first[1], torch.as_tensor(np.concatenate([camera.xpos, camera.xmat])).float())


# Randomised fields

WRONG_FIELDS: list[tuple[dict[str, Any], list[str]]] = [
    ({"body_mas": torch.ones(3, 4)}, ["MjModel has no such field", "did you mean body_mass"]),
    ({"gravity": torch.ones(3, 3)}, ["MjModel has no such field", "opt.gravity"]),
    ({"opt.gravty": torch.ones(3, 3)}, ["MjModel has no such field", "opt.gravity"]),
    ({"opt.gravity": torch.ones(3)}, ["'opt.gravity'", "(3,)", "(3, 3)"]),
    ({"opt.timestep": torch.ones(3)}, ["'opt.timestep'", "one timestep"]),
    ({"opt": torch.ones(3)}, ["MjModel has no such field"]),
    ({"body_mass": torch.full((3, 4), math.nan)}, ["'body_mass'", "not finite"]),
    ({"body_mass": -torch.ones(3, 4)}, ["'body_mass'", "negative"]),
    ({"names_bodyadr": torch.ones(3, 1)}, ["'names_bodyadr'"]),
    ({"jnt_qposadr": torch.full((3, 3), 2**30, dtype=torch.int32)}, ["'jnt_qposadr'", "indices"]),
    ({"geom_type": torch.ones(3, 3, dtype=torch.int32)}, ["'geom_type'", "only floating-point fields"]),
]


@pytest.mark.parametrize(("fields", "parts"), WRONG_FIELDS)
def test_wrong_model_field_is_named(fields: dict[str, Any], parts: list[str]):
    task = variant("randomize", lambda self, num_envs, generator: fields)
    refused(lambda: envs.make(task, 3), "Wrong.randomize", *parts)


@pytest.mark.parametrize("factors", ["per world", "per body"])
def test_scaled_masses_are_those_of_a_model_compiled_with_them(factors: str):
    """Scaling masses and inertias alike is what MuJoCo compiles for another density."""
    model = mujoco.MjModel.from_xml_string(MODEL)
    factor = torch.tensor([1.0, 2.0]) if factors == "per world" else torch.tensor([1.0, 2.0])[:, None].repeat(1, 4)
    heavier = MODEL.replace('mass="1"', 'mass="2"').replace('mass=".3"', 'mass=".6"').replace('mass=".2"', 'mass=".4"')

    class Scaled(CartBall):
        def randomize(self, num_envs: int, generator: torch.Generator) -> dict[str, Tensor]:
            return scale_masses(self.model, factor)

    env = envs.make(Scaled, 2)
    for world, expected in enumerate((model, mujoco.MjModel.from_xml_string(heavier))):
        found = env.physics.world_model(world)
        for name in ("body_mass", "body_inertia", "body_subtreemass", "dof_M0"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-12)


@pytest.mark.parametrize(
    ("factor", "parts"),
    [
        (torch.ones(2, 3), ["(2, 3)", "(N,) or (N, 4)"]),
        (torch.tensor(2.0), ["()", "(N,) or (N, 4)"]),
        (2.0, ["a float", "(N,) or (N, 4)"]),
        (torch.tensor([1.0, 0.0]), ["factor of 0.0", "positive"]),
        (torch.tensor([1.0, -1.0]), ["factor of -1.0", "positive"]),
        (torch.tensor([1.0, math.nan]), ["positive"]),
    ],
)
def test_wrong_mass_factors_are_refused(factor: Any, parts: list[str]):
    refused(lambda: scale_masses(mujoco.MjModel.from_xml_string(MODEL), factor), "scale_masses", *parts)


def test_randomize_gets_a_cpu_generator_and_the_seed_decides():
    class Random(CartBall):
        devices: ClassVar[list[str]] = []

        def randomize(self, num_envs: int, generator: torch.Generator) -> dict[str, Tensor]:
            self.devices.append(str(generator.device))
            return scale_masses(self.model, 1 + torch.rand(num_envs, generator=generator))

    first, again, other = (envs.make(Random, 2, seed=seed).physics.world_model(1).body_mass for seed in (1, 1, 2))
    assert set(Random.devices) == {"cpu"}
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_documented_kinds_of_named_objects_exist():
    from envs import state

    model = mujoco.MjModel.from_xml_string(MODEL)
    data = mujoco.MjData(model)
    for kind, owner in itertools.product(state._NAMED, (envs.State, data)):
        assert hasattr(owner, kind)


# OpenGL


@pytest.mark.parametrize(
    "command", [["-m", "saltus", "train", "--help"], ["-c", "import envs"]], ids=["command line", "library"]
)
def test_opengl_library_that_does_not_load_is_named(command: list[str]):
    result = subprocess.run(
        [sys.executable, *command], env=os.environ | {"MUJOCO_GL": "foo"}, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert "MuJoCo cannot load the OpenGL library that MUJOCO_GL=foo names" in result.stderr
    assert "Unset MUJOCO_GL" in result.stderr
    if "saltus" in command:
        assert "Traceback" not in result.stderr

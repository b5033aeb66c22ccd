"""Mistakes in arguments, bounds of actuators, names in a state and randomised fields."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import mujoco
import numpy as np
import pytest
import torch
from env_helpers import MODEL, CartBall, equal, qpos_qvel
from torch import Tensor
from validation_helpers import HINGE, Hinge, refused, variant

import envs
from envs import scale_masses

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


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("CartBall", {}, "the task of BatchEnv is 'CartBall'; expected an object of a subclass of saltus.Task"),
        (CartBall, {}, "CartBall'>; expected an object of a subclass"),
        (CartBall(), {"simulation": 3}, "simulation is 3; it must be an object of saltus.Simulation, or None"),
    ],
)
def test_other_objects_are_no_tasks_and_simulations(task: Any, options: dict[str, Any], message: str):
    refused(lambda: envs.BatchEnv(task, 2, **options), message)


def test_counts_that_mujoco_cannot_take_are_refused():
    """Its message would be the signature of a C++ function."""
    refused(lambda: envs.BatchEnv(CartBall(), 10**12), "num_envs is 1000000000000; it must be at most 2,147,483,647")
    refused(lambda: envs.Simulation(num_threads=2**31), "num_threads is 2147483648; it must be at most 2,147,483,647")


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
    with pytest.raises(RuntimeError, match=r"call reset\(\) before reset\(mask\)$"):
        env.reset(torch.ones(3, dtype=torch.bool))
    env.reset()
    refused(lambda: env.reset(mask), found, "torch.bool", "(3,)")


def test_impossible_seeds_are_refused():
    env = envs.make(CartBall, 1)
    refused(lambda: env.seed(-1), "seed is -1", "whole number, 0 or more")


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


STILL = [
    ({"mjcf": "<mujoco><worldbody><geom size='.1'/></worldbody></mujoco>"}, "has no joints, so nothing in it moves"),
    ({"fields": ()}, "the task has no fields, and no tensors of its own: name the fields that its functions read"),
]


@pytest.mark.parametrize(("attributes", "text"), STILL)
def test_tasks_in_which_nothing_moves_or_is_read_are_refused(attributes: dict[str, Any], text: str):
    motor = HINGE.format('<motor joint="j" ctrlrange="-1 1"/>')
    functions = {"observation": lambda self, state: torch.zeros(1, 1), "reward": lambda *_: torch.zeros(1)}
    refused(lambda: envs.make(type("Still", (Hinge,), {"mjcf": motor, **functions, **attributes}), 1), text)


# State

NEAR_MISSES: list[tuple[Callable[[Any], Any], list[str]]] = [
    (lambda state: state.qposs, ["state.qposs", "did you mean qpos"]),
    (lambda state: state.bodies, ["state.bodies", "state.body(name)"]),
    (lambda state: state.cameras, ["state.cameras", "camera", "state.camera(name)"]),
    (lambda state: state.light("sun"), ["state.light", "state.camera(name)"]),
    (lambda state: state.body_mass, ["state.body_mass", "self.model"]),
    (lambda state: state.model, ["state.model", "self.model"]),
    (lambda state: state.contact, ["state.contact", "nor a field of MjData that can be read in a batch"]),
    (lambda state: state.cvel, ["add 'cvel' to `fields`"]),
    (lambda state: state.camera("eye").xpos, ["add 'cam_xpos' to `fields`"]),
    (lambda state: state.camera("nose").xpos, ["no camera 'nose'", "eye"]),
    (lambda state: state.camera(1).xpos, ["no camera 1", "Valid indices from 0 to 0"]),
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
    ({"body_mass": torch.zeros(3, 4)}, ["'body_mass'", "it holds 0", "masses of 0"]),
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

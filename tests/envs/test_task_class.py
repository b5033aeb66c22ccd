"""Mistakes in a Task class: found before an object is made of it, with the right way to write it."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import mujoco
import pytest
import torch
from env_helpers import MODEL, CartBall

import envs
from envs import Task, task_ref
from envs.task_class import MAKE_ARGUMENTS, SIGNATURES, check_class
from envs.tasks import BUILT_IN
from envs.tasks.hopper import Hopper
from saltus.errors import SaltusError, warn_once


@pytest.fixture(autouse=True)
def warn_again() -> None:
    warn_once.cache_clear()


def assert_refused(call: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(SaltusError) as caught:
        call()
    assert [part for part in parts if part not in str(caught.value)] == [], str(caught.value)


def with_option(name: str, **options: Any) -> type[Task]:
    namespace = {"__annotations__": {name: float}, name: field(default=1.0, **options)}
    return dataclass(type("Mine", (CartBall,), namespace))


# Names


def test_arguments_of_make_are_known() -> None:
    arguments = {*inspect.signature(envs.make).parameters} - {"options"}
    assert set(MAKE_ARGUMENTS) == arguments | {item.name for item in dataclasses.fields(envs.Simulation)}


def test_functions_of_a_task_are_known() -> None:
    functions = {name: value for name, value in vars(Task).items() if inspect.isfunction(value)}
    assert {name: ("self", *arguments) for name, arguments in SIGNATURES.items()} == {
        name: tuple(inspect.signature(function).parameters) for name, function in functions.items()
    }


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *((name, "which is an argument of saltus.make") for name in MAKE_ARGUMENTS),
        *((name, "which is a function of Task") for name in SIGNATURES),
        *((name, "which saltus sets when it compiles the model") for name in ("model", "qpos0", "qvel0", "dt")),
    ],
)
@pytest.mark.parametrize("load", ["make", "register", "find"])
def test_reserved_name_of_an_option_is_refused(
    name: str, part: str, load: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = with_option(name)
    monkeypatch.setattr(task_ref, "_registry", {"Mine-v0": task})
    calls: dict[str, Callable[[], Any]] = {
        "make": lambda: envs.make(task, 1),
        "register": lambda: envs.register("Mine-v0", task),
        "find": lambda: envs.find_task("Mine-v0"),
    }
    assert_refused(calls[load], "task Mine", repr(name), part, "choose another name")


@pytest.mark.parametrize("name", ["model", "qpos0", "qvel0", "dt"])
def test_attribute_that_saltus_sets_is_refused(name: str) -> None:
    for value in (0.1, property(lambda self: 0.1)):
        assert_refused(lambda: envs.make(type("Mine", (CartBall,), {name: value}), 1), "Mine defines", repr(name))  # noqa: B023


def test_reserved_argument_of_a_constructor_is_refused() -> None:
    class Mine(CartBall):
        def __init__(self, seed: int = 0):
            pass

    assert_refused(lambda: envs.make(Mine, 1), "option 'seed'", "argument of saltus.make")


@pytest.mark.parametrize("name", ["mjcf", "frame_skip", "max_episode_steps", "gain", "time", "gravity", "policy"])
def test_other_names_of_options_work(name: str) -> None:
    value = {"mjcf": MODEL}.get(name, 2)
    task = dataclass(type("Mine", (CartBall,), {"__annotations__": {name: object}, name: value}))
    assert getattr(envs.make(task, 1, **{name: value}).task, name) == value


@pytest.mark.parametrize("default", [{}, {"scale": 2.0}], ids=["required", "optional"])
@pytest.mark.parametrize("hint", [InitVar[float], "InitVar[float]"])
def test_init_var_is_refused(default: dict[str, float], hint: object) -> None:
    namespace = {
        "__annotations__": {"scale": hint},
        "__module__": __name__,
        "__post_init__": lambda self, scale: None,
        **default,
    }
    task = dataclass(type("Mine", (CartBall,), namespace), kw_only=True)
    for load in (lambda: envs.make(task, 1, scale=1.0), lambda: envs.register("Mine-v0", task)):
        assert_refused(load, "task Mine has the InitVar 'scale'", "make it a field", "read self.scale in __post_init__")


def test_class_variable_is_no_init_var() -> None:
    @dataclass
    class Mine(CartBall):
        table: ClassVar[tuple[int, ...]] = (1, 2)

    assert envs.make(Mine, 1).task.table == (1, 2)


def test_fields_that_the_constructor_does_not_take_work() -> None:
    @dataclass
    class Mine(CartBall):
        width: float = 0.5
        inverse: float = field(init=False)

        def __post_init__(self) -> None:
            self.inverse = 1 / self.width

    assert envs.make(Mine, 1, width=0.25).task.inverse == 4
    assert_refused(
        lambda: envs.make(Mine, 1, inverse=4), "'inverse'", "frame_skip, max_episode_steps, noise, reach, width"
    )


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("terminate", "terminated"),
        ("randomise", "randomize"),
        ("frameskip", "frame_skip"),
        ("max_episode_step", "max_episode_steps"),
        ("resets", "reset"),
        ("field", "fields"),
    ],
)
def test_near_miss_of_an_attribute_is_warned_about(name: str, close: str) -> None:
    base = type("Base", (Task,), {"mjcf": MODEL, "observation": CartBall.observation, "reward": CartBall.reward})
    with pytest.warns(UserWarning, match=f"saltus does not use Mine.{name}; did you mean {close}?"):
        check_class(type("Mine", (base,), {name: None}))


@pytest.mark.parametrize("task", [*BUILT_IN.values(), CartBall], ids=lambda task: task.__name__)
def test_sound_class_passes_without_a_warning(task: type[Task]) -> None:
    helpers = {"_terminated": None, "rewards": None, "observation_scale": 2, "reset_noise": 0.1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_class(task)
        check_class(type("Mine", (task,), helpers))


# Inherited options


def test_new_default_without_dataclass_is_refused() -> None:
    class LongHopper(Hopper):
        max_episode_steps = 50
        healthy_reward: float = 0.0

    assert_refused(
        lambda: envs.make(LongHopper, 1),
        "LongHopper sets max_episode_steps, healthy_reward without effect",
        "@dataclass",
        "max_episode_steps: int = ...; healthy_reward: float = ...",
    )
    assert_refused(lambda: envs.make(type("Longer", (LongHopper,), {}), 1), "LongHopper sets")


def test_new_default_without_a_type_is_refused() -> None:
    @dataclass
    class LongHopper(Hopper):
        max_episode_steps = 50

    assert_refused(lambda: envs.make(LongHopper, 1), "LongHopper sets max_episode_steps", "max_episode_steps: int")


def test_new_default_in_a_dataclass_works() -> None:
    @dataclass
    class LongHopper(Hopper):
        max_episode_steps: int = 50
        healthy_reward: ClassVar[float] = 0.5

    class Another(LongHopper):
        bonus = 3.0

    for cls in (LongHopper, Another):
        task = envs.make(cls, 1).task
        assert (task.max_episode_steps, task.healthy_reward) == (50, 0.5)


# Fields, step counts, signatures


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ("qpos", ["the string 'qpos'", "fields = ('qpos',)"]),
        (None, ["None", "tuple of names"]),
        ((1,), ["(1,)", "tuple of names"]),
        ({"qpos"}, ["{'qpos'}", "tuple of names"]),
    ],
)
def test_wrong_fields_are_refused(fields: Any, parts: list[str]) -> None:
    assert_refused(lambda: envs.make(type("Mine", (CartBall,), {"fields": fields}), 1), "Mine.fields is", *parts)


@pytest.mark.parametrize("name", ["frame_skip", "max_episode_steps"])
@pytest.mark.parametrize("value", [2.5, "4", float("inf"), None, True])
def test_wrong_step_count_is_refused(name: str, value: Any) -> None:
    functions = {"observation": CartBall.observation, "reward": CartBall.reward}
    task = type("Mine", (Task,), {"mjcf": MODEL, name: value, **functions})
    assert_refused(lambda: envs.make(task, 1), f"Mine.{name} is {value!r}", "whole number")


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("reset", lambda self: None),
        ("reset", lambda self, generator: None),
        ("observation", lambda self: None),
        ("observation", lambda: None),
        ("observation", staticmethod(lambda self, state: None)),
        ("observation", lambda self, state, *, scale: None),
        ("reward", lambda self, state, action: None),
        ("reward", lambda self, state, action, next_state, info: None),
        ("terminated", lambda self, state, action: None),
        ("randomize", lambda self, generator: None),
        ("bind", lambda self, model: None),
        ("observation", None),
        ("terminated", False),
        ("observation", property(lambda self: None)),
    ],
)
def test_wrong_signature_is_refused_with_the_right_one(name: str, function: Any) -> None:
    right = f"def {name}({', '.join(('self', *SIGNATURES[name]))})"
    assert_refused(lambda: envs.make(type("Mine", (CartBall,), {name: function}), 1), f"Mine.{name}", right)


@pytest.mark.parametrize(
    "function",
    [
        CartBall.observation,
        lambda self, state, scale=1.0: CartBall.observation(self, state),
        lambda self, s: CartBall.observation(self, s),
        lambda *arguments: CartBall.observation(*arguments),
        staticmethod(lambda state: state.qpos),
        classmethod(lambda cls, state: state.qpos),
        functools.partial(lambda scale, state: scale * state.qpos, 2.0),
        torch.no_grad()(CartBall.observation),
    ],
)
def test_right_signatures_work(function: Any) -> None:
    assert envs.make(type("Mine", (CartBall,), {"observation": function}), 1).reset().shape[0] == 1


# Arguments of make


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"task": None, "num_envs": 1}, ["None is not a task", "'Hopper-v5'", "path/to/file.py:ClassName"]),
        ({"task": {}, "num_envs": 1}, ["{} is not a task"]),
        ({"task": Task, "num_envs": 1}, ["is not a task"]),
        ({"task": dict, "num_envs": 1}, ["is not a task"]),
        ({"task": Path("a.py"), "num_envs": 1}, ["is not a task"]),
        *(
            ({"task": "Hopper-v5", "num_envs": value}, [f"num_envs is {value!r}; it must be a whole number"])
            for value in ("4", 4.0, None, True, [1])
        ),
        *(
            ({"task": "Hopper-v5", "num_envs": 1, "seed": value}, [f"seed is {value!r}; it must be a whole number"])
            for value in (None, 0.5, "1")
        ),
        ({"task": "Hopper-v5", "num_envs": 1, "reset_noise_scale": "a"}, ["'reset_noise_scale'", "'a'", "type float"]),
        ({"task": "Hopper-v5", "num_envs": 1, "frame_skip": 2.5}, ["'frame_skip'", "2.5", "type int"]),
        (
            {"task": "Hopper-v5", "num_envs": 1, "physic": "cpu"},
            ["'physic'", "those of the simulation are physics, num_threads", "did you mean physics?"],
        ),
        ({"task": "Hopper-v5", "num_envs": 1, "fields": ()}, ["'fields'", "its options are xml_file, healthy_z_range"]),
    ],
)
def test_arguments_of_wrong_types_are_refused(arguments: dict[str, Any], parts: list[str]) -> None:
    assert_refused(lambda: envs.make(**arguments), *parts)


def test_attribute_of_a_plain_class_is_no_option() -> None:
    task = type(
        "Mine", (Task,), {"mjcf": MODEL, "gain": 2.0, "observation": CartBall.observation, "reward": CartBall.reward}
    )
    assert_refused(
        lambda: envs.make(task, 1, gain=3.0), "'gain'", "options are none", "fields of a class with @dataclass"
    )


def test_class_of_an_object_is_checked() -> None:
    assert_refused(lambda: envs.make(type("Mine", (CartBall,), {"fields": "qpos"})(), 1), "fields = ('qpos',)")


def test_error_in_post_init_keeps_its_traceback() -> None:
    @dataclass
    class Mine(CartBall):
        links: int = 3

        def __post_init__(self) -> None:
            self.links["three"]  # type: ignore[index]

    with pytest.raises(TypeError, match="'int' object is not subscriptable") as caught:
        envs.make(Mine, 1)
    assert caught.traceback[-1].name == "__post_init__"


# Models


@pytest.mark.parametrize(
    ("mjcf", "parts"),
    [
        (None, ["has no model", "XML string", "got NoneType"]),
        (mujoco.MjSpec.from_string(MODEL).compile(), ["compiled already", "mujoco.MjSpec", "got MjModel"]),
        (MODEL.encode(), ["has no model", "got bytes"]),
        (Path, ["has no model", "got type"]),
        ("models", ["there is no file", "models"]),
    ],
)
def test_wrong_model_is_refused(mjcf: Any, parts: list[str]) -> None:
    assert_refused(lambda: envs.make(type("Mine", (CartBall,), {"mjcf": mjcf}), 1), "task Mine", *parts)


HINGE = """<mujoco><worldbody><body><joint name="hinge"/><geom size="0.1"/></body></worldbody>
<actuator><motor joint="hinge" ctrlrange="-1 1"/></actuator></mujoco>"""


class Pole(BUILT_IN["InvertedPendulum-v5"]):  # type: ignore[misc]
    """A built-in task with a model of the user's."""

    mjcf = HINGE

    def terminated(self, state: envs.State) -> torch.Tensor:
        return torch.zeros(len(state), dtype=torch.bool)


def test_model_of_a_subclass_of_a_built_in_task_is_used() -> None:
    assert envs.make(Pole, 1).physics.model.nq == 1
    assert_refused(lambda: envs.make(Pole, 1, xml_file="hopper.xml"), "xml_file has no effect", "Pole", "`mjcf`")


def test_xml_file_is_gymnasiums_or_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = envs.make("Hopper-v5", 1).task.mjcf.read_text()
    for name in ("mine.xml", "models/mine.xml", "hopper.xml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(model.replace("</mujoco>", '<option gravity="0 0 -1"/></mujoco>'))
    monkeypatch.chdir(tmp_path)

    def gravity(xml_file: str) -> float:
        return float(envs.make("Hopper-v5", 1, xml_file=xml_file).physics.model.opt.gravity[2])

    for name in ("mine.xml", "models/mine.xml", "./mine.xml", "./hopper.xml", str(tmp_path / "hopper.xml")):
        assert gravity(name) == -1
    with pytest.warns(
        UserWarning, match=r"hopper\.xml is Gymnasium's model; for the file in the current folder write \./hop"
    ):
        assert gravity("hopper.xml") == -9.81
    assert_refused(lambda: gravity("other.xml"), f"there is no file {tmp_path}/other.xml", "hopper.xml, humanoid.xml")

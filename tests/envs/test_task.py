"""Tasks of a user's own: files, named access, derived fields, randomised models, and messages for mistakes."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import mujoco
import numpy as np
import pytest
import torch
from env_helpers import MODEL, Actions, CartBall, equal, qpos_qvel, same_bits, spy
from torch import Tensor

import envs
from envs import BatchEnv, State, Task, task_ref
from saltus.errors import SaltusError

# Files


def task_file(x_of_pole: float = 0.0) -> str:
    """A user's file. The options and the model appear in its observations."""
    return f'''
from __future__ import annotations

from dataclasses import dataclass

import torch

from envs import Task


@dataclass
class MyTask(Task):
    """Start at {x_of_pole}."""

    mjcf = "models/cart.xml"
    frame_skip: int = 2
    start: float = {x_of_pole}

    def reset(self, num_envs, generator):
        qpos, qvel = super().reset(num_envs, generator)
        qpos[:, 0] = self.start
        return qpos, qvel

    def observation(self, state):
        return torch.cat([state.qpos, state.qvel], dim=-1)

    def reward(self, state, action, next_state):
        return next_state.joint("slide").qpos[:, 0]


class NotATask:
    pass
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_task(tmp_path / "mine")


def write_task(folder: Path, model: str = MODEL, **options: Any) -> Path:
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "cart.xml").write_text(model)
    (folder / "my_task.py").write_text(task_file(**options))
    return folder


def test_task_file_finds_its_model_in_its_folder(folder: Path):
    env = envs.make(f"{folder}/my_task.py:MyTask", 3, start=0.25)
    obs = env.reset()
    assert obs[:, 0].tolist() == [0.25] * 3
    assert (env.observation_dim, env.action_dim) == (9 + 8, 2)
    transition, _ = env.step(Actions(env)())
    assert torch.equal(transition["next", "reward"], transition["next", "observation"][:, :1])
    assert (env.task.frame_skip, env.task.start) == (2, 0.25)


def test_relative_task_file_starts_at_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder.parent)
    env = envs.make("mine/my_task.py:MyTask", 1)
    monkeypatch.chdir("/")
    assert envs.make(type(env.task), 1).observation_dim == env.observation_dim


def test_two_files_of_the_same_name_do_not_conflict(tmp_path: Path):
    one = write_task(tmp_path / "one", model=MODEL.replace('kp="3"', 'kp="1"'), x_of_pole=0.1)
    two = write_task(tmp_path / "two", model=MODEL.replace('kp="3"', 'kp="2"'), x_of_pole=0.2)
    tasks = [envs.find_task(f"{folder}/my_task.py:MyTask") for folder in (one, two)]
    made = [envs.make(task, 1) for task in tasks]
    assert [env.reset()[0, 0].item() for env in made] == pytest.approx([0.1, 0.2])
    assert [env.physics.model.actuator("servo").gainprm[0] for env in made] == [1.0, 2.0]


@pytest.mark.parametrize(
    "mjcf", [MODEL, mujoco.MjSpec.from_string(MODEL), "path", Path], ids=["string", "spec", "absolute path", "Path"]
)
def test_model_is_a_string_a_spec_or_a_path(mjcf: Any, tmp_path: Path):
    file = tmp_path / "cart.xml"
    file.write_text(MODEL)

    class Mine(CartBall):
        pass

    Mine.mjcf = {"path": str(file), Path: file}.get(mjcf, mjcf) if mjcf in ("path", Path) else mjcf
    ours, theirs = envs.make(Mine, 2), envs.make(CartBall, 2)
    assert torch.equal(ours.reset(), theirs.reset())
    action = Actions(ours)()
    assert equal(ours.step(action)[0], theirs.step(action)[0])


def test_task_of_a_notebook_takes_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its class belongs to a module without a file; only a relative path needs one."""
    (tmp_path / "cart.xml").write_text(MODEL)
    monkeypatch.setitem(sys.modules, "notebook", types.ModuleType("notebook"))
    cls = type("Mine", (CartBall,), {"mjcf": tmp_path / "cart.xml", "__module__": "notebook"})
    assert envs.make(cls, 1).reset().shape == (1, 23)
    cls.mjcf = "cart.xml"
    with pytest.raises(SaltusError, match=r"cart\.xml"):
        envs.make(cls, 1)


def test_gymnasium_tasks_take_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = envs.make("Hopper-v5", 1).task.mjcf.read_text()
    (tmp_path / "slow.xml").write_text(model.replace("</mujoco>", '<option gravity="0 0 -1"/></mujoco>'))
    monkeypatch.chdir(tmp_path)
    for xml_file in (str(tmp_path / "slow.xml"), "./slow.xml"):
        assert envs.make("Hopper-v5", 1, xml_file=xml_file).physics.model.opt.gravity[2] == -1


def test_task_is_a_name_a_class_or_an_instance(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(task_ref, "_registry", dict(task_ref._registry))
    envs.register("CartBall-v0", CartBall)
    assert "CartBall-v0" in envs.list_tasks()
    made = [envs.make(task, 2, seed=3) for task in ("CartBall-v0", CartBall, CartBall())]
    starts = [env.reset() for env in made]
    assert torch.equal(starts[0], starts[1])
    assert torch.equal(starts[0], starts[2])


def test_frozen_dataclass_and_plain_class_are_tasks():
    @dataclass(frozen=True)
    class Frozen(Task):
        mjcf: ClassVar[str] = MODEL
        factor: float = 2.0

        def observation(self, state: State) -> Tensor:
            return self.factor * state.qpos

        def reward(self, state: State, action: Tensor, next_state: State) -> Tensor:
            return next_state.qpos[:, 0]

    class Plain(Task):
        mjcf = MODEL
        observation, reward = Frozen.observation, Frozen.reward
        factor = 2.0

    for task in (Frozen, Plain):
        env = envs.make(task, 2)
        assert torch.equal(env.reset(), 2 * env.task.qpos0.float().repeat(2, 1))
        assert not env.step(Actions(env)())[0]["next", "done"].any()


def test_one_task_instance_serves_two_envs():
    task = CartBall()
    one, other = BatchEnv(task, 2, seed=0), BatchEnv(task, 3, seed=0)
    alone = envs.make(CartBall, 2, seed=0)
    draw = Actions(one)
    assert torch.equal(one.reset(), alone.reset())
    other.reset()
    action = draw()
    other.step(Actions(other)())
    assert equal(one.step(action)[0], alone.step(action)[0])


def test_task_need_not_declare_qpos():
    """The default `terminated` reads no field."""

    class Imu(Task):
        mjcf = MODEL
        fields = ("sensordata",)

        def observation(self, state: State) -> Tensor:
            return state.sensor("imu")

        def reward(self, state: State, action: Tensor, next_state: State) -> Tensor:
            return next_state.sensor("hinge_velocity")[:, 0]

    env = envs.make(Imu, 2)
    env.reset()
    assert not env.step(Actions(env)())[0]["next", "done"].any()


# Named access and derived fields

POSITION = ("xpos", "xquat", "xipos", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat", "ten_length", "cam_xpos")
VELOCITY = ("cvel", "actuator_velocity", "ten_velocity", "qfrc_bias")
ACCELERATION = ("qacc", "actuator_force", "qfrc_actuator", "cfrc_ext", "cacc")
FIELDS = ("qpos", "qvel", "ctrl", "actuator_length", "sensordata", "time", *POSITION, *VELOCITY, *ACCELERATION)


class Recomputed(CartBall):
    """Reads all fields, of the state after the step."""

    fields = FIELDS

    def terminated(self, state: State) -> Tensor:
        return torch.zeros(len(state), dtype=torch.bool)


class Lagging(Recomputed):
    """Reads all fields, as mj_step leaves them."""

    recompute_derived = False


class Reference:
    """One world simulated by mj_step, from the same initial state."""

    def __init__(self, env: BatchEnv, world: int):
        self._frame_skip = env.task.frame_skip
        self.model = env.physics.model
        self.data = mujoco.MjData(self.model)
        qpos, qvel = qpos_qvel(env)
        self.data.qpos[:], self.data.qvel[:] = qpos[world], qvel[world]
        mujoco.mj_forward(self.model, self.data)

    def step(self, ctrl: Tensor) -> None:
        self.data.ctrl[:] = ctrl
        mujoco.mj_step(self.model, self.data, self._frame_skip)
        mujoco.mj_rnePostConstraint(self.model, self.data)

    def forwarded(self) -> mujoco.MjData:
        """A new MjData in the same state, after mj_forward."""
        data = mujoco.MjData(self.model)
        data.qpos[:], data.qvel[:], data.ctrl[:] = self.data.qpos, self.data.qvel, self.data.ctrl
        data.time = self.data.time
        mujoco.mj_forward(self.model, data)
        return data


def walk(task: type[Task], steps: int = 60) -> Iterator[tuple[State, list[Reference]]]:
    """Step an env and references together; yield the state that the task observed, and the references."""
    env = envs.make(task, 3, seed=2, normalized_actions=False)
    shown = spy(env.task, "observation")
    env.reset()
    references = [Reference(env, world) for world in range(3)]
    draw = Actions(env)
    for _ in range(steps):
        action = draw()
        env.step(action)
        for world, reference in enumerate(references):
            reference.step(action[world])
        yield shown[-1][0][0], references


def test_lagging_fields_equal_those_after_mj_step():
    contacts = 0
    for state, references in walk(Lagging):
        for world, reference in enumerate(references):
            contacts += reference.data.ncon
            for field in FIELDS:
                theirs = np.asarray(getattr(reference.data, field), dtype=np.float64)
                assert same_bits(getattr(state, field)[world], theirs), field
    assert contacts > 100


@pytest.mark.parametrize("field", ["qpos", "qvel", "ctrl", "time", *POSITION, *VELOCITY, "actuator_length"])
def test_recomputed_fields_describe_the_new_state(field: str):
    differs = False
    for state, references in walk(Recomputed, steps=30):
        for world, reference in enumerate(references):
            ours = getattr(state, field)[world]
            assert same_bits(ours, np.asarray(getattr(reference.forwarded(), field), dtype=np.float64))
            differs |= not same_bits(ours, np.asarray(getattr(reference.data, field), dtype=np.float64))
    assert differs == (field not in ("qpos", "qvel", "ctrl", "time")), "lagging fields would pass this test, too"


@pytest.mark.parametrize("field", ACCELERATION)
def test_acceleration_fields_describe_the_last_physics_step(field: str):
    contacts = 0
    for state, references in walk(Recomputed):
        for world, reference in enumerate(references):
            contacts += reference.data.ncon
            assert same_bits(getattr(state, field)[world], getattr(reference.data, field))
    assert contacts > 100


def test_accelerometer_describes_the_last_physics_step():
    for state, references in walk(Recomputed, steps=20):
        for world, reference in enumerate(references):
            assert same_bits(state.sensor("imu")[world], reference.data.sensor("imu").data)


def test_recompute_derived_does_not_change_the_motion():
    one, other = envs.make(Recomputed, 3, seed=1), envs.make(Lagging, 3, seed=1)
    draw = Actions(one)
    one.reset()
    other.reset()
    for _ in range(50):
        action = draw()
        one.step(action)
        other.step(action)
        for ours, theirs in zip(qpos_qvel(one), qpos_qvel(other), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("kind", "name", "attribute", "shape"),
    [
        ("body", "cart", "xpos", (3,)),
        ("body", "ball", "xquat", (4,)),
        ("body", "pole", "xipos", (3,)),
        ("body", "pole", "cvel", (6,)),
        ("joint", "slide", "qpos", (1,)),
        ("joint", "hinge", "qvel", (1,)),
        ("joint", "free", "qpos", (7,)),
        ("joint", "free", "qvel", (6,)),
        ("geom", "sphere", "xpos", (3,)),
        ("geom", "rod", "xmat", (9,)),
        ("site", "tip", "xpos", (3,)),
        ("site", "tip", "xmat", (9,)),
        ("actuator", "push", "ctrl", (1,)),
        ("actuator", "servo", "force", (1,)),
        ("actuator", "servo", "length", (1,)),
        ("actuator", "push", "velocity", (1,)),
        ("tendon", "cable", "length", (1,)),
        ("tendon", "cable", "velocity", (1,)),
        ("sensor", "tip_position", "data", (3,)),
        ("sensor", "hinge_velocity", "data", (1,)),
        ("sensor", "imu", "data", (3,)),
    ],
)
def test_named_access_equals_mujocos(kind: str, name: str, attribute: str, shape: tuple[int, ...]):
    for state, references in walk(Lagging, steps=8):
        named = getattr(state, kind)(name)
        ours = named if kind == "sensor" else getattr(named, attribute)
        assert ours.shape == (3, *shape)
        for world, reference in enumerate(references):
            theirs = getattr(getattr(reference.data, kind)(name), attribute)
            assert same_bits(ours[world], np.reshape(theirs, shape)), world


def test_initial_states_have_all_fields_computed():
    for task in (Recomputed, Lagging):
        env = envs.make(task, 3)
        shown = spy(env.task, "observation")
        env.reset()
        for world in range(3):
            data = Reference(env, world).data
            for field in (*POSITION, *VELOCITY, "qacc", "sensordata"):
                assert same_bits(getattr(shown[-1][0][0], field)[world], getattr(data, field)), field


def test_mj_data_is_one_world_after_mj_forward():
    env = envs.make(CartBall, 3, seed=4)
    env.reset()
    env.step(Actions(env)())
    before = env.get_state()
    qpos, _ = qpos_qvel(env)
    for world in range(3):
        data = env.physics.mj_data(world)
        assert same_bits(qpos[world], data.qpos)
        theirs = mujoco.MjData(env.physics.model)
        theirs.qpos[:] = qpos[world]
        mujoco.mj_kinematics(env.physics.model, theirs)
        assert same_bits(data.xpos, theirs.xpos)
        data.qpos[:] = 99
    assert equal(env.get_state(), before)


# Randomised models


class RandomMass(CartBall):
    """Masses and damping differ between worlds."""

    def randomize(self, num_envs: int, generator: torch.Generator) -> dict[str, Tensor]:
        mass = torch.from_numpy(self.model.body_mass).repeat(num_envs, 1)
        mass[:, 2:] *= 1 + torch.rand(num_envs, 2, generator=generator, dtype=mass.dtype)
        damping = torch.rand(num_envs, self.model.nv, generator=generator)
        self.drawn = {"body_mass": mass, "dof_damping": damping}
        return self.drawn


def single_model(env: BatchEnv, world: int) -> mujoco.MjModel:
    """One world's model, with constants derived by MuJoCo."""
    model = mujoco.MjSpec.from_string(MODEL).compile()
    for name, values in env.task.drawn.items():
        getattr(model, name)[:] = values[world].numpy()
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


def test_randomised_worlds_move_like_single_models():
    env = envs.make(RandomMass, 3, seed=6, normalized_actions=False)
    env.reset()
    models = [single_model(env, world) for world in range(3)]
    datas = [mujoco.MjData(model) for model in models]
    qpos, qvel = qpos_qvel(env)
    for world, (model, data) in enumerate(zip(models, datas, strict=True)):
        data.qpos[:], data.qvel[:] = qpos[world], qvel[world]
        mujoco.mj_forward(model, data)
    draw = Actions(env)
    for _ in range(60):
        action = draw()[:1].repeat(3, 1)
        assert not env.step(action)[0]["next", "done"].any()
        qpos, qvel = qpos_qvel(env)
        for world, (model, data) in enumerate(zip(models, datas, strict=True)):
            data.ctrl[:] = action[world]
            mujoco.mj_step(model, data, env.task.frame_skip)
            assert same_bits(qpos[world], data.qpos)
            assert same_bits(qvel[world], data.qvel)
    assert len(qpos.unique(dim=0)) == 3


def test_derived_constants_follow_masses_and_inertias_do_not():
    env = envs.make(RandomMass, 3, seed=6)
    plain = mujoco.MjModel.from_xml_string(MODEL)
    for world in range(3):
        ours, theirs = env.physics.world_model(world), single_model(env, world)
        for constant in ("body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0", "actuator_acc0"):
            assert same_bits(getattr(ours, constant), getattr(theirs, constant)), constant
            assert not same_bits(getattr(ours, constant), getattr(plain, constant)), constant
        assert same_bits(ours.body_inertia, plain.body_inertia), "inertias do not follow masses"


def test_randomised_models_survive_resets_and_depend_on_the_seed():
    def masses(env: BatchEnv) -> np.ndarray:
        return np.stack([env.physics.world_model(world).body_mass for world in range(3)])

    env = envs.make(RandomMass, 3, seed=6, max_episode_steps=2)
    first = masses(env)
    env.reset()
    for _ in range(6):
        env.step(Actions(env)())
    assert same_bits(masses(env), first)
    assert same_bits(masses(envs.make(RandomMass, 3, seed=6)), first)
    assert not (masses(envs.make(RandomMass, 3, seed=7)) == first)[:, 2:].any()


def test_mocap_body_starts_at_the_position_of_its_worlds_model():
    class Target(CartBall):
        mjcf = MODEL.replace("<worldbody>", '<worldbody><body name="target" mocap="true" pos="1 2 3"/>')
        fields = ("qpos", "qvel", "xpos", "sensordata")

        def randomize(self, num_envs: int, generator: torch.Generator) -> dict[str, Tensor]:
            positions = torch.from_numpy(self.model.body_pos).repeat(num_envs, 1, 1)
            positions[:, 1] = torch.rand(num_envs, 3, generator=generator)
            return {"body_pos": positions}

    env = envs.make(Target, 3)
    shown = spy(env.task, "observation")
    env.reset()
    ours = shown[-1][0][0].body("target").xpos
    theirs = [env.physics.world_model(world).body("target").pos for world in range(3)]
    assert same_bits(ours, np.stack(theirs))


# Messages for mistakes


def assert_refused(make: Callable[[], Any], *parts: str, error: type[Exception] = SaltusError) -> None:
    """Assert that `make` raises `error` with a message that contains all of `parts`."""
    with pytest.raises(error) as caught:
        make()
    missing = [part for part in parts if part not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("Hoper-v5", ["'Hoper-v5'", "did you mean Hopper-v5", "Humanoid-v5", "file.py:ClassName"]),
        ("hopper", ["Hopper-v5"]),
        ("Zzz", ["'Zzz'", "HalfCheetah-v5, Hopper-v5"]),
    ],
)
def test_unknown_task_lists_similar_names(name: str, parts: list[str]):
    assert_refused(lambda: envs.make(name, 1), *parts)


def test_unknown_task_without_similar_names_gets_no_guess():
    with pytest.raises(SaltusError, match=r"^(?!.*did you mean)"):
        envs.make("Zzz", 1)


def test_missing_file_or_class_is_named(folder: Path):
    assert_refused(lambda: envs.make("nowhere/t.py:T", 1), f"{Path.cwd()}/nowhere/t.py", "nowhere/t.py:T")
    file = f"{folder}/my_task.py"
    for name in ("MyTsk", "NotATask", "torch"):
        assert_refused(lambda name=name: envs.make(f"{file}:{name}", 1), repr(name), "it has MyTask", "my_task.py")


def test_error_in_a_users_file_is_not_wrapped(folder: Path):
    (folder / "my_task.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(ModuleNotFoundError, match="nothing_of_this_name"):
        envs.make(f"{folder}/my_task.py:MyTask", 1)


def test_missing_model_is_named_with_its_folder(folder: Path):
    (folder / "models" / "cart.xml").unlink()
    assert_refused(
        lambda: envs.make(f"{folder}/my_task.py:MyTask", 1), str(folder / "models" / "cart.xml"), "MyTask", str(folder)
    )


def test_model_that_does_not_compile_keeps_mujocos_message(folder: Path):
    for broken, message in (
        ("<mujoco><worldbody><body><geom/></body></worldbody></mujoco>", "size 0 must be positive in geom"),
        ("<mujoco><worldbod/></mujoco>", "unrecognized element"),
        ("<mujoco>", "XML"),
    ):
        (folder / "models" / "cart.xml").write_text(broken)
        assert_refused(lambda: envs.make(f"{folder}/my_task.py:MyTask", 1), "MyTask", message)

        class Text(CartBall):
            mjcf = broken

        assert_refused(lambda text=Text: envs.make(text, 1), "Text", message)
    spec = mujoco.MjSpec()
    spec.worldbody.add_body().add_freejoint()

    class Specced(CartBall):
        mjcf = spec

    assert_refused(lambda: envs.make(Specced, 1), "Specced", "mass and inertia")


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


@pytest.mark.parametrize("function", ["observation", "reward"])
def test_missing_function_is_named(function: str):
    task = type("Lacking", (CartBall,), {function: getattr(Task, function)})
    assert_refused(lambda: envs.make(task, 1), f"Lacking does not define {function}")


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

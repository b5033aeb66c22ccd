"""Tasks of a user's own, and their files."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import mujoco
import pytest
import torch
from env_helpers import MODEL, Actions, CartBall, equal
from task_helpers import assert_refused
from torch import Tensor

import envs
from envs import BatchEnv, State, Task, task_ref
from saltus.errors import SaltusError


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


def test_missing_file_or_class_is_named(folder: Path):
    assert_refused(lambda: envs.make("nowhere/t.py:T", 1), f"{Path.cwd()}/nowhere/t.py", "nowhere/t.py:T")
    file = f"{folder}/my_task.py"
    for name in ("MyTsk", "NotATask", "torch"):
        assert_refused(lambda name=name: envs.make(f"{file}:{name}", 1), repr(name), "it has MyTask", "my_task.py")


def test_error_in_a_users_file_is_not_wrapped(folder: Path):
    (folder / "my_task.py").write_text("{}['absent']\n")
    with pytest.raises(KeyError, match="absent"):
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

"""Models inside installed packages."""

from __future__ import annotations

import sys
from pathlib import Path

import mujoco
import pytest
import torch
from env_helpers import CartBall

import envs
from envs.task import load_model
from pipeline.new.command import new_task
from saltus.errors import SaltusError

HOPPER = "package:gymnasium/envs/mujoco/assets/hopper.xml"
OBJ = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"
GROUND = '<worldbody><geom name="ground" type="plane" size="1 1 1"/></worldbody>'
MODEL = """<mujoco><compiler meshdir="meshes"/><include file="parts/ground.xml"/><asset><mesh file="body.obj"/></asset>
<worldbody><body><joint name="slide" type="slide"/><geom type="mesh" mesh="body"/></body></worldbody>
<actuator><motor joint="slide" ctrlrange="-1 1"/></actuator></mujoco>"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a model, its include and its mesh, which fails when it is imported."""
    folder = tmp_path / "site" / "robots_of_test"
    for name, text in {
        "__init__.py": "raise RuntimeError('imported')",
        "one/robot.xml": MODEL,
        "one/meshes/body.obj": OBJ,
        "one/parts/ground.xml": f"<mujoco>{GROUND}</mujoco>",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(folder.parent)
    return folder


def model_of(mjcf: str) -> mujoco.MjModel:
    return load_model(type("Mine", (envs.Task,), {"mjcf": mjcf})())


def test_model_of_a_package_has_its_includes_and_meshes_and_imports_nothing(package: Path):
    model = model_of("package:robots_of_test/one/robot.xml")
    assert model.geom("ground").type == mujoco.mjtGeom.mjGEOM_PLANE
    assert model.nmesh == 1
    assert "robots_of_test" not in sys.modules


def test_model_of_a_namespace_package_is_found(package: Path):
    (package / "__init__.py").unlink()
    assert model_of("package:robots_of_test/one/robot.xml").nmesh == 1


def test_model_of_gymnasium_is_that_of_its_task():
    ours, theirs = (envs.make("Hopper-v5", 2, **options) for options in ({"xml_file": HOPPER}, {}))
    assert torch.equal(ours.reset(), theirs.reset())
    assert model_of(HOPPER).nq == 6


@pytest.mark.parametrize(
    ("mjcf", "parts"),
    [
        ("package:robots_of_test", ["'package:robots_of_test' names no file", "package:NAME/PATH"]),
        ("package:/one/robot.xml", ["names no file"]),
        ("package:no-such-name/robot.xml", ["names no file", "Python imports"]),
        ("package:no_such_package/robot.xml", ["no package 'no_such_package'", sys.executable, "Install it"]),
        ("package:__main__/robot.xml", ["no package '__main__'"]),
        ("package:robots_of_test/robot.xml", ["no file", "robots_of_test/robot.xml", "has one/robot.xml"]),
        ("package:robots_of_test/one/robt.xml", ["no file", "did you mean one/robot.xml or"]),
        ("package:robots_of_test/x.urdf", ["no .urdf file of a similar name"]),
    ],
)
@pytest.mark.usefixtures("package")
def test_missing_package_or_file_is_named(mjcf: str, parts: list[str]):
    for make in (lambda: model_of(mjcf), lambda: envs.make("Hopper-v5", 1, xml_file=mjcf)):
        with pytest.raises(SaltusError) as caught:
            make()
        assert not [part for part in parts if part not in str(caught.value)], caught.value
    with pytest.raises(SaltusError, match="the model of task CartBall is missing"):
        load_model(type("CartBall", (CartBall,), {"mjcf": mjcf})())


@pytest.mark.usefixtures("package")
def test_new_writes_a_task_for_a_model_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    new_task(["package:robots_of_test/one/robot.xml"])
    assert 'mjcf = "package:robots_of_test/one/robot.xml"' in (tmp_path / "robot.py").read_text()
    assert envs.make(f"{tmp_path}/robot.py:Robot", 2).reset().shape == (2, 2)

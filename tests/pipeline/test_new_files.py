"""Files that `saltus new` writes: their names, models and refusals."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
from cli_helpers import Command
from new_helpers import ARM, FLOOR, QUADRUPED, assert_refused

import envs
from pipeline.new.command import new_task


def test_names_of_file_and_class_come_from_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for stem, file, name in (
        ("MyRobot-v2", "my_robot_v2", "MyRobotV2"), ("3 legs", "3_legs", "Model3Legs"), ("task", "task", "ModelTask"),
        ("--", "model", "Model"), ("m²", "m2", "M2"), ("ªrm", "arm", "Arm"), ("ⅻ{x}", "xii_x", "XiiX"),
    ):  # fmt: skip
        Path(f"./{stem}.xml").write_text(ARM)
        printed = new_task([f"./{stem}.xml"])
        assert f"saltus train {file}.py:{name}" in printed
        assert envs.find_task(f"{file}.py:{name}").__name__ == name


@pytest.mark.parametrize(
    ("current", "model", "output", "mjcf"),
    [
        (".", "models/arm.xml", "arm.py", "models/arm.xml"),
        (".", "models/arm.xml", "tasks/arm.py", "../models/arm.xml"),
        ("tasks", "../models/arm.xml", "../models/arm.py", "arm.xml"),
        ("tasks", "../models/arm.xml", "arm.py", None),
    ],
)
def test_written_tasks_find_their_model_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, current: str, model: str, output: str, mjcf: str | None
) -> None:
    for folder in ("models", "tasks", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "models" / "arm.xml").write_text(ARM)
    monkeypatch.chdir(tmp_path / current)
    new_task([model, "--output", output])
    file = (tmp_path / current / output).resolve()
    monkeypatch.chdir(tmp_path / "elsewhere")
    env = envs.make(f"{file}:Arm", 2)
    assert env.task.mjcf == (mjcf or str(tmp_path / "models" / "arm.xml"))


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    arm, output = tmp_path / "arm.xml", tmp_path / "arm.py"
    arm.write_text(ARM)
    assert_refused("does not exist; expected the path of an MJCF file: saltus new robot.xml", tmp_path / "none.xml")
    assert_refused("is a folder; expected the path of an MJCF file", tmp_path)
    assert_refused("expected the name of a Python file, such as robot.py", arm, "--output", tmp_path / "arm.txt")
    assert_refused("there is no folder", arm, "--output", tmp_path / "none" / "arm.py")
    assert_refused("--name is 'my-arm'; expected the name of a class, such as MyRobot", arm, "--name", "my-arm")
    assert_refused("--name is 'super'; expected the name of a class", arm, "--name", "super")
    assert_refused("an argument is empty: name the file of a model", "")
    latin = tmp_path / os.fsdecode(b"arm\xff.xml")
    latin.write_text(ARM)
    assert_refused("is not UTF-8, as MuJoCo needs: rename it", latin, "--output", output)
    assert not output.exists()
    output.write_text("mine")
    assert_refused("exists already, and is not overwritten: choose another file by --output", arm, "--output", output)
    assert output.read_text() == "mine"


def test_a_file_that_cannot_be_written_whole_is_removed(tmp_path: Path) -> None:
    arm, output = tmp_path / "arm.xml", tmp_path / "arm.py"
    arm.write_text(ARM)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        assert_refused("could not write", arm, "--output", output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not output.exists()
    new_task([str(arm), "--output", str(output)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<mujoco><worldbody><bod/></worldbody></mujoco>", "unrecognized element Element 'bod', line 1"),
        ("not XML", "cannot be used: MuJoCo does not compile it: XML parse error"),
        (f"<mujoco><worldbody>{FLOOR}</worldbody></mujoco>", "has no joints, so nothing in it moves"),
        (
            "<mujoco><worldbody><body><freejoint/><geom size='1'/></body></worldbody></mujoco>",
            "has nothing to control: give it actuators",
        ),
        (
            '<robot name="r"><link name="a"/><link name="b"><inertial><mass value="1"/><inertia ixx="1" ixy="0" '
            'ixz="0" iyy="1" iyz="0" izz="1"/></inertial></link><joint name="j" type="continuous"><parent link="a"/>'
            '<child link="b"/></joint></robot>',
            "A URDF has no actuators",
        ),
    ],
)
def test_models_that_cannot_be_used_are_refused(tmp_path: Path, text: str, message: str) -> None:
    model = tmp_path / "robot.xml"
    model.write_text(text)
    assert_refused(message, model, "--output", tmp_path / "robot.py")
    assert not (tmp_path / "robot.py").exists()


def test_a_written_task_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quadruped.xml").write_text(QUADRUPED)
    outcome = command("new", "quadruped.xml")
    assert outcome.code == 0
    assert "saltus check quadruped.py:Quadruped" in outcome.text
    outcome = command(
        "train", "quadruped.py:Quadruped", "--run-dir", "run", "--device", "cpu", "--no-compile", "--num-envs", 4,
        "--utd-ratio", 0.25, "--total-env-steps", 400, "--learning-starts", 100, "--batch-size", 32,
        "--eval-episodes", 2, "--num-threads", 1, "--log-every", 200,
    )  # fmt: skip
    assert outcome.code == 0, outcome.text
    assert "reward_terms/forward" in Path("run/metrics.csv").read_text()
    outcome = command("new", "quadruped.xml")
    assert outcome.code == 1
    assert outcome.err.startswith("saltus: quadruped.py exists already")

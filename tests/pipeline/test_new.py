"""`saltus new` writes tasks that can be made, stepped and trained, for models of many kinds."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from cli_helpers import Command

import envs
from envs import BatchEnv
from pipeline.check.check import check
from pipeline.new.command import new_task
from saltus.errors import SaltusError

GYMNASIUM = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"

FLOOR = '<geom name="floor" type="plane" size="5 5 1"/>'

# Servos on a trunk that floats 0.1 m above its standing height.
QUADRUPED = f"""<mujoco>
  <option timestep="0.004"/>
  <default><geom size="0.03"/><position kp="40" kv="1" ctrlrange="-1.5 1.5"/><joint damping="0.5"/></default>
  <worldbody>{FLOOR}
    <body name="trunk" pos="0 0 0.5"><freejoint name="root"/><geom type="box" size="0.2 0.1 0.05" mass="5"/>
      <camera name="track" mode="trackcom" pos="0 -2 0.5" xyaxes="1 0 0 0 0 1"/><site name="imu"/>
      {
    "".join(
        f'<body name="{name}" pos="{x} {y} 0"><joint name="{name}" axis="0 1 0" range="-60 60"/>'
        '<geom type="capsule" fromto="0 0 0 0 0 -0.27" mass="0.3"/></body>'
        for name, x, y in (("fl", 0.2, 0.1), ("fr", 0.2, -0.1), ("rl", -0.2, 0.1), ("rr", -0.2, -0.1))
    )
}
    </body></worldbody>
  <actuator>{"".join(f'<position name="{name}" joint="{name}"/>' for name in ("fl", "fr", "rl", "rr"))}</actuator>
  <sensor><gyro name="gyro" site="imu"/><accelerometer name="accelerometer" site="imu"/></sensor>
  <keyframe><key name="stand" qpos="0 0 0.4 1 0 0 0 0.1 0.1 0.1 0.1" ctrl="0.1 0.1 0.1 0.1"/></keyframe>
</mujoco>"""

ARM = """<mujoco>
  <worldbody><body name="upper"><joint name="shoulder" axis="0 1 0" range="-90 90" damping="1"/>
    <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.03"/>
    <body name="lower" pos="0.3 0 0"><joint name="elbow" axis="0 1 0" range="-90 90" damping="1"/>
      <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.03"/><site name="tip" pos="0.3 0 0"/></body>
  </body></worldbody>
  <actuator><muscle name="flexor" joint="shoulder" force="50"/>
    <motor name="elbow" joint="elbow" gear="5" ctrlrange="-2 2"/></actuator>
  <sensor><framepos name="tip" objtype="site" objname="tip"/><jointvel joint="elbow"/></sensor>
</mujoco>"""

HAND = f"""<mujoco>
  <option timestep="0.005"/>
  <worldbody>{FLOOR}
    <body name="goal" mocap="true" pos="0.3 0 0.1"/>
    <body name="hand" mocap="true" pos="0 0 0.1"/>
    <body name="box" pos="0.3 0 0.05"><freejoint/><geom type="box" size="0.05 0.05 0.05"/></body>
    <body name="pusher" pos="0 0 0.1"><freejoint/><geom size="0.04"/>{{finger}}</body>
  </worldbody>
  <equality><weld body1="hand" body2="pusher"/></equality>
  {{actuator}}
</mujoco>"""
MOCAP = HAND.format(finger="", actuator="")
GRIPPER = HAND.format(
    finger='<body pos="0.05 0 0"><joint name="finger" damping="0.1"/><geom size="0.02"/></body>',
    actuator='<actuator><motor joint="finger" ctrlrange="-0.1 0.1"/></actuator>',
)

UNBOUNDED = f"""<mujoco>
  <worldbody>{FLOOR}<body pos="0 0 0.5"><joint name="a" axis="0 1 0" range="-30 90"/>
    <geom type="capsule" fromto="0 0 0 0.2 0 0" size="0.03"/>
    <body pos="0.2 0 0"><joint name="b" axis="0 1 0"/><geom type="capsule" fromto="0 0 0 0.2 0 0" size="0.03"/></body>
  </body></worldbody>
  <actuator><position name="servo" joint="a" kp="20"/><motor name="torque" joint="b"/>
    <motor name="bounded" joint="b" ctrlrange="-0.5 0.5"/></actuator>
</mujoco>"""

# A finger's servo on a hand that a mocap body pulls, in a file with a long name.
SERVO_HAND = HAND.format(
    finger='<body pos="0.05 0 0"><joint name="finger" damping="0.1"/><geom size="0.02"/></body>',
    actuator='<actuator><position joint="finger" kp="2"/></actuator><keyframe><key ctrl="0.1" '
    'mpos="0.3 0 0.1 0 0 0.1" qpos="0.3 0 0.05 1 0 0 0 0 0 0.1 1 0 0 0 0"/></keyframe>',
)
LONG_NAME = "a_model_whose_name_is_long_enough_for_two_lines"

MODELS = {
    LONG_NAME: SERVO_HAND,
    "quadruped": QUADRUPED,
    "arm": ARM,
    "mocap": MOCAP,
    "gripper": GRIPPER,
    "unbounded": UNBOUNDED,
}
OF_GYMNASIUM = ("ant", "half_cheetah", "hopper", "humanoid", "inverted_pendulum", "pusher_v5", "reacher", "swimmer")


@dataclass
class Written:
    file: Path
    text: str
    env: BatchEnv

    @property
    def task(self) -> Any:
        return self.env.task


def write(folder: Path, name: str) -> str:
    """Write a model and its task to a folder; returns the task's name."""
    model = folder / f"{name}.xml"
    model.write_text(MODELS.get(name) or (GYMNASIUM / f"{name}.xml").read_text())
    new_task([str(model), "--output", str(folder / f"{name}.py"), "--name", "Robot"])
    return f"{folder / name}.py:Robot"


def written(folder: Path, name: str) -> Written:
    task = write(folder, name)
    file = folder / f"{name}.py"
    return Written(file, file.read_text(), envs.make(task, 4, num_threads=1))


def assert_refused(message: str, *arguments: object) -> None:
    with pytest.raises(SaltusError) as caught:
        new_task([str(argument) for argument in arguments])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [*MODELS, *OF_GYMNASIUM])
def test_written_tasks_step(tmp_path: Path, name: str) -> None:
    new = written(tmp_path, name)
    assert len(new.text.splitlines()) < 60
    assert 1 / new.task.dt == pytest.approx(50, rel=0.2)
    generator = torch.Generator().manual_seed(0)
    new.env.reset()
    for _ in range(20):
        transition, observation = new.env.step(2 * torch.rand(4, new.env.action_dim, generator=generator) - 1)
        assert torch.isfinite(observation).all()
        assert torch.isfinite(transition["next", "reward"]).all()
    totals = new.env.statistics()
    assert totals["unstable"] == totals["nonfinite"] == 0


@pytest.mark.parametrize("name", MODELS)
def test_written_tasks_have_no_errors(tmp_path: Path, name: str) -> None:
    result = check(envs.find_task(write(tmp_path, name)), {}, num_envs=32, steps=50, seed=0)
    assert [finding.text for finding in result.findings if finding.severity == "error"] == []


def test_written_files_are_clean(tmp_path: Path) -> None:
    for name in (*MODELS, *OF_GYMNASIUM):
        write(tmp_path, name)
    for command in (["check"], ["format", "--check", "--diff"]):
        arguments = [sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache", "."]
        done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_floating_base_moves_forward_from_its_keyframe_and_must_not_fall(tmp_path: Path) -> None:
    new = written(tmp_path, "quadruped")
    task, trunk = new.task, 0.05
    assert task.home == "stand"
    assert task.min_height == pytest.approx(0.5 * (0.27 + 0.03), rel=0.1)  # it lands on its legs
    assert new.env.reset().shape[1] == (11 - 2) + 10 + 6
    lying = torch.as_tensor(task.qpos0).repeat(4, 1)
    lying[1:, 2] = trunk
    fields = {"qpos": lying, "qvel": torch.ones(4, 10, dtype=lying.dtype)}
    state = envs.State(fields, new.env.state._names, new.env.state.drawn)
    assert task.terminated(state).tolist() == [False, True, True, True]
    reward, terms = task.reward(state, torch.zeros(4, 4), state)
    assert torch.equal(terms["forward"], state.qvel[:, 0])
    assert torch.equal(reward, terms["forward"] + task.alive_bonus)


def test_objects_on_the_floor_do_not_count_as_landing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = written(tmp_path, "quadruped").task.min_height
    puck = '<body pos="1 0 0.05"><joint type="slide" axis="1 0 0"/><geom size="0.06"/></body>'
    monkeypatch.setitem(MODELS, "puck", QUADRUPED.replace(FLOOR, FLOOR + puck).replace('qpos="', 'qpos="0 '))
    assert written(tmp_path, "puck").task.min_height == alone


def test_actions_of_servos_are_offsets_from_the_keyframe(tmp_path: Path) -> None:
    new = written(tmp_path, "quadruped")
    action = torch.tensor([[1.0, -1.0, 0.0, 0.5]])
    assert torch.allclose(new.task.control(None, action), 0.1 + new.task.action_scale * action.double())
    assert new.task.action_scale == pytest.approx(0.3 * 1.5)


def test_names_ranges_and_cameras_are_in_comments(tmp_path: Path) -> None:
    text = written(tmp_path, "quadruped").text
    for part in ("root (free)", "fl -1.05..1.05", "fl -1.5..1.5", "gyro (3)", "Cameras: track", "Keyframes: stand"):
        assert part in text
    mocap = written(tmp_path, "mocap").text
    for part in ("#0 of box (free)", "Mocap bodies: goal, hand", "# Actions move, in m: hand.", "of body pusher and"):
        assert part in mocap
    assert "servo (no ctrlrange)" in written(tmp_path, "unbounded").text


def test_activations_and_named_sensors_are_observed(tmp_path: Path) -> None:
    new = written(tmp_path, "arm")
    assert new.env.reset().shape[1] == 2 + 2 + 1 + 3  # the sensor without a name is not observed
    assert new.task.fields == ("qpos", "qvel", "act", "sensordata", "subtree_com")
    assert "terminated" not in new.text


def test_a_model_in_its_place_raises_its_mass_if_gravity_opposes(tmp_path: Path) -> None:
    assert "height = next_state.subtree_com[:, 1, 2]" in written(tmp_path, "arm").text
    assert "x = next_state.subtree_com[:, 1, 0]" in written(tmp_path, "reacher").text  # it moves in the plane


@pytest.mark.parametrize(("name", "dim"), [("half_cheetah", 9 - 1 + 9), ("swimmer", 5 - 2 + 5), ("pusher_v5", 11 + 11)])
def test_horizontal_slides_at_the_root_count_as_travel(tmp_path: Path, name: str, dim: int) -> None:
    """If no actuator moves them; not the slides of Pusher's object."""
    new = written(tmp_path, name)
    assert new.env.reset().shape[1] == dim
    assert ("forward = next_state.qvel[:, 0]" in new.text) == (name != "pusher_v5")


def test_bounds_are_asked_for_where_they_lack(tmp_path: Path) -> None:
    new = written(tmp_path, "unbounded")
    assert "# Choose bounds for servo, torque: no usable ctrlrange." in new.text
    assert new.env.control_low.tolist() == pytest.approx([-0.5236, -1.0, -0.5])  # the servo's: its joint's range
    assert new.env.control_high.tolist() == pytest.approx([1.571, 1.0, 0.5])
    assert "action_scale: float = 0.3  # of servos, around home; a guess" in written(tmp_path, LONG_NAME).text


@pytest.mark.parametrize(
    ("actuator", "joint_range", "bounds"),
    [
        ('<position joint="b" gear="10"/>', "0 60", [0.0, 10.47]),
        ('<position joint="b" gear="-2"/>', "0 60", [-2.094, 0.0]),
        ('<position joint="b"/>', "59.6 60.1", [1.04, 1.049]),
        ('<intvelocity joint="b" actrange="0 1"/>', "0 60", [-1.0, 1.0]),  # its control is a velocity
    ],
)
def test_bounds_of_servos_are_in_the_units_of_their_controls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, actuator: str, joint_range: str, bounds: list[float]
) -> None:
    text = re.sub("<actuator>.*</actuator>", f"<actuator>{actuator}</actuator>", UNBOUNDED, flags=re.S)
    text = text.replace('name="b" axis="0 1 0"', f'name="b" axis="0 1 0" range="{joint_range}"')
    monkeypatch.setitem(MODELS, "servo", text)
    env = written(tmp_path, "servo").env
    assert [float(env.control_low[0]), float(env.control_high[0])] == pytest.approx(bounds)


@pytest.mark.parametrize(("name", "controls"), [("mocap", 0), ("gripper", 1)])
def test_actions_move_mocap_bodies_that_pull_a_body(tmp_path: Path, name: str, controls: int) -> None:
    new = written(tmp_path, name)
    assert new.env.action_dim == controls + 3
    new.env.reset()
    before = new.env.state.mocap_pos.clone()
    action = torch.zeros(4, controls + 3)
    action[:, controls:] = torch.tensor([1.0, 0.0, -1.0])
    new.env.step(action)
    moved = new.env.state.mocap_pos - before
    step = float(new.env.control_high[-1])
    assert torch.allclose(moved[:, 1], torch.tensor([step, 0.0, -step], dtype=moved.dtype))
    assert not moved[:, 0].any()  # the goal
    for _ in range(3 * int(new.task.mocap_reach / step)):
        new.env.step(action)
    assert float(new.env.state.mocap_pos.abs().max()) <= new.task.mocap_reach


def test_mocap_bodies_that_pull_nothing_move_only_without_actuators(tmp_path: Path) -> None:
    (tmp_path / "paddle.xml").write_text(
        '<mujoco><worldbody><body name="paddle" mocap="true"><geom size="0.1"/></body>'
        '<body pos="0 0 0.3"><freejoint/><geom size="0.1"/></body></worldbody></mujoco>'
    )
    new_task([str(tmp_path / "paddle.xml"), "--output", str(tmp_path / "paddle.py")])
    assert envs.make(f"{tmp_path}/paddle.py:Paddle", 2).action_dim == 3
    assert written(tmp_path, "reacher").env.action_dim == 2


def test_many_names_are_shortened(tmp_path: Path) -> None:
    bodies = "".join(
        f'<body name="link{i}"><joint name="a long name of joint {i}" axis="0 1 0"/><geom size="0.1"/></body>'
        for i in range(60)
    )
    motors = "".join(f'<motor joint="a long name of joint {i}" gear="0.1"/>' for i in range(60))
    sensors = "".join(f'<jointpos name="position of joint {i}" joint="a long name of joint {i}"/>' for i in range(60))
    (tmp_path / "many.xml").write_text(
        f"<mujoco><worldbody>{bodies}</worldbody><actuator>{motors}</actuator><sensor>{sensors}</sensor></mujoco>"
    )
    new_task([str(tmp_path / "many.xml"), "--output", str(tmp_path / "many.py")])
    text = (tmp_path / "many.py").read_text()
    assert len(text.splitlines()) < 60
    assert max(map(len, text.splitlines())) <= 88
    assert len(re.findall(r"and \d+ more|of all sensors", text)) == 5
    assert envs.make(f"{tmp_path}/many.py:Many", 2).observation_dim == 180


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
        ("not XML", "MuJoCo does not compile the model of task Robot: XML parse error"),
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

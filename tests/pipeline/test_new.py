"""`saltus new` writes tasks that can be made, stepped and trained, for models of many kinds."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from new_helpers import FLOOR, LONG_NAME, MODELS, QUADRUPED, UNBOUNDED

import envs
from envs import BatchEnv
from pipeline.check.check import check
from pipeline.new.command import new_task

GYMNASIUM = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
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


@pytest.mark.usefixtures("short_capacity_rollouts")
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
    controls = written(tmp_path, "controls").text
    for part in ("# Actuators: brake (no control), servo qw (no ctrlrange)", "pid pos -0.5..1"):
        assert part in controls


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


def test_bounds_of_actuators_with_several_controls_are_in_order(tmp_path: Path) -> None:
    new = written(tmp_path, "controls")
    assert "# Choose bounds for servo qw, servo qx, servo qy and 2 more: no usable" in new.text
    assert new.env.control_low.tolist() == [-1, -1, -1, -1, -0.5, -1, -4]
    assert new.env.control_high.tolist() == [1, 1, 1, 1, 1, 1, 5]


@pytest.mark.parametrize(
    ("actuator", "joint_range", "bounds"),
    [
        ('<position joint="b" gear="10"/>', "0 60", [0.0, 10.47]),
        ('<position joint="b" gear="-2"/>', "0 60", [-2.094, 0.0]),
        ('<position joint="b"/>', "59.6 60.1", [1.04, 1.049]),
        ('<intvelocity joint="b" actrange="0 1"/>', "0 60", [-1.0, 1.0]),  # its control is a velocity
        ('<pid joint="b" gear="2"/>', "0 60", [0.0, 2.094]),
        ('<pid joint="b" input="vel"/>', "0 60", [-1.0, 1.0]),
        ('<dcmotor joint="a" input="none" motorconst="1" resistance="1"/><position joint="b"/>', "0 60", [0, 1.047]),
        ('<position joint="b" gear="0"/>', "0 60", [-1.0, 1.0]),
        (
            '<position tendon="t"/></actuator><tendon><fixed name="t" range="0.2 0.5">'
            '<joint joint="b" coef="1"/></fixed></tendon><actuator>',
            "0 60",
            [0.2, 0.5],
        ),
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

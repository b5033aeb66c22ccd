"""The `saltus` command with tasks of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_helpers import SWINGER, SWINGER_XML, Command, assert_refused
from pipeline_helpers import read_csv, small_arguments

from envs.tasks import Hopper
from pipeline import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def test_unstable_physics_is_counted_but_not_printed_at_every_step(
    command: Command, swinger: str, tmp_path: Path
) -> None:
    (tmp_path / "mine" / "swinger.xml").write_text(SWINGER_XML.replace("ctrlrange", 'gear="1e13" ctrlrange'))
    outcome = command("train", swinger, *small_arguments(total_env_steps=60), "--run-dir", "run")
    assert outcome.code == 0
    assert "QACC" not in outcome.text, "MuJoCo's own warnings"
    assert int(read_csv(tmp_path / "run" / "metrics.csv")[-1]["unstable"]) > 10
    assert not (tmp_path / "MUJOCO_LOG.TXT").exists()


def swinger_with_reward(folder: Path, statement: str) -> None:
    """Replace the reward function of the task in `folder` by one statement."""
    source, _, _ = SWINGER.partition("    def reward")
    source = source.replace("from envs import Task", "from envs import Task\nfrom saltus import SaltusError")
    function = f"    def reward(self, state, action, next_state):\n        {statement}\n"
    (folder / "mine" / "swinger.py").write_text(source + function)


def test_error_in_a_users_task_shows_its_traceback(command: Command, swinger: str, tmp_path: Path) -> None:
    swinger_with_reward(tmp_path, "return int('three')")
    with pytest.raises(ValueError, match="three") as error:
        command("train", swinger, *small_arguments(), "--run-dir", "run")
    assert error.traceback[-1].path == tmp_path / "mine" / "swinger.py"
    assert not (tmp_path / "run").exists()


def test_refusal_by_a_users_task_is_printed_in_one_line(command: Command, swinger: str, tmp_path: Path) -> None:
    swinger_with_reward(tmp_path, "raise SaltusError('the target is out of reach')")
    outcome = command("train", swinger, *small_arguments(), "--run-dir", "run")
    assert_refused(outcome, "saltus: the target is out of reach")
    assert not (tmp_path / "run").exists()


def test_own_task_trains_and_resumes_from_another_folder(
    command: Command, swinger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = small_arguments(total_env_steps=120, checkpoint_every=40)
    flags = ["--task.target", "0.25", "--task.weights", "2.0", "0.5"]
    assert command("train", swinger, *arguments, "--run-dir", "run", *flags).code == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["task"] == f"{tmp_path}/mine/swinger.py:Swinger"
    assert config["task_options"] == {"target": 0.25, "weights": [2.0, 0.5]}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    rows = read_csv(tmp_path / "run" / "metrics.csv")
    checkpoint.find(tmp_path / "run" / "checkpoints")[-1].unlink()
    assert command("resume", "../run").code == 0
    assert [row["env_steps"] for row in read_csv(tmp_path / "run" / "metrics.csv")] == [
        row["env_steps"] for row in rows
    ]
    assert command("evaluate", "../run", "--episodes", 3).code == 0
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["lengths"] == [20, 20, 20]


def test_model_that_does_not_compile_is_refused_with_mujocos_message(
    command: Command, swinger: str, tmp_path: Path
) -> None:
    (tmp_path / "mine" / "swinger.xml").write_text(SWINGER_XML.replace('joint="hinge"', 'joint="knee"'))
    outcome = command("train", swinger, *small_arguments(), "--run-dir", "run")
    assert outcome.code == 1
    assert "does not compile the model of task Swinger" in outcome.err
    assert "knee" in outcome.err
    assert not (tmp_path / "run").exists()


def test_missing_class_or_file_is_refused_by_name(command: Command, swinger: str, tmp_path: Path) -> None:
    arguments = [*small_arguments(), "--run-dir", "run"]
    outcome = command("train", "mine/swinger.py:Swimmer", *arguments)
    assert "has no Task class 'Swimmer'; it has Swinger" in outcome.text
    outcome = command("train", "mine/nowhere.py:Swinger", *arguments)
    assert f"there is no file {tmp_path}/mine/nowhere.py" in outcome.text
    (tmp_path / "mine" / "swinger.xml").unlink()
    outcome = command("train", swinger, *arguments)
    assert f"there is no file {tmp_path}/mine/swinger.xml" in outcome.text
    assert not (tmp_path / "run").exists()


def test_model_by_relative_path_is_found_from_another_folder(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.xml").write_text(Hopper().mjcf.read_text())
    monkeypatch.chdir(tmp_path)
    arguments = [*small_arguments(), "--task.xml-file", "mine.xml", "--run-dir", "run"]
    assert command("train", "Hopper-v5", *arguments).code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command("evaluate", "../run", "--episodes", 1).code == 0
    before, last = checkpoint.find(tmp_path / "run" / "checkpoints")
    last.unlink()
    assert f"continuing from ../run/checkpoints/{before.name}" in command("resume", "../run").out
    assert last.exists()

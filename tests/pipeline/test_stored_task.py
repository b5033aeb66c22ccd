"""The task that a run keeps: moved, renamed, and executed with trust only."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import mujoco
import pytest
from cli_helpers import SWINGER, SWINGER_XML, Command
from run_dir_helpers import refusal

from pipeline import checkpoint
from pipeline.policy import load_policy


def test_lost_config_is_restored_under_the_tasks_new_name(command: Command, project: Path) -> None:
    run = project / "run"
    (project / "other.py").write_text(SWINGER.replace("class Swinger", "class Other"))
    (run / "config.json").unlink()
    outcome = command("resume", run, "--task", f"{project}/other.py:Other")
    assert outcome.code == 0, outcome.text
    assert "warning: resumed, but not bit for bit: its task has changed" in outcome.text
    assert f"differs from {run}/task/swinger.py in line 12" in outcome.text
    assert json.loads((run / "config.json").read_text())["task"]["former"] == ["Swinger"]
    assert command("evaluate", run, "--episodes", 1).code == 0


def test_run_keeps_its_tasks_text_and_model_with_their_hashes(own_run: Path) -> None:
    folder = own_run / "run"
    record = json.loads((folder / "config.json").read_text())["task"]
    assert (folder / record["file"]).read_text() == SWINGER
    assert mujoco.MjModel.from_binary_path(str(folder / record["model"])).nv == 1
    for name, key in (("file", "sha256"), ("model", "model_sha256")):
        assert hashlib.sha256((folder / record[name]).read_bytes()).hexdigest() == record[key]
    assert sorted(path.name for path in (folder / "task").iterdir()) == ["model.mjb", "swinger.py"]


@pytest.mark.parametrize("name", ["resume", "evaluate", "play", "export"])
def test_moved_run_asks_for_its_tasks_file(command: Command, moved: Path, name: str) -> None:
    outcome = command(name, moved / "run")
    assert outcome.code == 1
    assert "/old/project/swinger.py is missing: name it with --task path/to/file.py:Swinger" in outcome.err
    assert f"execute the run's own copy, {moved}/run/task/swinger.py, with --trust" in outcome.err


def test_moved_run_resumes_and_plays_with_its_tasks_new_path(
    command: Command, moved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(moved)
    checkpoint.find(moved / "run" / "checkpoints")[-1].unlink()
    outcome = command("evaluate", "run", "--episodes", 2, "--task", "swinger.py:Swinger")
    assert outcome.code == 0
    assert f"executing the task's file {moved}/swinger.py" in outcome.text
    assert load_policy("run", task="swinger.py:Swinger").task == f"{moved}/swinger.py:Swinger"
    assert command("evaluate", "run", "--episodes", 2).code == 1, "evaluate changes no configuration"
    outcome = command("resume", "run", "--task", "swinger.py:Swinger")
    assert outcome.code == 0, outcome.text
    assert f"executing the task's file {moved}/swinger.py" in outcome.text
    assert "continuing from run/checkpoints/000000000100.pt, at 100 of 120 env steps" in outcome.text
    assert "warning" not in outcome.text
    monkeypatch.chdir("/")
    assert command("evaluate", moved / "run", "--episodes", 2).code == 0, "resume keeps the new path"


def test_load_policy_logs_the_path_of_the_file_that_it_executes(
    own_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "saltus"):
        load_policy(own_run / "run")
    assert f"executing the task's file {own_run}/swinger.py" in caplog.messages


def test_task_may_get_another_class_name(command: Command, project: Path) -> None:
    (project / "other.py").write_text(SWINGER.replace("class Swinger", "class Other"))
    outcome = command("resume", project / "run", "--task", f"{project}/other.py:Other")
    assert outcome.code == 0, outcome.text
    assert command("evaluate", project / "run", "--episodes", 1).code == 0
    assert command("resume", project / "run").code == 0


def test_copy_of_the_task_is_executed_with_trust(command: Command, moved: Path) -> None:
    shutil.copy(moved / "swinger.xml", moved / "run" / "task")
    for name in ("evaluate", "resume"):
        outcome = command(name, moved / "run", "--trust")
        assert outcome.code == 0, outcome.text
        assert f"executing the task's file {moved}/run/task/swinger.py" in outcome.text
    assert load_policy(moved / "run", trust=True).task == f"{moved}/run/task/swinger.py:Swinger"
    assert json.loads((moved / "run" / "config.json").read_text())["config"]["task"].startswith("/old")


def test_task_of_other_dimensions_is_refused(command: Command, project: Path) -> None:
    for name in ("resume", "evaluate"):
        outcome = command(name, project / "run", "--task", "Hopper-v5")
        assert outcome.code == 1
        assert "Hopper has 11 observations and 3 actions, and the run has 3 observations and 1 actions" in outcome.err
    assert json.loads((project / "run" / "config.json").read_text())["config"]["task"].endswith("swinger.py:Swinger")


BOMB = "from pathlib import Path\nPath(__file__).with_name('executed').touch()\n"


def bomb(path: Path) -> Path:
    """A task's file that leaves a mark where it is executed."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(BOMB + SWINGER.replace("from __future__ import annotations", ""))
    (path.parent / "swinger.xml").write_text(SWINGER_XML)
    return path.with_name("executed")


def record_task(run: Path, task: str) -> None:
    """Change the task that a run's config.json names."""
    file = run / "config.json"
    content = json.loads(file.read_text())
    content["config"]["task"] = task
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("how", ["recorded", "given", "given by a link"])
def test_file_in_the_runs_directory_is_executed_with_trust_only(command: Command, project: Path, how: str) -> None:
    run = project / "run"
    path = run / "code" / "swinger.py"
    mark = bomb(path)
    if how == "given by a link":  # a path outside the run that leads into it
        (project / "linked.py").symlink_to(path)
        path = project / "linked.py"
    task = None if how == "recorded" else f"{path}:Swinger"
    flags = ["--task", task] if task else []
    if task is None:
        record_task(run, f"{path}:Swinger")
    for name in ("resume", "evaluate", "play", "export"):
        outcome = command(name, run, *flags)
        assert outcome.code == 1
        assert "lies in the run's directory, and saltus would execute it" in outcome.err
        assert "--trust" in outcome.err
    assert "trust=True" in refusal(load_policy, run, task=task)
    assert not mark.exists()
    assert command("evaluate", run, "--episodes", 1, "--trust", *flags).code == 0
    assert mark.exists()


@pytest.mark.parametrize(
    "path",
    ["project/code/swinger.py", "/proc/self/cwd/project/code/swinger.py", "{here}/link/swinger.py",
     "{here}/project/run/../code/swinger.py", "{here}/project/code/linked.py", "~/project/code/swinger.py"],
)  # fmt: skip
def test_recorded_path_that_is_not_its_own_end_is_not_executed(
    command: Command, project: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A downloaded archive can name a file in it only relative to a folder or through a link."""
    here = project.parent
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(here))
    mark = bomb(project / "code" / "swinger.py")
    (project / "code" / "linked.py").symlink_to("swinger.py")
    (here / "link").symlink_to(project / "code")
    path = path.format(here=here)
    record_task(project / "run", f"{path}:Swinger")
    for flags in ([], ["--trust"]):
        outcome = command("evaluate", project / "run", "--episodes", 1, *flags)
        assert outcome.code == 1
        assert f"names the task's file by the path {path}, which leads to {project}/code/swinger.py here" in outcome.err
        assert "name it with --task path/to/file.py:Swinger" in outcome.err
    assert "there is no task ''" in refusal(load_policy, project / "run", task="")
    assert not mark.exists()


GIVEN = {
    "no class": ("swinger.py", "is a file: name a class in it, as in {0}/swinger.py:Swinger; it has Swinger", True),
    "empty class": ("swinger.py:", "is a file: name a class in it, as in {0}/swinger.py:Swinger; it has Swinger", True),
    "unknown class": ("swinger.py:Reach", "swinger.py has no Task class 'Reach'; it has Swinger", True),
    "no file": ("reach.py:Reach", "there is no file {0}/reach.py", False),
    "no file, no class": ("reach.py", "there is no file {0}/reach.py", False),
}


@pytest.mark.parametrize(("task", "said", "executed"), GIVEN.values(), ids=GIVEN)
def test_wrong_name_of_a_task_is_explained(
    command: Command, project: Path, task: str, said: str, executed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a file is printed exactly if the file is executed, as it is to list its classes."""
    monkeypatch.chdir(project)
    for name in ("resume", "evaluate", "play", "export"):
        outcome = command(name, "run", "--task", task)
        assert outcome.code == 1
        assert said.format(project) in outcome.err
        assert (f"executing the task's file {project}/swinger.py" in outcome.text) == executed
        assert ("executing" in outcome.text) == executed


def test_file_without_a_class_in_the_runs_directory_is_not_executed(command: Command, project: Path) -> None:
    mark = bomb(project / "run" / "code" / "swinger.py")
    outcome = command("evaluate", project / "run", "--task", project / "run" / "code" / "swinger.py")
    assert outcome.code == 1
    assert "lies in the run's directory, and saltus would execute it" in outcome.err
    assert not mark.exists()

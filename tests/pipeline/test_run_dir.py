"""A run's directory: who may use it, what is in it, what survives kills, moves, edits and hostile content."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mujoco
import pytest
import torch
from cli_helpers import SWINGER, SWINGER_XML, Command
from pipeline_helpers import small_arguments, small_config, train_here

from envs.task import load_model
from envs.tasks import InvertedPendulum
from pipeline import checkpoint, files, run_dir, stored_task
from pipeline.file_names import OWN_NAMES
from pipeline.policy import load_policy
from pipeline.run_dir import create, locked, new_run, open_run, require_unused
from saltus import SaltusError

MODEL = load_model(InvertedPendulum())
CONFIG = small_config()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(function: Callable[..., object], *arguments: object, **options: object) -> str:
    with pytest.raises(SaltusError) as error:
        function(*arguments, **options)
    return str(error.value)


# Who may use a directory


def put(folder: Path, *names: str) -> None:
    """Files with the text of their names; a name that ends with / is a folder."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_text(name)


CREATED = ["lock", "task/", "task/model.partial"]
USABLE = {
    "empty": [],
    "a log redirected into it": ["log.txt"],
    "a user's files": ["notes.md", "results/", "my_task.py", "checkpoint.pt"],
    "killed after the lock": ["lock"],
    "killed while the task was stored": [*CREATED, "log.txt"],
    "killed while config.json was written": [*CREATED, "config.partial"],
    "killed while config.json was written by saltus 0.1": ["config.json.partial"],
    "killed while the first checkpoint was written": [*CREATED, "checkpoints/000000000000.partial", "metrics.csv"],
    "a user's checkpoint": ["lock", "checkpoints/best.pt"],
}
TAKEN = {
    "another program's config": (["config.json"], "config.json"),
    "another program's tables": (["metrics.csv", "notes.md"], "metrics.csv"),
    "a user's folder": (["task/a.py", "checkpoints/my.pt"], "checkpoints, task"),
}


@pytest.mark.parametrize("names", USABLE.values(), ids=USABLE)
def test_directory_without_a_run_may_be_used(tmp_path: Path, names: list[str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    put(folder, *names)
    with new_run(CONFIG, folder, MODEL) as path:
        assert path == folder
    foreign = [name for name in names if name.partition("/")[0].partition(".")[0] in ("log", "notes", "my_task")]
    assert all((folder / name).read_text() == name for name in foreign)
    assert run_dir._read_config(folder, recover=False) == CONFIG


@pytest.mark.parametrize(("names", "named"), TAKEN.values(), ids=TAKEN)
def test_directory_with_others_files_under_a_runs_names_is_refused(
    tmp_path: Path, names: list[str], named: str
) -> None:
    put(tmp_path, *names)
    before = contents(tmp_path)
    message = f"{tmp_path} holds no run, but {named}, which a run would overwrite: choose another --run-dir"
    assert refusal(require_unused, tmp_path) == message
    assert contents(tmp_path) == before


def test_file_is_refused_as_a_directory(tmp_path: Path) -> None:
    put(tmp_path, "file")
    message = refusal(require_unused, tmp_path / "file")
    assert message.endswith("file is a file, not a directory: choose another --run-dir")


class Killed(BaseException):
    """Simulates a kill: no code catches it to clean up."""


@pytest.mark.parametrize("operation", ["mkdir", "open", "fsync", "replace"])
@pytest.mark.parametrize("count", range(7))
def test_directory_of_a_run_killed_while_it_was_made_may_be_used_again(
    tmp_path: Path, operation: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plain, left = tmp_path / "run", getattr(os, operation), [count]

    def killing(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return plain(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, operation, killing)
        try:
            with new_run(CONFIG, folder, MODEL):
                pass
        except Killed:
            pass
    require_unused(folder)
    with new_run(CONFIG, folder, MODEL):
        pass
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "lock", "task"]


def test_runs_started_in_the_same_second_get_directories_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_dir.time, "strftime", lambda _: "20260101-000000")
    configs = [dataclasses.replace(CONFIG, actor_lr=rate) for rate in (1e-3, 1e-4, 1e-5)]
    paths = []
    for config in configs:
        with new_run(config, None, MODEL) as path:
            paths.append(path)
    name = "InvertedPendulum-v5-s0-20260101-000000"
    assert [str(path) for path in paths] == [f"runs/{name}", f"runs/{name}-2", f"runs/{name}-3"]
    assert [run_dir._read_config(path, recover=False) for path in paths] == configs


def test_second_train_leaves_a_running_run_unchanged(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with new_run(CONFIG, folder, MODEL):
        before = contents(folder)
        outcome = command("train", "InvertedPendulum-v5", *small_arguments(gamma=0.5), "--run-dir", folder)
        assert outcome.code == 1
        assert f"another process is training in {folder}" in outcome.err
        assert contents(folder) == before


def test_of_two_processes_that_make_a_directory_the_second_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there are no locks."""
    folder = tmp_path / "run"
    monkeypatch.setattr(run_dir, "require_unused", lambda path: None)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    with new_run(CONFIG, folder, MODEL):
        before = contents(folder)
        assert "another process has just made" in refusal(new_run(CONFIG, folder, MODEL).__enter__)
        assert contents(folder) == before


# The lock


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_file_system_without_locks_is_warned_about(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
    with pytest.warns(UserWarning, match="has no locks .*make sure that no other process trains"), locked(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
def test_held_lock_is_refused(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
    assert "another process is training" in refusal(locked(tmp_path).__enter__)


def test_other_errors_of_the_lock_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"), locked(tmp_path):
        pass


# Links


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of InvertedPendulum-v5."""
    path = tmp_path_factory.mktemp("runs") / "run"
    train_here(path, total_env_steps=200)
    return path


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished` that a test may change."""
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.mark.parametrize("name", [*sorted(OWN_NAMES), "metrics.partial", "config.partial"])
def test_link_in_place_of_a_runs_file_is_refused_and_not_followed(
    command: Command, copied: Path, tmp_path: Path, name: str
) -> None:
    victim = tmp_path / "victim"
    path = copied / name
    if path.is_dir():
        path.rename(victim)
    else:
        victim.write_bytes(path.read_bytes() if path.exists() else b"precious")
        path.unlink(missing_ok=True)
    path.symlink_to(victim)
    before = contents(victim) if victim.is_dir() else victim.read_bytes()
    outcome = command("resume", copied)
    assert outcome.code == 1
    assert f"{path} is a symbolic link, and saltus writes through none" in outcome.err
    command("evaluate", copied, "--episodes", 1)
    assert (contents(victim) if victim.is_dir() else victim.read_bytes()) == before


@pytest.mark.parametrize("name", ["evaluations.csv", "lock", "tensorboard", "evaluation.json"])
def test_pipe_in_place_of_a_runs_file_is_refused_at_once(command: Command, copied: Path, name: str) -> None:
    path = copied / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    os.mkfifo(path)
    outcome = command("resume", copied)
    assert outcome.code == 1
    assert f"{path} is neither a file nor a folder" in outcome.err


def test_runs_directory_may_be_a_link(command: Command, copied: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(copied)
    assert command("resume", tmp_path / "link").code == 0


def test_failed_write_keeps_the_file_and_removes_the_partial_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.json"
    files.write(path, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(OSError, match=f"No space left: '{path}'"):
        files.write(path, "new")
    assert contents(tmp_path) == {"config.json": b"old"}


# The configuration


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b"\0" * 100, b"[" * 10**5, b'{"config": {}}'],
)
def test_lost_config_is_restored_from_the_checkpoint(command: Command, copied: Path, content: bytes | None) -> None:
    expected, _ = open_run(copied)
    file = copied / "config.json"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.warns(UserWarning, match=r"config\.json is missing or damaged .*the checkpoint's copy is used"):
        assert open_run(copied)[0] == expected
    outcome = command("resume", copied)
    assert outcome.code == 0, outcome.text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_run(copied)[0] == expected


@pytest.mark.parametrize("content", [None, b"{"])
def test_restored_config_has_the_record_of_the_task_and_the_checkpoints_versions(
    command: Command, project: Path, content: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = project / "run"
    file = run / "config.json"
    before = json.loads(file.read_text())
    file.unlink() if content is None else file.write_bytes(content)
    monkeypatch.setattr(run_dir, "versions", lambda: {**before["versions"], "torch": "99"})
    assert command("resume", run, "--task", f"{project}/swinger.py:Swinger").code == 0
    after = json.loads(file.read_text())
    assert after["versions"] == before["versions"]
    assert {**after["task"], "former": []} == {**before["task"], "former": []}
    assert after["config"] == before["config"]


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


@pytest.mark.parametrize("texts", [[], ["a.py", "b.py"]])
def test_record_without_one_text_has_the_model_only(tmp_path: Path, texts: list[str]) -> None:
    record = stored_task.store(tmp_path, "InvertedPendulum-v5", MODEL)
    put(tmp_path / "task", *texts)
    assert stored_task.find_record(tmp_path) == record
    assert stored_task.find_record(tmp_path / "elsewhere") == {}


def test_checkpoint_of_another_task_is_refused(copied: Path) -> None:
    last = checkpoint.find(copied / "checkpoints")[-1]
    content = torch.load(last, weights_only=True)
    content["config"]["task"] = "Hopper-v5"
    torch.save(content, last)
    assert "belongs to another run: it was written with task 'Hopper-v5' instead of 'InvertedPendulum-v5'" in refusal(
        open_run, copied
    )


# The stored task


@pytest.fixture(scope="module")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task's file, its XML, and a run of it named run."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "swinger.py").write_text(SWINGER)
    (folder / "swinger.xml").write_text(SWINGER_XML)
    train_here(folder / "run", f"{folder}/swinger.py:Swinger", total_env_steps=120)
    return folder


def copy_of(own_run: Path, folder: Path, recorded: Path | str) -> Path:
    """Copy `own_run` to `folder`; its config.json names a task's file in the folder `recorded`."""
    shutil.copytree(own_run, folder)
    file = folder / "run" / "config.json"
    content = json.loads(file.read_text())
    content["config"]["task"] = f"{recorded}/swinger.py:Swinger"
    file.write_text(json.dumps(content))
    return folder


@pytest.fixture
def moved(own_run: Path, tmp_path: Path) -> Path:
    """A copy of `own_run` whose config.json names a file that does not exist."""
    return copy_of(own_run, tmp_path / "moved", "/old/project")


@pytest.fixture
def project(own_run: Path, tmp_path: Path) -> Path:
    """A copy of `own_run` whose config.json names the copy's file."""
    return copy_of(own_run, tmp_path / "project", tmp_path / "project")


def test_run_keeps_its_tasks_text_and_model_with_their_hashes(own_run: Path) -> None:
    folder = own_run / "run"
    record = json.loads((folder / "config.json").read_text())["task"]
    assert (folder / record["file"]).read_text() == SWINGER
    assert mujoco.MjModel.from_binary_path(str(folder / record["model"])).nv == 1
    for name, key in (("file", "sha256"), ("model", "model_sha256")):
        assert hashlib.sha256((folder / record[name]).read_bytes()).hexdigest() == record[key]
    assert sorted(path.name for path in (folder / "task").iterdir()) == ["model.mjb", "swinger.py"]


def test_run_of_a_registered_task_keeps_its_model(finished: Path) -> None:
    record = json.loads((finished / "config.json").read_text())["task"]
    assert sorted(record) == ["model", "model_sha256"]


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


DOC, LINE = '    """A pendulum whose joint should reach a target angle."""\n', "    frame_skip: int = 5\n"
EDITS: dict[str, tuple[str, str, str, str]] = {
    "a line": ("swinger.py", "self.target).square()", "self.target).abs()", "in line 25)"),
    "lines": ("swinger.py", LINE, LINE + "    # one\n    # two\n", "in lines 18-19)"),
    "a line removed": ("swinger.py", DOC, "", "in lines removed after line 12)"),
    "ends of lines": ("swinger.py", SWINGER, SWINGER.rstrip(), "in line ends)"),
    "damping": ("swinger.xml", 'damping="0.1"', 'damping="0.2"', "in dof_damping)"),
    "gear": ("swinger.xml", "ctrlrange", 'gear="2" ctrlrange', "in actuator_acc0, actuator_gear)"),
    "timestep": ("swinger.xml", "<worldbody>", '<option timestep="0.001"/><worldbody>', "in opt.timestep)"),
}


@pytest.mark.parametrize(("name", "before", "after", "said"), EDITS.values(), ids=EDITS)
def test_resume_warns_of_an_edited_task(
    command: Command, project: Path, name: str, before: str, after: str, said: str
) -> None:
    text = (project / name).read_text()
    assert before in text
    (project / name).write_text(text.replace(before, after))
    outcome = command("resume", project / "run")
    assert outcome.code == 0, outcome.text
    assert "warning: resumed, but not bit for bit: its task has changed (" in outcome.text
    assert said in outcome.text
    stored = "task/swinger.py" if name == "swinger.py" else "task/model.mjb"
    assert f"differs from {project}/run/{stored}" in outcome.text


@pytest.mark.parametrize(
    ("name", "before", "after", "said"), [EDITS["a line"], EDITS["damping"]], ids=["file", "model"]
)
def test_policy_of_an_edited_task_is_loaded_with_a_warning(
    command: Command, project: Path, name: str, before: str, after: str, said: str
) -> None:
    (project / name).write_text((project / name).read_text().replace(before, after))
    warning = "the policy plays, but not as it was trained: its task has changed ("
    with pytest.warns(UserWarning, match="has changed") as caught:
        load_policy(project / "run")
    (message,) = {str(item.message) for item in caught}
    assert message.startswith(warning)
    assert said in message
    outcome = command("evaluate", project / "run", "--episodes", 1)
    assert outcome.code == 0
    assert f"warning: {warning}" in outcome.text


@pytest.mark.parametrize("name", ["resume", "evaluate"])
def test_unchanged_task_is_not_warned_about(command: Command, project: Path, name: str) -> None:
    assert "warning" not in command(name, project / "run").text


def test_solver_of_the_training_is_no_change_of_the_task(command: Command, tmp_path: Path) -> None:
    model = "<mujoco><option solver='CG'/>" + SWINGER_XML.replace("<mujoco>", "")
    (tmp_path / "swinger.py").write_text(SWINGER)
    (tmp_path / "swinger.xml").write_text(model)
    run = tmp_path / "run"
    train_here(run, f"{tmp_path}/swinger.py:Swinger", solver="newton", total_env_steps=60)
    for name in ("resume", "evaluate"):
        assert "warning" not in command(name, run).text


TETRA = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"


def test_moved_mesh_is_no_change_of_the_task(tmp_path: Path) -> None:
    """A compiled model holds the absolute paths of its meshes."""
    models = {}
    for name in ("here", "a/longer/path"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "tetra.obj").write_text(TETRA)
        xml = "<mujoco><asset><mesh name='t' file='{}/tetra.obj'/></asset><worldbody><body><freejoint/>"
        xml += "<geom type='mesh' mesh='t'/></body></worldbody></mujoco>"
        models[name] = mujoco.MjModel.from_xml_string(xml.format(folder))
    before, after = models.values()
    assert before.npaths != after.npaths
    record = stored_task.store(tmp_path, "InvertedPendulum-v5", before)
    assert stored_task.changes(tmp_path, record, "InvertedPendulum-v5", after) == []
    after.body_mass[1] += 1
    (change,) = stored_task.changes(tmp_path, record, "InvertedPendulum-v5", after)
    assert change.endswith("in body_mass")


@pytest.mark.parametrize("error", [ValueError, mujoco.FatalError, MemoryError])
def test_model_that_mujoco_cannot_read_is_reported_as_another(
    tmp_path: Path, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = stored_task.store(tmp_path, "InvertedPendulum-v5", load_model(InvertedPendulum()))
    other = load_model(InvertedPendulum())
    other.body_mass[1] += 1
    monkeypatch.setattr(mujoco.MjModel, "from_binary_path", lambda *_: (_ for _ in ()).throw(error("forged")))
    (change,) = stored_task.changes(tmp_path, record, "InvertedPendulum-v5", other)
    assert change == "the compiled model differs from that at the start of the run"


def test_stored_text_that_is_no_utf8_is_compared(command: Command, project: Path) -> None:
    file, text = project / "run" / "config.json", project / "run" / "task" / "swinger.py"
    text.write_bytes(b"# \xff\n" + text.read_bytes())
    content = json.loads(file.read_text())
    content["task"]["sha256"] = hashlib.sha256(text.read_bytes()).hexdigest()
    file.write_text(json.dumps(content))
    assert f"swinger.py differs from {text} in lines removed after line 0" in command("resume", project / "run").text


def test_model_of_another_state_is_refused(command: Command, project: Path) -> None:
    xml = SWINGER_XML.replace("<joint", '<joint name="second" axis="1 0 0"/><joint', 1)
    (project / "swinger.xml").write_text(xml)
    source = SWINGER.replace(
        "[state.qpos.sin(), state.qpos.cos(), state.qvel]",
        "[state.qpos[:, :1].sin(), state.qpos[:, :1].cos(), state.qvel[:, :1]]",
    )
    (project / "swinger.py").write_text(source)
    before = contents(project / "run" / "checkpoints")
    outcome = command("resume", project / "run")
    assert outcome.code == 1
    assert "the task's model has changed since the start of the run: its state has" in outcome.err
    assert contents(project / "run" / "checkpoints") == before


@pytest.mark.parametrize("damage", ["missing", "changed"])
@pytest.mark.parametrize("edited", [False, True])
def test_lost_copies_still_show_whether_the_task_changed(
    command: Command, project: Path, damage: str, edited: bool
) -> None:
    for name in ("swinger.py", "model.mjb"):
        path = project / "run" / "task" / name
        path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:-1])
    if edited:
        (project / "swinger.py").write_text(SWINGER + "\n# edited\n")
        (project / "swinger.xml").write_text(SWINGER_XML.replace("0.05", "0.06"))
    text = command("resume", project / "run").text
    assert (f"{project}/swinger.py has another text than at the start of the run" in text) == edited
    assert ("the compiled model differs from that at the start of the run" in text) == edited
    assert ("warning" in text) == edited


@pytest.mark.parametrize(
    "record", [None, 5, [], {}, {"sha256": "0"}, {"file": 5, "sha256": "0"}, {"former": "Swinger"}, {"former": [5]}]
)
def test_run_without_a_record_of_its_task_resumes(command: Command, project: Path, record: object) -> None:
    file = project / "run" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "task": record}))
    assert "warning" not in command("resume", project / "run").text


def test_many_changes_are_counted(tmp_path: Path) -> None:
    record = stored_task.store(tmp_path, "InvertedPendulum-v5", MODEL)
    other = mujoco.MjModel.from_binary_path("model.mjb", {"model.mjb": (tmp_path / record["model"]).read_bytes()})
    for name in ("body_mass", "body_inertia", "body_pos", "geom_size", "geom_friction", "dof_damping", "dof_armature",
                 "jnt_range", "actuator_gear", "jnt_stiffness"):  # fmt: skip
        getattr(other, name)[:] += 1
    (change,) = stored_task.changes(tmp_path, record, "InvertedPendulum-v5", other)
    assert change.endswith("and 2 more")


def test_create_makes_the_directory(tmp_path: Path) -> None:
    create(CONFIG, tmp_path / "a" / "b", MODEL)
    assert (tmp_path / "a" / "b" / "config.json").is_file()

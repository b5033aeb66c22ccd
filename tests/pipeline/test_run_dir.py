"""A run's directory: who may use it, its lock, links in it, its configuration."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import Command
from pipeline_helpers import small_arguments, train_here
from run_dir_helpers import CONFIG, MODEL, contents, refusal

from pipeline import checkpoint, files, run_dir, stored_run, stored_task
from pipeline.file_names import OWN_NAMES
from pipeline.run_dir import create, locked, new_run, require_unused
from pipeline.run_paths import require_run
from pipeline.stored_run import open_run
from saltus import SaltusError

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
    assert stored_run.read_config(folder, recover=False) == CONFIG


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
    assert [stored_run.read_config(path, recover=False) for path in paths] == configs


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
    [None, b"", b"{", b"{}", b"\0" * 100, b"[" * 10**5, b'{"config": {}}'],
)
def test_lost_config_is_restored_from_the_checkpoint(command: Command, copied: Path, content: bytes | None) -> None:
    expected, _ = open_run(copied)
    file = copied / "config.json"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.warns(UserWarning, match=r"config\.json is missing or damaged .*the checkpoint's copy is used"):
        assert open_run(copied)[0] == expected
    if content == b"{}":
        with pytest.warns(UserWarning, match=r"damaged \(it has no 'config'\)"):
            open_run(copied)
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


def test_run_of_a_registered_task_keeps_its_model(finished: Path) -> None:
    record = json.loads((finished / "config.json").read_text())["task"]
    assert sorted(record) == ["model", "model_sha256"]


@pytest.mark.parametrize("given", [True, False], ids=["--run-dir", "the default"])
def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path, given: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    message = r"^could not make the run's directory runs/\S+: (Not a directory|File exists)\. Choose another --run-dir$"
    with pytest.raises(SaltusError, match=message), new_run(CONFIG, Path("runs/a") if given else None, MODEL):
        pass


def test_create_makes_the_directory(tmp_path: Path) -> None:
    create(CONFIG, tmp_path / "a" / "b", MODEL)
    assert (tmp_path / "a" / "b" / "config.json").is_file()


def test_a_directory_that_does_not_exist_is_refused_with_near_names(tmp_path: Path) -> None:
    for name in ("hopper", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "hopper" / "config.json").touch()
    with pytest.raises(SaltusError, match=r"/hoper does not exist; did you mean hopper\?"):
        require_run(tmp_path / "hoper")
    with pytest.raises(SaltusError, match=r"/note does not exist: name the directory of a run, such as runs/hopper$"):
        require_run(tmp_path / "note")
    with pytest.raises(SaltusError, match=r"/notes is not a run's directory: it has no config\.json$"):
        require_run(tmp_path / "notes")
    checkpoints = tmp_path / "hopper" / "checkpoints"
    for path in (checkpoints, checkpoints / "000000000100.pt", tmp_path):
        path.mkdir(exist_ok=True)
        with pytest.raises(SaltusError, match=rf"it has no config\.json; did you mean {tmp_path}/hopper\?$"):
            require_run(path)

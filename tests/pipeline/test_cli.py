"""The `saltus` command: what it prints, refuses and writes."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import mujoco
import pytest
import torch
from cli_helpers import SWINGER, SWINGER_XML, Command
from pipeline_helpers import PRESETS, finish, read_csv, saltus, small_arguments, small_config, train_here
from run_helpers import quiet_console

import envs
from envs import BatchEnv
from envs.render import RenderError
from envs.tasks import Hopper
from pipeline import checkpoint, cli, files, video
from pipeline import run as run_module
from pipeline import run_dir as run_dir_module
from pipeline.policy import Policy, load_policy
from pipeline.run_dir import locked
from saltus import SaltusError
from saltus import versions as versions_module
from saltus.device import warm_start as warm_start_module

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    train_here(path, "Hopper-v5", total_env_steps=200, eval_every=10**9, preset="sac")
    return path


@pytest.fixture
def copied(run_dir: Path, tmp_path: Path) -> Path:
    """A copy of `run_dir` that a test may change."""
    return shutil.copytree(run_dir, tmp_path / "copy")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(outcome: Any, message: str) -> None:
    """A refusal is one line on stderr that contains `message`, and exit code 1."""
    assert outcome.code == 1
    assert message in outcome.err
    assert outcome.err.startswith("saltus: ")
    assert len(outcome.err.splitlines()) == 1, outcome.err


# Usage


def test_without_a_command_usage_lists_commands_and_tasks(command: Command) -> None:
    outcome = command()
    assert outcome.code == 2
    for name in (
        "train",
        "resume",
        "evaluate",
        "play",
        "export",
        "gradients",
        "profile",
        "check",
        "new",
        *envs.list_tasks(),
    ):
        assert name in outcome.out


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_prints_usage(command: Command, flag: str) -> None:
    outcome = command(flag)
    assert outcome.code == 0
    assert "saltus COMMAND --help" in outcome.out


def test_unknown_command_is_refused_with_usage(command: Command) -> None:
    outcome = command("tarin", "Hopper-v5")
    assert outcome.code not in (0, None)
    assert "no command 'tarin'" in outcome.err
    assert "saltus train TASK" in outcome.out


@pytest.mark.parametrize("name", ["train", "resume", "evaluate", "play", "export", "gradients"])
def test_every_command_has_help(command: Command, name: str) -> None:
    outcome = command(name, "--help")
    assert outcome.code == 0
    assert f"saltus {name}" in outcome.out


# Run directories


def test_directory_of_another_run_is_refused_and_unchanged(command: Command, run_dir: Path) -> None:
    before = contents(run_dir)
    outcome = command("train", "InvertedPendulum-v5", *small_arguments(), "--run-dir", run_dir)
    assert_refused(outcome, f"`saltus resume {run_dir}` continues")
    assert contents(run_dir) == before


def test_file_as_run_dir_is_refused_and_empty_folder_accepted(command: Command, tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("mine")
    folder.mkdir()
    arguments = ["train", "InvertedPendulum-v5", *small_arguments(total_env_steps=60), "--run-dir"]
    assert command(*arguments, file).code == 1
    assert file.read_text() == "mine"
    assert command(*arguments, folder).code == 0
    assert (folder / "config.json").exists()


def test_default_run_dir_is_named_after_task_seed_and_time(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("train", "InvertedPendulum-v5", *small_arguments(total_env_steps=60), "--seed", "7").code == 0
    (created,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"InvertedPendulum-v5-s7-\d{8}-\d{6}", created.name)


@pytest.mark.parametrize("flags", [["--run-dir", ""], ["--run-dir="], ["--run_dir", ""]])
def test_empty_run_dir_is_refused(
    command: Command, tmp_path: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(command("train", "InvertedPendulum-v5", *small_arguments(), *flags), "--run-dir is empty")
    for name in ("resume", "evaluate", "play", "export"):
        assert_refused(command(name, ""), "an argument is empty: name a run's directory")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["resume", "evaluate", "play", "export"])
@pytest.mark.parametrize("flags", [["--task", ""], ["--task="]])
def test_empty_option_is_named(command: Command, name: str, flags: list[str]) -> None:
    assert_refused(command(name, "run", *flags), "the argument after --task is empty (is a shell variable unset?)")


def test_equals_sign_in_the_path_of_a_run_splits_nothing(command: Command, tmp_path: Path) -> None:
    assert_refused(command("evaluate", tmp_path / "seed="), "seed= is not a run's directory")


def test_home_is_expanded_in_the_path_of_a_run(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell leaves the ~ of --run-dir=~/run."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    arguments = small_arguments(total_env_steps=60)
    assert command("train", "InvertedPendulum-v5", *arguments, "--run-dir=~/run").code == 0
    assert command("evaluate", "~/run", "--episodes", 1).code == 0
    assert load_policy("~/run").env_steps == 60
    assert (tmp_path / "run" / "config.json").is_file()
    assert not (tmp_path / "~").exists()


def test_run_has_one_length(command: Command) -> None:
    for flag in ("--total-env-steps", "--total_env_steps"):
        outcome = command("train", "Hopper-v5", "--minutes", "1", flag, "100")
        assert_refused(outcome, "--minutes and --total-env-steps both set the length of the run: give one of them")
    for value in ("0", "-1", "nan", "inf"):
        outcome = command("train", "Hopper-v5", "--minutes", value)
        assert_refused(outcome, f"minutes is {float(value)}; it must be a finite number above 0, or None")


def test_run_without_an_update_says_so(command: Command, tmp_path: Path) -> None:
    outcome = command(
        "train", "InvertedPendulum-v5", "--minutes", "1e-6", "--no-compile", "--run-dir", tmp_path / "run"
    )
    assert outcome.code == 0
    assert "the run ended before its first update: give it more --minutes" in outcome.text


def test_complete_run_of_minutes_is_called_complete(command: Command, tmp_path: Path) -> None:
    arguments = [word for word in small_arguments() if word not in ("--total-env-steps", "400")]
    outcome = command("train", "InvertedPendulum-v5", *arguments, "--minutes", "0.02", "--run-dir", tmp_path / "run")
    assert outcome.code == 0
    outcome = command("resume", tmp_path / "run")
    assert outcome.code == 0
    assert "the run is complete" in outcome.text


@pytest.mark.parametrize("name", ["resume", "evaluate", "play", "export", "gradients"])
def test_folder_without_a_run_is_refused(command: Command, tmp_path: Path, name: str) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert_refused(command(name, folder), f"{folder} is not a run's directory: it has no config.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [("gamma", "0.9"), ("gamma", None), ("utd_ratio", "1"), ("task_options", [])],
)
def test_config_with_values_of_other_types_is_refused(
    command: Command, tmp_path: Path, setting: str, value: object
) -> None:
    content = {"config": small_config().to_dict() | {setting: value}, "versions": versions_module.versions()}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert_refused(command("resume", tmp_path), "config.json is damaged")


@pytest.mark.parametrize("name", ["resume", "evaluate", "play", "export"])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"config": 3}', '{"config": {"task": "Hopper-v5"}}'])
def test_damaged_config_is_refused_by_name(command: Command, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert_refused(command(name, tmp_path), "config.json is damaged")


@pytest.mark.parametrize("name", ["resume", "evaluate"])
def test_previous_checkpoint_is_used_instead_of_a_damaged_one(command: Command, copied: Path, name: str) -> None:
    before, last = checkpoint.find(copied / "checkpoints")
    last.write_bytes(last.read_bytes()[:5000])
    outcome = command(name, copied)
    assert outcome.code == 0
    assert f"warning: checkpoint {last} is truncated or corrupted" in outcome.text
    assert f"The one before is used instead: {before.name}" in outcome.text


def test_run_killed_before_its_first_checkpoint_can_be_started_again(
    command: Command, run_dir: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "run"
    killed.mkdir()
    shutil.copy(run_dir / "config.json", killed)
    assert_refused(command("resume", killed), "no checkpoint: start the run again")
    again = command("train", "InvertedPendulum-v5", *small_arguments(total_env_steps=60), "--run-dir", killed)
    assert again.code == 0, again.text


def test_edited_config_is_refused_with_the_fields_that_differ(command: Command, copied: Path) -> None:
    content = json.loads((copied / "config.json").read_text())
    content["config"]["total_env_steps"] = 999
    (copied / "config.json").write_text(json.dumps(content))
    assert_refused(command("resume", copied), "total_env_steps 200 instead of 999")


def test_resume_with_other_versions_warns_by_name(
    command: Command, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = versions_module.versions()
    monkeypatch.setattr(run_dir_module, "versions", lambda: {**now, "mujoco": "99.0"})
    outcome = command("resume", copied)
    assert outcome.code == 0
    assert f"not bit for bit: versions differ (mujoco {now['mujoco']} -> 99.0)" in outcome.text


def test_checkpoint_of_another_device_is_refused(command: Command, copied: Path) -> None:
    last = checkpoint.find(copied / "checkpoints")[-1]
    content = torch.load(last, weights_only=True)
    content["state"]["device"] = "cuda"
    torch.save(content, last)
    assert_refused(command("resume", copied), "the run was saved on cuda, and cpu draws other random numbers")


def test_run_of_another_process_is_refused_and_unchanged(command: Command, copied: Path) -> None:
    before = contents(copied)
    with locked(copied):
        outcome = command("resume", copied)
    assert_refused(outcome, f"another process is training in {copied}")
    assert contents(copied) == {**before, "lock": b""}
    assert command("resume", copied).code == 0


# Runs of saltus 0.1.0


@pytest.fixture
def old_run(copied: Path) -> Path:
    """A run's directory as saltus 0.1.0 wrote it: other names of settings, checkpoint format 3."""
    content = json.loads((copied / "config.json").read_text())
    config = content["config"]
    for new, old in (
        ("eval_policy_averaging", "policy_average"),
        ("lr_final_fraction", "lr_final"),
        ("weight_normalization", "unit_weights"),
    ):
        config[old] = config.pop(new)
    config["critic_loss"] = "squared"
    content["versions"]["saltus"] = "0.1.0"
    (copied / "config.json").write_text(json.dumps(content))
    for path in checkpoint.find(copied / "checkpoints"):
        old_content = torch.load(path, weights_only=True)
        torch.save({**old_content, "format": 3, "config": config, "versions": content["versions"]}, path)
    return copied


@pytest.mark.parametrize("name", ["resume", "evaluate", "play", "export"])
def test_run_of_an_older_version_is_refused_with_the_version_to_use(command: Command, old_run: Path, name: str) -> None:
    before = contents(old_run)
    current = versions_module.versions()["saltus"]
    message = f"{old_run} was written by saltus 0.1.0, and saltus {current} cannot read it: use saltus 0.1.0 for it"
    assert_refused(command(name, old_run), message)
    with pytest.raises(SaltusError, match=re.escape(message)):
        load_policy(old_run)
    assert contents(old_run) == before


# Output


@pytest.mark.parametrize("preset", PRESETS)
def test_training_prints_no_warning(command: Command, tmp_path: Path, preset: str) -> None:
    arguments = small_arguments(preset, total_env_steps=100)
    outcome = command("train", "InvertedPendulum-v5", *arguments, "--run-dir", tmp_path / "run")
    assert outcome.code == 0
    assert "warning" not in outcome.text.lower()
    assert outcome.err == ""


def test_unstable_physics_is_counted_but_not_printed_at_every_step(
    command: Command, swinger: str, tmp_path: Path
) -> None:
    (tmp_path / "mine" / "swinger.xml").write_text(SWINGER_XML.replace("ctrlrange", 'gear="1e13" ctrlrange'))
    outcome = command("train", swinger, *small_arguments(total_env_steps=60), "--run-dir", "run")
    assert outcome.code == 0
    assert "QACC" not in outcome.text, "MuJoCo's own warnings"
    assert int(read_csv(tmp_path / "run" / "metrics.csv")[-1]["unstable"]) > 10
    assert not (tmp_path / "MUJOCO_LOG.TXT").exists()


def test_paths_are_printed_without_line_breaks(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folder = tmp_path / "a-run-with-a-name-that-is-longer-than-the-line-of-a-terminal" / "and-is-copied-and-pasted"
    outcome = command("train", "InvertedPendulum-v5", *small_arguments(total_env_steps=60), "--run-dir", folder)
    assert f"files: {folder}\n" in outcome.out
    assert str(folder / "learning_curve.png") in outcome.out
    assert str(folder / "evaluation.json") in command("evaluate", folder, "--episodes", 2).out


def test_log_messages_are_printed_during_a_command_and_not_after(tmp_path: Path) -> None:
    log = logging.getLogger("saltus")
    before = log.level, [*log.handlers]
    assert "memory on cpu: replay buffer" in train_here(tmp_path / "run", total_env_steps=60)
    assert (log.level, log.handlers) == before
    with pytest.raises(MemoryError):
        train_here(tmp_path / "large", buffer_size=10**14, total_env_steps=10**14)
    assert (log.level, log.handlers) == before


# Errors


def test_too_large_buffer_is_refused_in_one_line(command: Command, tmp_path: Path) -> None:
    arguments = small_arguments(buffer_size=10**14, total_env_steps=10**14)
    outcome = command("train", "InvertedPendulum-v5", *arguments, "--run-dir", tmp_path / "run")
    assert_refused(outcome, "set buffer_size below")


def test_error_of_the_system_is_printed_in_one_line(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = command("train", "InvertedPendulum-v5", *small_arguments(), "--run-dir", tmp_path / "file" / "run")
    assert_refused(outcome, "Not a directory")


def test_bug_in_saltus_shows_its_traceback(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain ValueError is no refusal, even if a file of saltus raises it."""
    monkeypatch.setattr(run_module, "derive_seed", lambda *_: "no number")
    with pytest.raises(ValueError, match="no number") as error:
        command("train", "InvertedPendulum-v5", *small_arguments(), "--run-dir", tmp_path / "run")
    assert not isinstance(error.value, SaltusError)
    assert not (tmp_path / "run").exists()


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


# Tasks of one's own


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


# Evaluating and playing


def test_evaluate_plays_the_episodes_asked_for_and_is_deterministic(command: Command, run_dir: Path) -> None:
    found = []
    for seed in (0, 0, 1):
        outcome = command("evaluate", run_dir, "--episodes", 7, "--seed", seed)
        assert outcome.code == 0
        found.append(json.loads((run_dir / "evaluation.json").read_text()))
        assert f"{found[-1]['mean']:.1f}" in outcome.out
    first, same, other = found
    assert len(first["returns"]) == len(first["lengths"]) == 7
    assert first["mean"] == pytest.approx(sum(first["returns"]) / 7)
    assert first["interval_95"][0] <= first["mean"] <= first["interval_95"][1]
    assert (first["task"], first["env_steps"], first["failed"]) == ("Hopper-v5", 200, 0)
    assert first == same
    assert first["returns"] != other["returns"]


CHOICES = [((), "best"), (("--policy", "best"), "best"), (("--policy", "last"), "last")]


@pytest.mark.parametrize(("arguments", "expected"), CHOICES)
def test_evaluate_uses_the_policy_asked_for(
    command: Command, run_dir: Path, arguments: tuple[str, ...], expected: str
) -> None:
    outcome = command("evaluate", run_dir, "--episodes", 2, *arguments)
    assert f"Hopper-v5, {expected} policy (after 200 env steps): return" in outcome.out
    assert json.loads((run_dir / "evaluation.json").read_text())["policy"] == expected


@pytest.mark.parametrize(("arguments", "expected"), CHOICES)
@pytest.mark.parametrize("output", [None, "videos/hopper.mp4"])
def test_play_uses_the_policy_and_the_file_asked_for(
    command: Command,
    run_dir: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    expected: str,
    output: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = []

    def record(policy: Policy, env: BatchEnv, steps: int | None, **_: Any) -> video.Recording:
        recorded.append((policy.which, env.num_envs, steps))
        return video.Recording([12.3], True, 4, [], 1)

    monkeypatch.setattr(video, "record", record)
    monkeypatch.setattr(video, "write_video", lambda _recording, _env, path, *_: recorded.append(path))
    monkeypatch.setenv("MUJOCO_GL", "egl")
    flags = () if output is None else ("--output", tmp_path / output)
    outcome = command("play", run_dir, *arguments, *flags)
    path = run_dir / "play.mp4" if output is None else tmp_path / output
    assert recorded == [(expected, 1, None), path]
    assert f"Hopper-v5, {expected} policy (after 200 env steps): return 12.3 in 4 steps (0.0 s)" in outcome.out
    assert str(path) in outcome.out


def test_home_is_expanded_in_the_path_of_a_video(
    command: Command, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    monkeypatch.setattr(video, "record", lambda *_, **__: video.Recording([1.0], True, 1, [], 1))
    monkeypatch.setattr(video, "write_video", lambda _recording, _env, path, *_: written.append(path))
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command("play", run_dir, "--output=~/x.mp4").code == 0
    assert written == [tmp_path / "x.mp4"]


@pytest.mark.parametrize("name", ["evaluate", "play", "export"])
def test_unknown_policy_is_refused(command: Command, run_dir: Path, name: str) -> None:
    assert command(name, run_dir, "--policy", "first").code == 2


def test_evaluate_refuses_zero_episodes(command: Command, run_dir: Path) -> None:
    assert_refused(command("evaluate", run_dir, "--episodes", 0), "episodes is 0; it must be at least 1")


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("evaluate", ["--episodes", 10**12], f"episodes is {10**12}; it must be at least 1 and at most 100,000"),
        ("evaluate", ["--episodes", -1], "episodes is -1; it must be at least 1"),
        ("evaluate", ["--seed", -1], "seed is -1; it must be at least 0"),
        ("evaluate", ["--seed", 2**63], f"seed is {2**63}; it must be at least 0 and at most"),
        ("gradients", ["--states", 1], "states is 1; it must be at least 2 and at most 65,536"),
        ("gradients", ["--estimates", 1001], "estimates is 1001; it must be at least 2 and at most 1,000"),
        ("gradients", ["--reference", 0], "reference is 0; it must be at least 1"),
        ("gradients", ["--output", "curve.pdf"], "--output curve.pdf: the name must end in .png"),
        ("play", ["--seed", -1], "seed is -1; it must be at least 0"),
        ("play", ["--steps", 0], "steps is 0; it must be at least 1"),
        ("play", ["--steps", 10**6], "steps is 1000000; it must be at least 1 and at most 100,000"),
        ("play", ["--size", "641x480"], "size is '641x480'; it must be WIDTHxHEIGHT in pixels"),
        ("play", ["--camera", "front"], "the model has no camera 'front': its cameras are track; 'follow' is"),
    ],
)
def test_numbers_beyond_sense_are_refused(
    command: Command, run_dir: Path, name: str, flags: list[object], message: str
) -> None:
    assert_refused(command(name, run_dir, *flags), message)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_evaluate_prints_its_result_where_it_cannot_write(
    command: Command, run_dir: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = OSError(number, os.strerror(number))
    monkeypatch.setattr(files, "write", lambda *_: (_ for _ in ()).throw(error))
    outcome = command("evaluate", run_dir, "--episodes", 2)
    assert "best policy (after 200 env steps): return" in outcome.out
    message = f"could not write {run_dir}/evaluation.json: {os.strerror(number)}. The result is printed above"
    assert_refused(outcome, message)


@pytest.mark.parametrize("fails", ["open", "folder"])
def test_play_prints_its_result_where_it_cannot_write(
    command: Command, run_dir: Path, tmp_path: Path, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_opengl(*_: object) -> None:
        raise RenderError("no OpenGL to render with")

    monkeypatch.setattr(video, "Renderer", no_opengl if fails == "open" else lambda *_: nullcontext())
    monkeypatch.setenv("MUJOCO_GL", "egl")
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "play.mp4"
    outcome = command("play", run_dir, "--output", path)
    assert "best policy (after 200 env steps): return" in outcome.out
    assert str(path) not in outcome.out
    assert_refused(outcome, "no OpenGL" if fails == "open" else f"could not write {path}: ")


def test_play_refuses_a_name_that_is_no_videos_at_once(command: Command, run_dir: Path) -> None:
    outcome = command("play", run_dir, "--output", "play.txt")
    assert_refused(outcome, "play.txt is no name of a video")
    assert outcome.out == ""


def test_play_records_as_asked(command: Command, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Any] = []
    monkeypatch.setattr(video, "write_video", lambda recording, _env, _path, *rest: written.extend([recording, *rest]))
    monkeypatch.setenv("MUJOCO_GL", "egl")
    outcome = command("play", run_dir, "--steps", 30, "--camera", "track", "--size", "320x200")
    recording, camera, size, _ = written
    assert (recording.length, camera, size) == (30, "track", (320, 200))
    assert f"best policy (after 200 env steps): {recording.summary()} (0.2 s)" in outcome.out
    assert command("play", run_dir, "--camera", "follow").code == 0
    assert written[5].type == mujoco.mjtCamera.mjCAMERA_TRACKING


def test_resume_says_where_it_continues(command: Command, copied: Path) -> None:
    before, last = checkpoint.find(copied / "checkpoints")
    assert f"the run is complete: {last} holds its last env step, 200" in command("resume", copied).out
    last.unlink()
    assert f"continuing from {before}, at 100 of 200 env steps" in command("resume", copied).out


def test_version_is_printed(command: Command) -> None:
    outcome = command("--version")
    assert outcome.code in (0, None)
    assert outcome.out == f"saltus {versions_module.versions()['saltus']}\n"


def has_opengl() -> bool:
    """Whether MuJoCo finds an OpenGL for machines without a display."""
    code = "import mujoco; mujoco.GLContext(64, 64).make_current()"
    return any(
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "MUJOCO_GL": name}, capture_output=True, check=False
        ).returncode == 0
        for name in ("egl", "osmesa")
    )  # fmt: skip


@pytest.mark.slow
def test_play_writes_a_video_of_an_own_task(command: Command, swinger: str, tmp_path: Path) -> None:
    if not has_opengl():
        pytest.skip("no OpenGL")
    assert command("train", swinger, *small_arguments(total_env_steps=60), "--run-dir", "run").code == 0
    environment = {name: "" for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")}
    path = tmp_path / "videos" / "swinger.mp4"
    output = finish(saltus("play", tmp_path / "run", "--output", path, cwd=tmp_path / "mine", **environment))
    assert "Swinger, best policy (after 60 env steps): return" in output
    frames = imageio.mimread(path, memtest=False)
    assert len(frames) == 10, "every second of 20 steps of 0.01 s, for at most 60 frames per second"
    with imageio.get_reader(path) as reader:
        assert reader.get_meta_data()["fps"] == pytest.approx(50)
    assert all(frame.std() > 1 for frame in frames)
    assert (frames[0].astype(float) - frames[-1]).std() > 0.1, "the world does not move"


@pytest.mark.slow
def test_play_without_opengl_says_what_to_install(run_dir: Path) -> None:
    process = saltus("play", run_dir, MUJOCO_GL="disable")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "apt install libegl1" in output
    assert "apt install libosmesa6" in output
    assert "Traceback" not in output
    assert not (run_dir / "play.mp4").exists()
    result, error = output.strip().splitlines()
    assert "best policy (after 200 env steps): return" in result
    assert error.startswith("saltus: no OpenGL")


# Start of the compiler


@pytest.mark.parametrize(
    ("flags", "cuda", "started"),
    [
        ((), False, 1),
        ((), True, 0),
        (("--device", "cpu"), True, 1),
        (("--device", "cuda"), False, 0),
        (("--no-compile",), False, 0),
    ],
)
def test_compiler_is_started_early_if_updates_are_compiled_on_the_cpu(
    flags: tuple[str, ...], cuda: bool, started: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_run(*_: object) -> None:
        raise SaltusError("no run")

    calls: list[None] = []
    monkeypatch.setattr(warm_start_module, "warm_start", lambda: calls.append(None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(run_module, "Run", no_run)
    with pytest.raises(SaltusError, match="no run"):
        cli.train(["InvertedPendulum-v5", *flags, "--run-dir", str(tmp_path / "run")], quiet_console())
    assert len(calls) == started


WITHOUT_TEMPORARY_FOLDER = """
import runpy, tempfile
tempfile._candidate_tempdir_list = lambda: ["/dev/null"]
runpy.run_module("saltus", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], "saltus train TASK"),
        (["evaluate", "{run_dir}", "--episodes", "2"], "2 episodes"),
        pytest.param(
            ["train", "InvertedPendulum-v5", *small_arguments(total_env_steps=60, compile=True), "--run-dir", "run"],
            "finished after",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["help", "evaluate", "train"],
)
def test_commands_work_without_a_temporary_folder(
    arguments: list[str], expected: str, copied: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    words = [word.format(run_dir=copied) for word in arguments]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TEMPORARY_FOLDER, *words],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert expected in output
    assert [line for line in output.splitlines() if "warning" in line] == [
        "warning: no folder can be written for temporary files: set TMPDIR to one ([Errno 2] No usable temporary "
        "directory found in ['/dev/null']). Without one, updates run eagerly, two to four times slower"
    ]

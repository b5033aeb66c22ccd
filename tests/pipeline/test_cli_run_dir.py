"""The `saltus` command and runs' directories: which it refuses, which it continues."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from cli_helpers import Command, assert_refused, contents
from pipeline_helpers import small_arguments, small_config

from pipeline import checkpoint, stored_run
from pipeline.policy import load_policy
from pipeline.run_dir import locked
from saltus import SaltusError
from saltus import versions as versions_module

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


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


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("resume", ["--total-env-steps", "500"]),
        ("resume", ["--minutes=5"]),
        ("evaluate", ["--device", "cuda"]),
        ("play", ["--no-compile"]),
    ],
)
def test_setting_of_a_run_is_no_option_of_the_commands_on_it(command: Command, name: str, flags: list[str]) -> None:
    assert_refused(
        command(name, "run", *flags),
        f"{flags[0].partition('=')[0]} is an option of `saltus train`, and a run keeps its settings, also its length",
    )


@pytest.mark.parametrize("name", ["resume", "evaluate", "play", "export"])
@pytest.mark.parametrize("flags", [["--task", ""], ["--task="]])
def test_empty_option_is_named(command: Command, name: str, flags: list[str]) -> None:
    assert_refused(command(name, "run", *flags), "the argument after --task is empty (is a shell variable unset?)")


def test_equals_sign_in_the_path_of_a_run_splits_nothing(command: Command, tmp_path: Path) -> None:
    assert_refused(command("evaluate", tmp_path / "seed="), "seed= does not exist")


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


@pytest.mark.parametrize("name", ["resume", "evaluate", "play", "export", "gradients"])
def test_folder_without_a_run_is_refused(command: Command, tmp_path: Path, name: str) -> None:
    assert_refused(command(name, tmp_path), f"{tmp_path} is not a run's directory: it has no config.json")
    assert_refused(command(name, tmp_path / "nowhere"), f"{tmp_path / 'nowhere'} does not exist")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("tau", "0.9", "config.json: tau is '0.9'; it must be in (0, 1]"),
        ("tau", None, "config.json: tau is None; it must be in (0, 1]"),
        ("utd_ratio", "1", "config.json: utd_ratio is '1'; it must be a finite number above 0"),
        ("task_options", [], "config.json is damaged"),
    ],
)
def test_config_with_values_of_other_types_is_refused(
    command: Command, tmp_path: Path, setting: str, value: object, message: str
) -> None:
    content = {"config": small_config().to_dict() | {setting: value}, "versions": versions_module.versions()}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert_refused(command("resume", tmp_path), message)


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
    monkeypatch.setattr(stored_run, "versions", lambda: {**now, "mujoco": "99.0"})
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


def test_resume_says_where_it_continues(command: Command, copied: Path) -> None:
    before, last = checkpoint.find(copied / "checkpoints")
    assert f"the run is complete: {last} holds its last env step, 200" in command("resume", copied).out
    last.unlink()
    assert f"continuing from {before}, at 100 of 200 env steps" in command("resume", copied).out

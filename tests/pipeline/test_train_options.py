"""The options of `saltus train`: help, refusals, old names, and the task's own options."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cli_helpers import SWINGER, Command
from pipeline_helpers import small_arguments, small_config

import envs
from envs import Simulation
from pipeline import checkpoint, presets
from pipeline.train_options import parse_train


def without_boxes(text: str) -> str:
    return re.sub(r"[│╭╮╰╯─\s]+", " ", text)


def test_help_lists_settings_presets_tasks_and_the_tasks_own_options(command: Command) -> None:
    text = without_boxes(command("train", "Hopper-v5", "--help").out)
    for flag in ("--utd-ratio", "--buffer-size", "--no-compile", "--preset", "--run-dir", "--task.reset-noise-scale"):
        assert flag in text
    assert all(f"--{name.replace('_', '-')} " in text for name in vars(Simulation()))
    assert all(name in text for name in [*presets.names(), *envs.list_tasks()])
    assert "--task.contact-cost-weight" in command("train", "Humanoid-v5", "--help").out
    assert "--utd-ratio" in command("train", "--help").out


def test_help_shows_the_defaults_of_the_preset(command: Command) -> None:
    assert "steps per env step. (default: 20.0)" in without_boxes(command("train", "--preset", "redq", "--help").out)


@pytest.mark.parametrize("arguments", [[], ["--seed", "3"], ["--preset", "sac"]])
def test_train_without_a_task_is_refused_with_a_list(command: Command, arguments: list[str]) -> None:
    outcome = command("train", *arguments)
    assert outcome.code == 1
    assert all(name in outcome.err for name in envs.list_tasks())
    assert "path/to/file.py:ClassName" in outcome.err


def test_misspelt_task_is_refused_with_a_suggestion(command: Command) -> None:
    outcome = command("train", "hoper-v5")
    assert outcome.code == 1
    assert "no task 'hoper-v5'" in outcome.err
    assert "did you mean Hopper-v5" in outcome.err


def test_unknown_preset_is_refused_with_a_list(command: Command) -> None:
    outcome = command("train", "Hopper-v5", "--preset", "ppo")
    assert outcome.code == 1
    assert all(name in outcome.err for name in ("'ppo'", *presets.names()))


REFUSED = [
    (["--num-envs", "0"], "num_envs is 0"),
    (["--gamma", "1.5"], "gamma is 1.5"),
    (["--utd-ratio", "0.3"], "nearest valid ratios are 0.25 or 0.5"),
    (["--buffer-size", "3"], "holds 3 transitions and 4 worlds"),
    (["--batch-size", "41"], "batch_size = 41"),
    (["--batch-size", "many"], "many"),
    (["--dropout", "0.1"], "--dropout needs --critic-loss mse and --critic-norm layer or none"),
    (["--target-network"], "need --critic-loss categorical"),
    (["--critic-loss", "hinge"], "hinge"),
    (["--tau", "0.01"], "--tau has no effect here: it needs --target-network"),
    (["--num-atoms", "11"], "--num-atoms has no effect here: it needs --critic-loss categorical"),
    (["--value-range", "2"], "--value-range has no effect here: it needs --critic-loss categorical"),
    (["--preset", "sac", "--norm-order", "before"], "it needs --critic-norm batch and --network mlp"),
    (["--target-entropy", "-1", "--target-entropy-scale", "0.5"], "it needs --target-entropy auto"),
    (["--lr-schedule", "cosine"], "--lr-schedule has no effect here: it needs --lr-final-fraction below 1"),
    (["--critic-hidden", "16", "0"], "critic_hidden"),
    (["--no-such-option", "1"], "--no-such-option"),
    (["--task.reset-noise-scale", "much"], "much"),
    (["--task.no-such-option", "1"], "--task.no-such-option"),
    # Names of saltus 0.1.0.
    (["--policy-average", "0.1"], "--policy-average is now --eval-policy-averaging"),
    (["--policy_average=0.1"], "--policy-average is now --eval-policy-averaging"),
    (["--lr-final", "0.1"], "--lr-final is now --lr-final-fraction"),
    (["--unit-weights", "all"], "--unit-weights is now --weight-normalization"),
    (["--critic-loss", "squared"], "--critic-loss squared is now --critic-loss mse"),
    (["--critic-loss=squared"], "--critic-loss squared is now --critic-loss mse"),
    (["--reward-scaling", "deviation"], "--reward-scaling deviation is now --reward-scaling std"),
]


@pytest.mark.parametrize(("flags", "message"), REFUSED, ids=[" ".join(flags) for flags, _ in REFUSED])
def test_refused_option_writes_nothing(command: Command, tmp_path: Path, flags: list[str], message: str) -> None:
    outcome = command("train", "InvertedPendulum-v5", *small_arguments(), "--run-dir", tmp_path / "run", *flags)
    assert outcome.code not in (0, None)
    assert message in without_boxes(outcome.err)
    assert not (tmp_path / "run").exists()


def test_options_override_the_preset(tmp_path: Path) -> None:
    arguments = ["InvertedPendulum-v5", *small_arguments("sac", gamma=0.9)]
    assert parse_train(arguments) == (small_config(preset="sac", gamma=0.9), None)
    assert parse_train([*arguments, "--run-dir", str(tmp_path)])[1] == tmp_path


def test_task_options_reach_the_task_and_the_config(command: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--task.reset-noise-scale", "0.02", "--task.no-exclude-current-positions-from-observation"]
    flags += ["--task.healthy-z-range", "0.8", "inf"]
    assert command("train", "Hopper-v5", *small_arguments(total_env_steps=60), "--run-dir", run, *flags).code == 0
    assert json.loads((run / "config.json").read_text())["config"]["task_options"] == {
        "reset_noise_scale": 0.02,
        "exclude_current_positions_from_observation": False,
        "healthy_z_range": [0.8, float("inf")],
    }
    state = checkpoint.load(checkpoint.find(run / "checkpoints")[-1])["state"]
    assert state["observation"].shape == (4, 12), "12 observations include the x position"
    assert command("evaluate", run, "--episodes", 2).code == 0
    assert command("resume", run).code == 0


def test_task_option_without_a_json_type_works_or_is_refused_by_name(
    command: Command, swinger: str, tmp_path: Path
) -> None:
    source = SWINGER.replace("import torch", "from pathlib import Path\nimport torch")
    source = source.replace("target: float = 0.5", "target: float = 0.5\n    notes: Path = Path('a')")
    (tmp_path / "mine" / "swinger.py").write_text(source)
    outcome = command("train", swinger, *small_arguments(total_env_steps=60), "--run-dir", "run", "--task.notes", "b")
    assert outcome.code == 0 or (outcome.code == 1 and "notes" in outcome.err)
    assert outcome.code == 0 or not (tmp_path / "run").exists()


def test_task_option_without_a_default_is_required(command: Command, swinger: str, tmp_path: Path) -> None:
    source = SWINGER.replace("max_episode_steps: int = 20", "").replace("frame_skip: int = 5", "frame_skip = 5")
    (tmp_path / "mine" / "swinger.py").write_text(source.replace("target: float = 0.5", "target: float"))
    arguments = ["train", swinger, *small_arguments(total_env_steps=60), "--run-dir", "run"]
    outcome = command(*arguments)
    assert outcome.code not in (0, None)
    assert "target" in outcome.text
    assert not (tmp_path / "run").exists()
    assert command(*arguments, "--task.target", "0.3").code == 0

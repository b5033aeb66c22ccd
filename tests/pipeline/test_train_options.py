"""The options of `saltus train`: help, refusals, old names, and the task's own options."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from cli_helpers import SWINGER, Command
from pipeline_helpers import small_arguments, small_config

import envs
from envs import Simulation
from pipeline import checkpoint, presets
from pipeline.policy import load_policy
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
    (["--tau", "0.01"], "--tau has no effect here: it needs --target-network or --value-network"),
    (["--value-network"], "with --value-network see no (s', a'): set --critic-norm none or layer"),
    (["--preset", "sac-v1", "--alpha-lr", "1e-3"], "set --alpha-lr 0; --preset sac learns the temperature"),
    (["--alpha-lr", "0", "--target-entropy", "-1"], "--target-entropy has no effect here: it needs --alpha-lr above 0"),
    (["--alpha-lr", "0", "--alpha-loss", "log"], "--alpha-loss has no effect here: it needs --alpha-lr above 0"),
    (["--num-atoms", "11"], "--num-atoms has no effect here: it needs --critic-loss categorical"),
    (["--value-range", "2"], "--value-range has no effect here: it needs --critic-loss categorical"),
    (["--preset", "sac", "--norm-order", "before"], "it needs --critic-norm batch and --network mlp"),
    (
        ["--target-entropy", "-1", "--target-entropy-scale", "0.5"],
        "it needs --target-entropy auto and --alpha-lr above 0",
    ),
    (
        ["--preset", "sac-v1", "--target-subset", "2"],
        "--target-subset has no effect here: it needs --num-critics",
    ),
    (["--preset", "sac", "--num-critics", "1", "--actor-value", "mean"], "--actor-value has no effect here: it needs"),
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


ZOO = """
import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import mujoco
import numpy as np
import torch

from envs import Task


class Mode(enum.Enum):
    WALK = 1
    RUN = 2


@dataclass
class Limits:
    low: float = 0.0
    high: float = 1.0
    file: Path | None = None


@dataclass
class Angle:
    degrees: float = 90.0

    def __post_init__(self):
        self.degrees = 2 * self.degrees


@dataclass
class Zoo(Task):
    mjcf = "swinger.xml"
    max_episode_steps: int = 20
    degrees: float = 90.0
    folder: Path = Path("models")
    files: tuple[Path, ...] = ()
    names: list[str] = field(default_factory=list)
    codes: set[int] = field(default_factory=set)
    paths: set[Path] = field(default_factory=set)
    frozen: frozenset[Path] = frozenset()
    raw: bytes = b"x"
    mode: Mode = Mode.WALK
    limits: Limits = field(default_factory=Limits)
    angle: Angle = field(default_factory=Angle)
    table: dict[int, float] = field(default_factory=lambda: {1: 2.0})
    missing: float = float("nan")
    anything: Any = None
    gains: np.ndarray = field(default_factory=lambda: np.ones(2))
    spec: mujoco.MjSpec = field(default_factory=mujoco.MjSpec)
    radians: float = field(init=False)

    def __post_init__(self):
        self.radians = self.degrees = self.degrees * np.pi / 180
        assert isinstance(self.mode, Mode)
        assert isinstance(self.limits, Limits)
        self.mode = None

    def observation(self, state):
        return torch.cat([state.qpos - self.radians, state.qvel], dim=-1)

    def reward(self, state, action, next_state):
        return self.limits.high * next_state.qpos[:, 0]
"""


@pytest.fixture
def zoo(swinger: str, tmp_path: Path) -> str:
    """A task with an option of every kind, in the working directory's folder `mine`."""
    (tmp_path / "mine" / "zoo.py").write_text(ZOO)
    return "mine/zoo.py:Zoo"


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ("", {}),
        ("--task.degrees 90", {}),
        ("--task.degrees 45", {"degrees": 45.0}),
        ("--task.missing nan", {}),
        ("--task.missing 1", {"missing": 1.0}),
        ("--task.names b a", {"names": ["b", "a"]}),
        ("--task.codes 3 1", {"codes": [1, 3]}),
        ("--task.paths none mine/zoo.py", {"paths": ["{cwd}/mine/zoo.py", "none"]}),
        ("--task.frozen mine", {"frozen": ["{cwd}/mine"]}),
        ("--task.raw yz", {"raw": "797a"}),
        ("--task.mode RUN", {"mode": "RUN"}),
        ("--task.limits.high 2", {"limits": {"low": 0.0, "high": 2.0, "file": None}}),
        ("--task.limits.file mine/zoo.py", {"limits": {"low": 0.0, "high": 1.0, "file": "{cwd}/mine/zoo.py"}}),
        ("--task.table.1 3", {"table": [[1, 3.0]]}),
        ("--task.folder mine", {"folder": "{cwd}/mine"}),
        ("--task.folder elsewhere", {"folder": "elsewhere"}),
        ("--task.files mine/zoo.py none", {"files": ["{cwd}/mine/zoo.py", "none"]}),
    ],
)
def test_options_are_kept_as_the_user_gave_them(
    flags: str, options: dict[str, object], zoo: str, tmp_path: Path
) -> None:
    """Without those that have their default, before `__post_init__`; paths of files that exist hold in any folder."""
    config, _ = parse_train([zoo, *flags.split()])
    assert json.dumps(config.task_options) == json.dumps(options).replace("{cwd}", str(tmp_path))
    assert config.task == f"{tmp_path}/mine/zoo.py:Zoo"


def test_options_are_the_same_in_training_resume_and_evaluation(
    command: Command, zoo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--task.degrees=45", "--task.mode=RUN", "--task.limits.high=2", "--task.table.1=3", "--task.folder=mine"]
    assert command("train", zoo, *small_arguments(total_env_steps=60), "--run-dir", "run", *flags).code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command("resume", "../run").code == 0
    assert command("evaluate", "../run", "--episodes", 2).code == 0
    task = load_policy("../run").make_env(1).task
    assert isinstance(task, envs.find_task(f"{tmp_path}/mine/zoo.py:Zoo"))
    assert (task.radians, task.folder) == (pytest.approx(math.pi / 4), tmp_path / "mine")
    assert (task.limits.high, task.table) == (2.0, {1: 3.0})


@pytest.mark.parametrize(
    ("old", "new", "flags", "message"),
    [
        ("anything: Any", "anything: complex", ["--task.anything", "1j"], "'anything' of task Zoo cannot be kept"),
        ("", "", ["--task.angle.degrees", "3"], "'angle' of task Zoo cannot be kept"),
        ("anything: Any", "seed: Any", [], "option 'seed', which is an argument of saltus.make"),
        ("folder: Path", "dt: Path", [], "defines 'dt', which saltus sets"),
        ('mjcf = "swinger.xml"', 'mjcf = "swinger.xml"; fields = ("qpos")', [], "fields = ('qpos',)"),
        (
            "def reward(self, state, action, next_state)",
            "def reward(self, state, action)",
            [],
            "def reward(self, state, a",
        ),
    ],
)
def test_faulty_task_is_refused_before_a_directory_is_made(
    old: str, new: str, flags: list[str], message: str, command: Command, zoo: str, tmp_path: Path
) -> None:
    (tmp_path / "mine" / "zoo.py").write_text(ZOO.replace(old, new))
    outcome = command("train", zoo, *small_arguments(), "--run-dir", "run", *flags)
    assert outcome.code == 1
    assert message in outcome.text
    assert not (tmp_path / "run").exists()


def test_error_in_post_init_is_not_taken_for_a_wrong_option(command: Command, zoo: str, tmp_path: Path) -> None:
    (tmp_path / "mine" / "zoo.py").write_text(ZOO.replace("self.mode = None", "len(3)"))
    with pytest.raises(TypeError, match=r"object of type 'int' has no len\(\)"):
        command("train", zoo, *small_arguments(), "--run-dir", "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["mine/zoo.py", "mine/zoo.py:"])
def test_file_without_a_class_lists_its_classes(name: str, command: Command, zoo: str) -> None:
    outcome = command("train", name, *small_arguments())
    assert outcome.code == 1
    assert "name a class in it, as in mine/zoo.py:Zoo; it has Zoo" in outcome.text


def test_xml_file_in_the_current_folder_holds_in_any_folder(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = envs.make("InvertedPendulum-v5", 1).task.mjcf.read_text()
    (tmp_path / "my.xml").write_text(model)
    config, _ = parse_train(["InvertedPendulum-v5", "--task.xml-file", "my.xml"])
    assert config.task_options == {"xml_file": f"{tmp_path}/my.xml"}
    assert parse_train(["Hopper-v5", "--task.xml-file", "half_cheetah.xml"])[0].task_options == {
        "xml_file": "half_cheetah.xml"
    }
    for name in ("half_cheetah.xml", "hopper.xml"):
        (tmp_path / name).write_text("<mujoco/>")
    assert parse_train(["Hopper-v5", "--task.xml-file", "half_cheetah.xml"])[0].task_options == {
        "xml_file": "half_cheetah.xml"
    }, "as in Python, a plain name is Gymnasium's model"
    assert parse_train(["Hopper-v5", "--task.xml-file", "hopper.xml"])[0].task_options == {}
    assert parse_train(["Hopper-v5", "--task.xml-file", "./hopper.xml"])[0].task_options == {
        "xml_file": f"{tmp_path}/hopper.xml"
    }
    outcome = command("train", "Hopper-v5", *small_arguments(), "--task.xml-file", "no.xml", "--run-dir", "run")
    assert outcome.code == 1
    assert f"there is no file {tmp_path}/no.xml" in outcome.text


@pytest.mark.parametrize("arguments", [["Hopper-v5", "--preset"], ["Hopper-v5", "--preset", "--seed", "3"]])
def test_preset_without_a_name_is_refused_with_a_list(command: Command, arguments: list[str]) -> None:
    outcome = command("train", *arguments)
    assert outcome.code == 1
    assert f"--preset needs a name: one of {', '.join(presets.names())}" in outcome.text


def test_help_without_a_task_shows_no_tasks_options(command: Command) -> None:
    outcome = command("train", "--help")
    assert outcome.code == 0
    assert "usage: saltus train TASK" in outcome.out
    assert "The options of a task: saltus train <task> --help" in without_boxes(outcome.out)
    assert "--task." not in outcome.out


def test_task_option_without_a_default_is_required(command: Command, swinger: str, tmp_path: Path) -> None:
    source = SWINGER.replace("max_episode_steps: int = 20", "").replace("frame_skip: int = 5", "frame_skip = 5")
    (tmp_path / "mine" / "swinger.py").write_text(source.replace("target: float = 0.5", "target: float"))
    arguments = ["train", swinger, *small_arguments(total_env_steps=60), "--run-dir", "run"]
    outcome = command(*arguments)
    assert outcome.code not in (0, None)
    assert "target" in outcome.text
    assert not (tmp_path / "run").exists()
    assert command(*arguments, "--task.target", "0.3").code == 0

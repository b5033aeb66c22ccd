from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import pytest
import torch
from pipeline_helpers import PRESETS, finish, read_csv, saltus, small_arguments, train_here
from rich.console import Console

import envs
from envs.tasks import Hopper
from pipeline import checkpoint, cli, graph, presets
from pipeline import run as run_module
from pipeline.run import locked

SWINGER = '''
from __future__ import annotations

from dataclasses import dataclass

import torch

from envs import Task


@dataclass
class Swinger(Task):
    """A pendulum that is to be swung up."""

    mjcf = "swinger.xml"
    max_episode_steps: int = 20
    frame_skip: int = 5
    target: float = 0.5
    weights: tuple[float, float] = (1.0, 0.1)

    def observation(self, state):
        return torch.cat([state.qpos.sin(), state.qpos.cos(), state.qvel], dim=-1)

    def reward(self, state, action, next_state):
        return -self.weights[0] * (next_state.qpos[:, 0] - self.target).square()
'''

SWINGER_XML = """
<mujoco>
  <worldbody>
    <light pos="0 0 3"/>
    <body>
      <joint name="hinge" axis="0 1 0" damping="0.1"/>
      <geom type="capsule" fromto="0 0 0 0 0 -0.5" size="0.05"/>
    </body>
  </worldbody>
  <actuator><motor joint="hinge" ctrlrange="-1 1"/></actuator>
</mujoco>
"""


@dataclass
class Outcome:
    code: object
    out: str
    err: str

    @property
    def text(self) -> str:
        """What was printed, its lines joined."""
        return " ".join((self.out + " " + self.err).split())


Command = Callable[..., Outcome]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """The `saltus` command in this process: its exit code and what it printed."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["saltus", *map(str, arguments)])
        code: object = 0
        capsys.readouterr()
        try:
            cli.main()
        except SystemExit as exit_:
            code = exit_.code
            if isinstance(code, str):  # what Python does with it
                print(code, file=sys.stderr)
                code = 1
        return Outcome(code, *capsys.readouterr())

    with warnings.catch_warnings():
        yield run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    train_here(path, "Hopper-v5", total_env_steps=200, eval_every=10**9, preset="sac")
    return path


@pytest.fixture
def swinger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A task in a user's own file, relative to the working directory."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "swinger.py").write_text(SWINGER)
    (folder / "swinger.xml").write_text(SWINGER_XML)
    monkeypatch.chdir(tmp_path)
    return "mine/swinger.py:Swinger"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_without_a_command_it_says_what_there_is(command: Command) -> None:
    outcome = command()
    assert outcome.code == 2
    for name in ("train", "resume", "evaluate", "play", *envs.list_tasks()):
        assert name in outcome.out


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_no_error(command: Command, flag: str) -> None:
    outcome = command(flag)
    assert outcome.code == 0
    assert "saltus COMMAND --help" in outcome.out


def test_an_unknown_command_is_named_and_the_others_listed(command: Command) -> None:
    outcome = command("tarin", "Hopper-v5")
    assert outcome.code not in (0, None)
    assert "no command 'tarin'" in outcome.err
    assert "saltus train TASK" in outcome.out


@pytest.mark.parametrize("name", ["train", "resume", "evaluate", "play"])
def test_every_command_explains_itself(command: Command, name: str) -> None:
    outcome = command(name, "--help")
    assert outcome.code == 0
    assert f"saltus {name}" in outcome.out


def test_the_help_of_train_lists_settings_presets_and_the_tasks_own_options(command: Command) -> None:
    help_ = command("train", "Hopper-v5", "--help").out
    for flag in ("--utd-ratio", "--buffer-size", "--no-compile", "--preset", "--run-dir", "--task.reset-noise-scale"):
        assert flag in help_
    assert all(name in help_ for name in presets.names())
    assert "--task.contact-cost-weight" in command("train", "Humanoid-v5", "--help").out


@pytest.mark.parametrize("arguments", [[], ["--seed", "3"], ["--preset", "sac"]])
def test_train_without_a_task_names_the_tasks(command: Command, arguments: list[str]) -> None:
    outcome = command("train", *arguments)
    assert outcome.code == 1
    assert all(name in outcome.err for name in envs.list_tasks())
    assert "path/to/file.py:ClassName" in outcome.err


def test_a_misspelt_task_is_met_with_the_near_one(command: Command) -> None:
    outcome = command("train", "hoper-v5")
    assert outcome.code == 1
    assert "no task 'hoper-v5'" in outcome.err
    assert "did you mean Hopper-v5" in outcome.err


def test_an_unknown_preset_lists_those_there_are(command: Command) -> None:
    outcome = command("train", "Hopper-v5", "--preset", "ppo")
    assert outcome.code == 1
    assert all(name in outcome.err for name in ("'ppo'", *presets.names()))


REFUSED = [
    (["--num-envs", "0"], "num_envs is 0"),
    (["--gamma", "1.5"], "gamma is 1.5"),
    (["--utd-ratio", "0.3"], "nearest ratios that work are 0.25 or 0.5"),
    (["--buffer-size", "3"], "holds 3 transitions and 4 worlds"),
    (["--batch-size", "41"], "batch_size = 41"),
    (["--batch-size", "many"], "many"),
    (["--dropout", "0.1"], "dropout goes with --critic-loss mse and --critic-norm layer or none"),
    (["--target-network"], "need --critic-loss categorical"),
    (["--critic-loss", "hinge"], "hinge"),
    (["--tau", "0.01"], "--tau has no effect here: it goes with --target-network"),
    (["--num-atoms", "11"], "--num-atoms has no effect here: it goes with --critic-loss categorical"),
    (["--value-range", "2"], "--value-range has no effect here: it goes with --critic-loss categorical"),
    (["--preset", "sac", "--norm-order", "before"], "it goes with --critic-norm batch and --network mlp"),
    (["--target-entropy", "-1", "--target-entropy-scale", "0.5"], "it goes with --target-entropy auto"),
    (["--lr-schedule", "cosine"], "--lr-schedule has no effect here: it goes with an --lr-final-fraction below 1"),
    (["--critic-hidden", "16", "0"], "critic_hidden"),
    (["--no-such-option", "1"], "--no-such-option"),
    (["--task.reset-noise-scale", "much"], "much"),
    (["--task.no-such-option", "1"], "--task.no-such-option"),
]


@pytest.mark.parametrize(("flags", "said"), REFUSED, ids=[" ".join(flags) for flags, _ in REFUSED])
def test_what_is_refused_is_refused_before_anything_is_written(
    command: Command, tmp_path: Path, flags: list[str], said: str
) -> None:
    outcome = command("train", "InvertedPendulum-v5", *small_arguments(), "--run-dir", tmp_path / "run", *flags)
    assert outcome.code not in (0, None)
    assert said in re.sub(r"[│╭╮╰╯─\s]+", " ", outcome.err)
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_refused_and_left_untouched(command: Command, run_dir: Path) -> None:
    before = contents(run_dir)
    outcome = command("train", "InvertedPendulum-v5", *small_arguments(), "--run-dir", run_dir)
    assert outcome.code == 1
    assert f"`saltus resume {run_dir}` continues" in outcome.err
    assert contents(run_dir) == before


def test_a_file_in_the_way_is_refused_and_an_empty_folder_taken(command: Command, tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("mine")
    folder.mkdir()
    arguments = ["train", "InvertedPendulum-v5", *small_arguments(total_env_steps=60), "--run-dir"]
    assert command(*arguments, file).code == 1
    assert file.read_text() == "mine"
    assert command(*arguments, folder).code == 0
    assert (folder / "config.json").exists()


def test_without_a_run_dir_the_run_is_named_after_task_seed_and_time(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("train", "InvertedPendulum-v5", *small_arguments(total_env_steps=60), "--seed", "7").code == 0
    (made,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"InvertedPendulum-v5-s7-\d{8}-\d{6}", made.name)


@pytest.mark.parametrize("name", ["resume", "evaluate", "play"])
def test_a_folder_that_is_no_run_is_refused(command: Command, tmp_path: Path, name: str) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        outcome = command(name, folder)
        assert outcome.code == 1
        assert f"{folder} is not the directory of a run: it has no config.json" in outcome.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["resume", "evaluate", "play"])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"config": 3}', '{"config": {"task": "Hopper-v5"}}'])
def test_a_damaged_configuration_is_refused_by_name(command: Command, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    outcome = command(name, tmp_path)
    assert outcome.code == 1
    assert re.search(r"config\.json is damaged|another version of saltus", outcome.err)


def copy_of(run_dir: Path, folder: Path) -> Path:
    for name, content in contents(run_dir).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.mark.parametrize("name", ["resume", "evaluate"])
def test_a_damaged_checkpoint_is_refused_and_without_it_the_run_goes_on_from_the_one_before(
    command: Command, run_dir: Path, tmp_path: Path, name: str
) -> None:
    copy = copy_of(run_dir, tmp_path / "copy")
    before, last = checkpoint.find(copy / "checkpoints")
    last.write_bytes(last.read_bytes()[:5000])
    outcome = command(name, copy)
    assert outcome.code == 1
    assert f"Delete it, and the run resumes from the one before, {before.name}" in outcome.text
    last.unlink()
    assert command(name, copy).code == 0


def test_a_run_killed_before_its_first_checkpoint_can_be_started_again_as_its_message_says(
    command: Command, run_dir: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "run"
    killed.mkdir()
    (killed / "config.json").write_bytes((run_dir / "config.json").read_bytes())
    outcome = command("resume", killed)
    assert outcome.code == 1
    assert "no checkpoint: start the run again" in outcome.text
    again = command("train", "InvertedPendulum-v5", *small_arguments(total_env_steps=60), "--run-dir", killed)
    assert again.code == 0, again.text


def test_a_configuration_changed_by_hand_is_refused_by_field(command: Command, run_dir: Path, tmp_path: Path) -> None:
    copy = copy_of(run_dir, tmp_path / "copy")
    content = json.loads((copy / "config.json").read_text())
    content["config"]["total_env_steps"] = 999
    (copy / "config.json").write_text(json.dumps(content))
    outcome = command("resume", copy)
    assert outcome.code == 1
    assert "total_env_steps 200 instead of 999" in outcome.text


def test_resuming_under_other_versions_warns_by_name(
    command: Command, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copy_of(run_dir, tmp_path / "copy")
    now = checkpoint.versions()
    monkeypatch.setattr(checkpoint, "versions", lambda: {**now, "mujoco": "99.0"})
    outcome = command("resume", copy)
    assert outcome.code == 0
    assert f"not bit for bit: versions differ (mujoco {now['mujoco']} -> 99.0)" in outcome.text


@pytest.mark.parametrize("preset", PRESETS)
def test_a_run_that_goes_well_warns_of_nothing(command: Command, tmp_path: Path, preset: str) -> None:
    arguments = small_arguments(preset, total_env_steps=100)
    outcome = command("train", "InvertedPendulum-v5", *arguments, "--run-dir", tmp_path / "run")
    assert outcome.code == 0
    assert "warning" not in outcome.text.lower()
    assert outcome.err == ""


def test_paths_are_printed_in_one_piece_however_long(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folder = tmp_path / "a-run-whose-name-is-longer-than-a-line-of-a-terminal" / "and-that-is-to-be-copied-and-pasted"
    outcome = command("train", "InvertedPendulum-v5", *small_arguments(total_env_steps=60), "--run-dir", folder)
    assert f"files in {folder}\n" in outcome.out
    assert str(folder / "learning_curve.png") in outcome.out
    assert str(folder / "evaluation.json") in command("evaluate", folder, "--episodes", 2).out


def test_evaluate_plays_as_many_episodes_as_asked_and_the_same_for_the_same_seed(
    command: Command, run_dir: Path
) -> None:
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
    assert (first["task"], first["env_steps"], first["unstable"]) == ("Hopper-v5", 200, 0)
    assert first == same
    assert first["returns"] != other["returns"]


def test_evaluate_and_play_take_the_policy_that_they_are_asked_for(command: Command, run_dir: Path) -> None:
    for arguments, expected in (((), "best"), (("--policy", "best"), "best"), (("--policy", "last"), "last")):
        outcome = command("evaluate", run_dir, "--episodes", 2, *arguments)
        assert f"Hopper-v5, {expected} policy (after 200 env steps): return" in outcome.out
        assert json.loads((run_dir / "evaluation.json").read_text())["policy"] == expected
    for name in ("evaluate", "play"):
        assert command(name, run_dir, "--policy", "first").code == 2


def test_evaluate_refuses_no_episodes_at_all(command: Command, run_dir: Path) -> None:
    outcome = command("evaluate", run_dir, "--episodes", 0)
    assert outcome.code == 1
    assert "episodes is 0; at least 1" in outcome.err


def test_a_tasks_options_reach_the_task_and_the_configuration(command: Command, tmp_path: Path) -> None:
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
    assert state["observation"].shape == (4, 12), "with the x position there are 12 observations"
    assert command("evaluate", run, "--episodes", 2).code == 0
    assert command("resume", run).code == 0


def test_a_task_of_ones_own_trains_and_resumes_from_another_folder(
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


def test_a_model_that_does_not_compile_gives_mujocos_message_and_leaves_no_run(
    command: Command, swinger: str, tmp_path: Path
) -> None:
    (tmp_path / "mine" / "swinger.xml").write_text(SWINGER_XML.replace('joint="hinge"', 'joint="knee"'))
    outcome = command("train", swinger, *small_arguments(), "--run-dir", "run")
    assert outcome.code == 1
    assert "does not compile the model of task Swinger" in outcome.err
    assert "knee" in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_missing_model_class_or_file_is_named_and_leaves_no_run(
    command: Command, swinger: str, tmp_path: Path
) -> None:
    arguments = [*small_arguments(), "--run-dir", "run"]
    outcome = command("train", "mine/swinger.py:Swimmer", *arguments)
    assert "has no Task class 'Swimmer'; it has Swinger" in outcome.text
    outcome = command("train", "mine/nowhere.py:Swinger", *arguments)
    assert f"there is no file {tmp_path}/mine/nowhere.py" in outcome.text
    (tmp_path / "mine" / "swinger.xml").unlink()
    outcome = command("train", swinger, *arguments)
    assert f"there is no file {tmp_path}/mine/swinger.xml" in outcome.text
    assert not (tmp_path / "run").exists()


def test_an_option_that_json_does_not_know_is_refused_in_words_or_works(
    command: Command, swinger: str, tmp_path: Path
) -> None:
    source = SWINGER.replace("import torch", "from pathlib import Path\nimport torch")
    source = source.replace("target: float = 0.5", "target: float = 0.5\n    notes: Path = Path('a')")
    (tmp_path / "mine" / "swinger.py").write_text(source)
    outcome = command("train", swinger, *small_arguments(total_env_steps=60), "--run-dir", "run", "--task.notes", "b")
    assert outcome.code == 0 or (outcome.code == 1 and "notes" in outcome.err)
    assert outcome.code == 0 or not (tmp_path / "run").exists()


def test_an_option_without_a_default_is_asked_for_in_words(command: Command, swinger: str, tmp_path: Path) -> None:
    source = SWINGER.replace("max_episode_steps: int = 20", "").replace("frame_skip: int = 5", "frame_skip = 5")
    (tmp_path / "mine" / "swinger.py").write_text(source.replace("target: float = 0.5", "target: float"))
    arguments = ["train", swinger, *small_arguments(total_env_steps=60), "--run-dir", "run"]
    outcome = command(*arguments)
    assert outcome.code not in (0, None)
    assert "target" in outcome.text
    assert not (tmp_path / "run").exists()
    assert command(*arguments, "--task.target", "0.3").code == 0


def opengl() -> bool:
    """Whether some OpenGL for machines without a display is there."""
    code = "import mujoco; mujoco.GLContext(64, 64).make_current()"
    return any(
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "MUJOCO_GL": name}, capture_output=True, check=False
        ).returncode == 0
        for name in ("egl", "osmesa")
    )  # fmt: skip


@pytest.mark.slow
def test_play_writes_a_video_of_a_task_of_ones_own(command: Command, swinger: str, tmp_path: Path) -> None:
    if not opengl():
        pytest.skip("no OpenGL")
    assert command("train", swinger, *small_arguments(total_env_steps=60), "--run-dir", "run").code == 0
    environment = {name: "" for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")}
    video = tmp_path / "videos" / "swinger.mp4"
    last = "--policy", "last", "--output", video
    for arguments, path, which in (((), tmp_path / "run" / "play.mp4", "best"), (last, video, "last")):
        output = finish(saltus("play", tmp_path / "run", *arguments, cwd=tmp_path / "mine", **environment))
        assert f"Swinger, {which} policy (after 60 env steps): return" in output
        frames = imageio.mimread(path, memtest=False)
        assert len(frames) == 10, "every second of 20 steps of 0.01 s, for 60 frames a second at most"
        with imageio.get_reader(path) as reader:
            assert reader.get_meta_data()["fps"] == pytest.approx(50)
        assert all(frame.std() > 1 for frame in frames)
        assert (frames[0].astype(float) - frames[-1]).std() > 0.1, "the world moves"


@pytest.mark.slow
def test_play_without_opengl_says_what_to_install(run_dir: Path) -> None:
    process = saltus("play", run_dir, MUJOCO_GL="disable")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "apt install libegl1" in output
    assert "apt install libosmesa6" in output
    assert "Traceback" not in output
    assert not (run_dir / "play.mp4").exists()
    assert len(output.strip().splitlines()) == 1, output


def test_an_error_in_a_users_own_task_keeps_its_traceback(
    command: Command, swinger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its message alone would not say where it comes from."""
    file = tmp_path / "mine" / "swinger.py"
    source, _, _ = SWINGER.partition("    def reward")
    file.write_text(source + "    def reward(self, state, action, next_state):\n        return int('three')\n")
    with pytest.raises(ValueError, match="three") as error:
        command("train", swinger, *small_arguments(), "--run-dir", "run")
    assert error.traceback[-1].path == file
    assert not (tmp_path / "run").exists()


def test_a_model_given_by_a_relative_path_is_found_from_another_folder(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.xml").write_text(Hopper().mjcf.read_text())
    monkeypatch.chdir(tmp_path)
    arguments = [*small_arguments(total_env_steps=60), "--task.xml-file", "./mine.xml", "--run-dir", "run"]
    assert command("train", "Hopper-v5", *arguments).code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command("evaluate", "../run", "--episodes", 1).code == 0


def test_a_checkpoint_of_another_device_is_refused(command: Command, run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    last = checkpoint.find(copy / "checkpoints")[-1]
    content = torch.load(last, weights_only=True)
    content["state"]["device"] = "cuda"
    torch.save(content, last)
    outcome = command("resume", copy)
    assert outcome.code == 1
    assert "the run was on cuda and would go on on cpu" in outcome.text


def test_a_run_that_goes_on_in_another_process_is_left_alone(command: Command, run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    before = contents(copy)
    with locked(copy):
        outcome = command("resume", copy)
    assert outcome.code == 1
    assert f"another process is training in {copy}" in outcome.err
    assert contents(copy) == {**before, "lock": b""}
    assert command("resume", copy).code == 0


@pytest.mark.parametrize(
    ("flags", "cuda", "prepared"),
    [
        ((), False, 1),
        ((), True, 0),
        (("--device", "cpu"), True, 1),
        (("--device", "cuda"), False, 0),
        (("--no-compile",), False, 0),
    ],
)
def test_the_compiler_is_prepared_where_updates_are_compiled_on_the_cpu(
    flags: tuple[str, ...], cuda: bool, prepared: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoRun:
        def __init__(self, *_: Any, **__: Any) -> None:
            raise ValueError("no run")

    calls: list[None] = []
    monkeypatch.setattr(graph, "warm_start", lambda: calls.append(None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(run_module, "Run", NoRun)
    with pytest.raises(ValueError, match="no run"):
        cli.train(["InvertedPendulum-v5", *flags, "--run-dir", str(tmp_path / "run")], Console(file=io.StringIO()))
    assert len(calls) == prepared

"""`saltus check`: its report, files and refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from check_helpers import CART
from PIL import Image
from rich.console import Console

from pipeline.check import command as command_module
from pipeline.check.command import check_task
from saltus.errors import SaltusError

pytestmark = pytest.mark.usefixtures("short_capacity_rollouts")

FILE = """
from dataclasses import dataclass
from saltus import Task
import torch

@dataclass
class Slide(Task):
    mjcf = '''{mjcf}'''
    max_episode_steps: int = 20
    weight: float = 1.0

    def observation(self, state):
        return torch.cat([state.qpos, state.qvel], dim=-1)

    def reward(self, state, action, next_state):
        return self.weight * next_state.qpos[:, 0]{fault}
"""


@pytest.fixture
def slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slide.py").write_text(FILE.format(mjcf=CART.format(actuators=""), fault=""))
    return "slide.py:Slide"


@pytest.fixture(autouse=True)
def no_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenGL must be chosen before MuJoCo is imported: only a new process renders."""
    monkeypatch.setattr(command_module, "draw", lambda env, rollout, path: path.write_bytes(b""))


def command(*arguments: str) -> str:
    output = StringIO()
    check_task(list(arguments), Console(file=output, width=200))
    return output.getvalue()


def test_command_prints_the_report_and_writes_new_files(slide: str, tmp_path: Path) -> None:
    output = command(slide, "--steps", "30", "--task.weight", "2", "--json", "check.json")
    for part in ("1 positions", "actuators: push", "100 actions per second", "observation 1", "32 episodes ended"):
        assert part in output
    assert output.index("no errors and no warnings") > output.index("note: every episode begins")
    content = json.loads((tmp_path / "check.json").read_text())
    assert content["verdict"] in output
    assert len(content["observations"]["mean"]) == 2
    assert len(content["observations"]["name"]) == 2
    command(slide, "--steps", "2")
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["check-Slide-2.png", "check-Slide.png"]


@pytest.mark.slow
def test_picture_shows_three_moments(slide: str, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "saltus", "check", slide, "--steps", "20", "--picture", "cart.png"]
    process = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, check=True)
    if "no picture: no OpenGL" in process.stdout:
        pytest.skip("no OpenGL")
    picture = np.asarray(Image.open(tmp_path / "cart.png"))
    assert picture.shape == (480, 3 * 640, 3)
    assert picture.std() > 5
    first, last = picture[:, :640], picture[:, -640:]
    assert not np.array_equal(first, last)


def test_command_ends_with_1_if_there_are_errors(slide: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(FILE.format(mjcf=CART.format(actuators=""), fault=" * torch.nan"))
    with pytest.raises(SystemExit) as ended:
        command("broken.py:Slide")
    assert ended.value.code == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "name the task first, as in `saltus check Hopper-v5"),
        (["Hoper-v5"], "Hopper-v5"),
        (["{task}", "--num-envs", "1"], "--num-envs is 1; it must be at least 2"),
        (["{task}", "--steps", "0"], "--steps is 0; it must be at least 2"),
        (["{task}", "--seed", "-1"], "--seed is -1; it must be at least 0"),
        (["{task}", "--picture", "no/a.png"], "there is no directory no"),
        (["{task}", "--picture", "a.jpg"], "must end in .png"),
        (["{task}", "--json", "no/a.json"], "--json no/a.json: there is no directory no"),
    ],
)
def test_impossible_options_are_refused(slide: str, arguments: list[str], text: str) -> None:
    with pytest.raises(SaltusError, match=text):
        command(*(argument.format(task=slide) for argument in arguments))

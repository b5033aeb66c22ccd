"""The `saltus` command in this process, a short run of it, and a task in a user's own file."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pipeline_helpers import train_here

from pipeline import cli

SWINGER = '''
from __future__ import annotations

from dataclasses import dataclass

import torch

from envs import Task


@dataclass
class Swinger(Task):
    """A pendulum whose joint should reach a target angle."""

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
        """Everything printed, lines joined."""
        return " ".join((self.out + " " + self.err).split())


Command = Callable[..., Outcome]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Run the `saltus` command in this process; returns its exit code and output."""
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
            if isinstance(code, str):  # as Python does
                print(code, file=sys.stderr)
                code = 1
        return Outcome(code, *capsys.readouterr())

    with warnings.catch_warnings():
        yield run


@pytest.fixture
def swinger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A task in a user's own file, in the working directory's folder `mine`."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "swinger.py").write_text(SWINGER)
    (folder / "swinger.xml").write_text(SWINGER_XML)
    monkeypatch.chdir(tmp_path)
    return "mine/swinger.py:Swinger"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run. Tests change nothing in it but its evaluations' JSON files."""
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

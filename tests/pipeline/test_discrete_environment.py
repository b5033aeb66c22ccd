"""Runs on environments of other libraries with discrete actions: every command, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cli_helpers import Command
from pipeline_helpers import small_arguments, small_config
from run_helpers import train_run
from torch import nn

from pipeline.export import ExportedPolicy
from pipeline.policy import load_policy
from pipeline.run import Run
from saltus.errors import SaltusError

FACTORY = '''
import numpy as np
from external_helpers import Walk
from gymnasium.spaces import Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv


class Steps(Walk):
    """A walk whose step has a direction and a length, by their indices."""

    action_space = MultiDiscrete([2, 3], start=[0, 1])

    def step(self, action):
        assert self.action_space.contains(action)
        return super().step(np.array([(2 * action[0] - 1) * action[1] / 3]))


class Chosen(Walk):
    action_space = Discrete({choices})

    def step(self, action):
        return super().step(np.array([action / {choices}]))


def make_env(num_envs, render_mode=None):
    return SyncVectorEnv([lambda: Steps(render_mode) for _ in range(num_envs)], autoreset_mode=AutoresetMode.SAME_STEP)


def make_other(num_envs):
    return SyncVectorEnv([Chosen for _ in range(num_envs)], autoreset_mode=AutoresetMode.SAME_STEP)
'''
SETTINGS: dict[str, Any] = {"preset": "sac-discrete", "num_threads": 0, "total_env_steps": 80, "eval_every": 80}
pytestmark = pytest.mark.filterwarnings("ignore:No target network updater", "ignore::DeprecationWarning:torch")


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "steps.py").write_text(FACTORY.replace("{choices}", "3"))
    monkeypatch.chdir(tmp_path)
    return str(tmp_path / "steps.py")


@pytest.mark.parametrize(("policy", "update"), [("joint", "exact"), ("factored", "soft-q")])
def test_all_commands_on_a_run_with_discrete_actions(
    policy: str, update: str, factory: str, command: Command, tmp_path: Path
) -> None:
    options = ["--policy", policy, "--discrete-update", update, "--run-dir", "run"]
    hidden = {"actor_hidden": (256, 256)} if update == "soft-q" else {}  # the default: there is no actor
    begun = command("train", "steps.py:make_env", *small_arguments(**SETTINGS, **hidden), *options)
    assert begun.code == 0, begun.text
    assert "5 episodes" in command("evaluate", "run", "--episodes", "5").text
    assert command("resume", "run").code == 0
    assert command("play", "run", "--steps", "5").code == 0
    exported = command("export", "run")
    assert exported.code == 0, exported.text

    facts = json.loads((tmp_path / "run" / "policy.json").read_text())
    assert facts["action"] == [
        {"name": "action 0", "low": 0, "high": 1, "choices": 2},
        {"name": "action 1", "low": 1, "high": 3, "choices": 3},
    ]
    loaded, observation = load_policy("run"), torch.randn(40, 2)
    expected = ((loaded(observation) + 1) * torch.tensor([0.5, 1.0]) + torch.tensor([0, 1])).round().long()
    program: Any = torch.export.load(tmp_path / "run" / "policy.pt2").module()
    assert torch.equal(program(observation), expected)
    if importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        session = onnxruntime.InferenceSession(tmp_path / "run" / "policy.onnx")
        (action,) = session.run(None, {"observation": observation.numpy()})
        assert torch.equal(torch.from_numpy(action), expected)


def test_replayed_and_random_actions_are_choices(factory: str, tmp_path: Path) -> None:
    run = train_run(small_config(f"{factory}:make_env", **SETTINGS), tmp_path / "run")
    stored = run.buffer.sample(80)[0]["action"]
    assert (stored[:, 0].unique().tolist(), stored[:, 1].unique().tolist()) == ([-1.0, 1.0], [-1.0, 0.0, 1.0])


@pytest.mark.parametrize("task", ["gym:CartPole-v1", "gym:MountainCar-v0"])
def test_a_discrete_id_trains_by_the_preset(task: str, tmp_path: Path) -> None:
    run = train_run(small_config(task, **SETTINGS), tmp_path / "run")
    policy = load_policy(run.run_dir)
    env: Any = policy.make_env(2)
    assert env.action_choices == policy.agent.actor.levels.counts
    env.step(policy(env.reset()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"preset": "fast"},
            "the environment's actions are discrete (2 actuators of 2, 3 choices), and the recipe's policy is "
            "continuous (--policy gaussian): use --preset sac-discrete",
        ),
        (
            {"action_levels": 5},
            "--action-levels 5 contradicts the environment, whose actions are discrete: 2 actuators of 2, 3 choices. "
            "Leave the option out",
        ),
    ],
)
def test_settings_that_contradict_discrete_actions_are_refused(
    settings: dict[str, Any], message: str, factory: str
) -> None:
    with pytest.raises(SaltusError, match=re.escape(message)):
        Run(small_config(f"{factory}:make_env", **{**SETTINGS, **settings}), Path())


def test_levels_that_are_the_choices_and_none_are_accepted(factory: str) -> None:
    for levels in (0, 3, "auto"):
        run = Run(small_config(f"{factory}:make_other", **SETTINGS, action_levels=levels), Path())
        assert run.agent.actor.levels.counts == (3,)


def test_too_many_choices_are_refused_with_their_number(factory: str, tmp_path: Path) -> None:
    (tmp_path / "many.py").write_text(FACTORY.replace("{choices}", "2000"))
    message = "2,000 choices have 2,000 joint actions, and at most 1,024 work: use --policy factored"
    with pytest.raises(SaltusError, match=message):
        Run(small_config(f"{tmp_path}/many.py:make_other", **SETTINGS), Path())
    Run(small_config(f"{tmp_path}/many.py:make_other", **SETTINGS, policy="factored"), Path())


def test_a_run_is_not_continued_with_other_choices(factory: str, command: Command, tmp_path: Path) -> None:
    train_run(small_config(f"{factory}:make_other", **SETTINGS), tmp_path / "run", until=60)
    (tmp_path / "more.py").write_text(FACTORY.replace("{choices}", "4"))
    outcome = command("resume", "run", "--task", "more.py:make_other")
    assert outcome.code == 1
    assert "1 actions of 4 choices, and the run has 2 observations and 1 actions of 3 choices" in outcome.text


class Grid(nn.Module):
    """An actor that returns every choice once."""

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def standalone(self) -> Grid:
        return self

    def deterministic(self, observation: torch.Tensor) -> torch.Tensor:
        return torch.linspace(-1, 1, self.count).unsqueeze(-1)


@pytest.mark.parametrize("start", [0, -3])
def test_exported_indices_are_whole_for_any_number_of_choices(start: int) -> None:
    """In spite of the rounding of levels, which are no exact fractions."""
    for count in range(2, 130):
        agent = SimpleNamespace(eval_actor=Grid(count), normalizers=SimpleNamespace(observations=None))
        low = torch.tensor([float(start)])
        env: Any = SimpleNamespace(action_choices=(count,), control_low=low, control_high=low + count - 1)
        policy: Any = SimpleNamespace(agent=agent)
        found = ExportedPolicy(policy, env)(torch.zeros(1, 2))
        assert torch.equal(found, start + torch.arange(count).unsqueeze(-1))

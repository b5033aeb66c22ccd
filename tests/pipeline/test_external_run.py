"""Runs on environments of other libraries: train, resume, evaluate, play and export; what is refused says why."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import gymnasium
import imageio.v2 as imageio
import pytest
import torch
from cli_helpers import Command
from pipeline_helpers import clone_state, random_transition, small_arguments, small_config
from run_helpers import continue_run, train_run

from pipeline import checkpoint
from pipeline.buffer import ReplayBuffer
from pipeline.config import Config
from pipeline.dimensions import Dimensions
from pipeline.evaluate import evaluate
from pipeline.file_names import CHECKPOINTS
from pipeline.policy import load_policy
from pipeline.run import Run
from pipeline.run_dir import default_path
from pipeline.train_options import parse_train
from saltus.errors import SaltusError

FACTORY = '''
from external_helpers import TorchWalks, sync
from gymnasium.vector import AutoresetMode


def make_env(num_envs, *, device, render_mode=None, wide: bool = False, scale: float = 1.0):
    """Walks in one process."""
    assert device == "cpu"
    return sync(AutoresetMode.SAME_STEP, num_envs, render_mode=render_mode)


def with_torchrl(num_envs: int):
    return TorchWalks(num_envs)


def without_argument():
    return None


class NoTask:
    pass
'''
OPTIONS: dict[str, Any] = {"num_threads": 0, "num_envs": 4, "n_step": 3, "total_env_steps": 400}


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of a file with factories, beside which lies the folder of runs; the current folder is another."""
    (tmp_path / "walks.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    return str(tmp_path / "walks.py")


def config_of(task: str, **overrides: Any) -> Config:
    return small_config(task, **{**OPTIONS, **overrides})


def resumed(run: Run) -> Run:
    """A new run, from the last checkpoint of another."""
    other = Run(run.config, run.run_dir)
    other.load_state_dict(checkpoint.load_last(run.run_dir / CHECKPOINTS)["state"])
    return other


@pytest.mark.parametrize("name", ["make_env", "with_torchrl"])
def test_a_run_resumes_with_new_episodes_and_joins_no_two_of_them(name: str, factory: str, tmp_path: Path) -> None:
    config = config_of(f"{factory}:{name}", reward_scaling="std")
    run = train_run(config, tmp_path / "run", until=200)
    first = Run(run.config, tmp_path / "other").observation
    again = resumed(run)
    assert again.env_steps == run.env_steps == 200
    assert again.env.statistics() == run.env.statistics()
    assert len(again.buffer) == 200
    assert not torch.equal(again.observation, first)
    before, after = (one.buffer.state_dict()["stored"] for one in (run, again))
    assert after["next.done"][196:200].all()
    assert not before["next.done"][196:200].all()
    assert torch.equal(after["next.terminated"], before["next.terminated"])
    assert torch.equal(after["next.done"][:196], before["next.done"][:196])
    rewards, rewards_before = again.agent.normalizers.rewards, run.agent.normalizers.rewards
    assert rewards is not None
    assert rewards_before is not None
    assert not rewards.returns.any(), "returns of interrupted episodes do not continue"
    rewards.returns.copy_(rewards_before.returns)
    parameters = zip(again.agent.tensors(), run.agent.tensors(), strict=True)
    assert all(torch.equal(one, other) for one, other in parameters)
    continue_run(again)
    assert again.env_steps == 400
    assert again.finished
    assert_within_episodes(again.buffer, 1 if name == "with_torchrl" else 0)


def assert_within_episodes(buffer: ReplayBuffer, x: int) -> None:
    """Require that each joined transition has the rewards and the successor of one episode."""
    (batch,) = buffer.sample(300)
    elapsed = 1 - x
    before, after = batch["observation"], batch["next", "observation"]
    assert torch.equal(after[:, elapsed] - before[:, elapsed], batch["steps_to_next_obs"][:, 0])
    assert (batch["steps_to_next_obs"] == 3).any()


def test_newest_transitions_are_truncated_unless_they_terminated() -> None:
    buffer = ReplayBuffer(10, Dimensions(5, 3), n_step=3)
    buffer.truncate_newest()  # of none
    for seed in range(3):
        buffer.extend(random_transition(4, seed))
    before = clone_state(buffer.state_dict()["stored"])
    buffer.truncate_newest()
    rows = [8, 9, 0, 1]
    others = [row for row in range(10) if row not in rows]
    after = buffer.state_dict()["stored"]
    for name, entry in after.items():
        assert torch.equal(entry[others], before[name][others])
    assert after["next.done"][rows].all()
    terminated = before["next.terminated"][rows]
    assert torch.equal(after["next.terminated"][rows], terminated)
    assert torch.equal(after["next.truncated"][rows], ~terminated | before["next.truncated"][rows])


def test_all_commands_on_a_run_with_a_factory(factory: str, command: Command, tmp_path: Path) -> None:
    arguments = small_arguments(total_env_steps=200, num_threads=0)
    begun = command("train", "walks.py:make_env", *arguments, "--run-dir", "run", "--task.scale", "2")
    note = f"another library simulates {factory}:make_env: a resumed run continues learner"
    assert begun.code == 0, begun.text
    assert begun.text.count(note) == 1
    content = json.loads((tmp_path / "run" / "config.json").read_text())
    assert content["config"]["task_options"] == {"scale": 2.0}
    assert content["task"].keys() == {"file", "sha256"}
    assert (tmp_path / "run" / "task" / "walks.py").read_text() == FACTORY
    assert "5 episodes" in command("evaluate", "run", "--episodes", "5").text
    assert command("resume", "run").text.count(note) == 1

    played = command("play", "run", "--steps", "10")
    assert played.code == 0, played.text
    frames = imageio.mimread("run/play.mp4")
    assert (len(frames), frames[0].shape) == (10, (32, 64, 3))
    assert frames[2].mean() > frames[0].mean() + 50  # brighter from step to step
    refused = command("play", "run", "--camera", "track")
    assert "--camera has no effect on" in refused.text

    (tmp_path / "run" / "task" / "walks.py").write_text("")
    (tmp_path / "walks.py").write_text(FACTORY + "# changed\n")
    exported = command("export", "run")
    assert exported.code == 0, exported.text
    facts = json.loads((tmp_path / "run" / "policy.json").read_text())
    assert facts["observation"] == [{"name": "observation 0"}, {"name": "observation 1"}]
    assert facts["action"] == [{"name": "action 0", "low": -2.0, "high": 1.0}]
    assert (facts["dt"], facts["max_episode_steps"]) == (0.05, 1000)
    assert "model" not in facts
    assert not (tmp_path / "run" / "policy.mjb").exists()
    policy = load_policy("run")
    program: Any = torch.export.load(tmp_path / "run" / "policy.pt2").module()
    observation = torch.randn(7, 2)
    torch.testing.assert_close(program(observation), -0.5 + 1.5 * policy(observation))


def test_evaluation_stops_where_another_library_knows_no_end(factory: str, tmp_path: Path) -> None:
    run = train_run(config_of(f"{factory}:make_env", total_env_steps=80, eval_every=80), tmp_path / "run")
    env: Any = run.make_evaluation_env()
    env.max_episode_steps = 2
    result = evaluate(lambda observation: torch.zeros(len(observation), 1), env)
    assert result.lengths == (2, 2)


def test_an_evaluation_is_in_fresh_worlds_with_seeds_of_its_own(factory: str, tmp_path: Path) -> None:
    run = Run(config_of(f"{factory}:make_env", eval_episodes=4), tmp_path)
    env: Any = run.make_evaluation_env()
    inner, one, same = env.worlds._env, env.reset(), run.make_evaluation_env().reset()
    del env
    assert inner.closed
    assert torch.equal(one, same)
    run.env_steps = 100
    later = run.make_evaluation_env().reset()
    assert not torch.equal(one, later)
    assert not torch.equal(one, run.observation)


def test_the_example_steps_and_charges_changes_of_the_action() -> None:
    path = Path(__file__).parents[2] / "examples" / "train_on_gymnasium.py"
    config, _ = parse_train([f"{path}:make_env", "--task.cost", "2"])
    (one, free) = (Run(config_of(config.task, task_options={"cost": cost}), Path()) for cost in (2.0, 0.0))
    assert config.task_options == {"cost": 2.0}
    assert torch.equal(one.observation, free.observation)
    generator = torch.Generator().manual_seed(0)
    last = torch.zeros(4, 7)
    for _ in range(3):
        action = 2 * torch.rand(4, 7, generator=generator) - 1
        charged, observed = one.step(action)["next"], one.observation
        assert torch.equal(observed[:, -7:], 2 * action)  # Pusher's actions reach to 2
        change = free.step(action)["next", "reward"] - charged["reward"]
        torch.testing.assert_close(change[:, 0], 2 * (2 * action - last).square().sum(-1))
        last = 2 * action


# Names and options


def test_options_of_a_gymnasium_id_are_those_of_its_constructor() -> None:
    given = ["gym:Hopper-v5", "--task.healthy-reward", "0.5", "--task.max-episode-steps", "7"]
    config, _ = parse_train(given)
    assert config.task_options == {"healthy_reward": 0.5, "max_episode_steps": 7}
    run = Run(config_of(config.task, task_options=config.task_options), Path())
    assert run.env.max_episode_steps == 7
    inner: Any = run.env
    assert inner.worlds._env.envs[0].unwrapped._healthy_reward == 0.5


def test_an_id_with_a_module_imports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    text = "import gymnasium\ngymnasium.register('mine/Walk-v0', 'external_helpers:Walk', max_episode_steps=9)\n"
    (tmp_path / "walk_package.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    config, _ = parse_train(["gym:walk_package:mine/Walk-v0"])
    assert config.task == "gym:walk_package:mine/Walk-v0"
    assert default_path(config).name.startswith("mine-Walk-v0-s0-")
    run = train_run(config_of(config.task, total_env_steps=80), tmp_path / "run")
    with caplog.at_level(logging.INFO, "saltus"):
        assert load_policy(run.run_dir).make_env(2).max_episode_steps == 9
    assert "importing the module walk_package, which registers gym:walk_package:mine/Walk-v0" in caplog.text
    del gymnasium.registry["mine/Walk-v0"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["gym:"], ["'gym:' names no environment; expected gym:ID, as in gym:Walker2d-v5"]),
        (["gym:Wakler2d-v5"], ["Gymnasium finds no environment 'Wakler2d-v5'", "Did you mean", "gym:package:Wakler"]),
        (["gym:no_such_package:Walk-v0"], ["No module named 'no_such_package'", "Install the package"]),
        (["gym:json:Walk-v0"], ["json was imported and has not registered it"]),
        (["gym:Pendulum-v1", "--physics", "cpu"], ["--physics has no effect on gym:Pendulum-v1", "leave it out"]),
        (["walks.py:without_argument"], ["a function without the argument num_envs", "def make_env(num_envs)"]),
        (["walks.py:NoTask"], ["has no Task class 'NoTask'"]),
        (["walks.py:absent"], ["has no Task class 'absent'"]),
    ],
)
def test_names_and_options_that_do_not_work_are_refused(arguments: list[str], parts: list[str], factory: str) -> None:
    with pytest.raises(SaltusError) as caught:
        parse_train(arguments)
    assert [part for part in parts if part not in str(caught.value)] == []


@pytest.mark.parametrize("name", ["gym:Pendulum-v1", "walks.py:make_env"])
@pytest.mark.parametrize("command_name", ["check", "profile"])
def test_commands_that_need_a_task_say_so(name: str, command_name: str, factory: str, command: Command) -> None:
    outcome = command(command_name, name)
    assert outcome.code == 1
    assert "makes an environment of another library: `saltus train` takes it" in outcome.text
    assert "Expected a task of saltus: a registered name, or path/to/file.py:ClassName" in outcome.text


def test_a_continuous_policy_of_discrete_actions_is_refused(command: Command, tmp_path: Path) -> None:
    outcome = command("train", "gym:CartPole-v1", "--run-dir", tmp_path / "run")
    assert "the environment's actions are discrete (2 choices)" in outcome.text
    assert "use --preset sac-discrete" in outcome.text
    assert not (tmp_path / "run").exists()


def test_a_factory_without_frames_is_not_played(factory: str, command: Command, tmp_path: Path) -> None:
    train_run(config_of(f"{factory}:with_torchrl", total_env_steps=80), tmp_path / "run")
    assert "environments of TorchRL have no frames for a video" in command("play", "run").text
    assert not list((tmp_path / "run").glob("play*"))


def test_withheld_successors_stop_the_run(tmp_path: Path) -> None:
    text = "from external_helpers import Forgetful\ndef make_env(num_envs):\n    return Forgetful(num_envs)\n"
    (tmp_path / "walks.py").write_text(text)
    with pytest.raises(SaltusError, match=r"infos\['final_obs'\]"):
        train_run(config_of(f"{tmp_path}/walks.py:make_env"), tmp_path / "run")

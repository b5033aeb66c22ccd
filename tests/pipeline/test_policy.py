"""A policy is loaded as it was evaluated, and acts on what it is given."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pipeline_helpers import HUMANOID, small_config, train_here
from rich.console import Console
from torch import Tensor

from envs import BatchEnv
from pipeline import policy
from pipeline import run as run_module
from pipeline.checkpoint import CheckpointError
from pipeline.evaluate import Evaluation, evaluate
from pipeline.logger import Logger
from pipeline.run import Run, create, open_run
from pipeline.train import train

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.parametrize("preset", ["sac", "xqc", HUMANOID])
@pytest.mark.filterwarnings("ignore:No target network updater")
def test_the_last_policy_is_the_one_that_the_run_evaluates(tmp_path: Path, preset: str) -> None:
    config = small_config(preset=preset, normalize_observations=True, total_env_steps=120, eval_policy_averaging=0.5)
    train_here(tmp_path / "run", preset=preset.partition(" on ")[0], **{
        name: value for name, value in vars(config).items() if name not in ("task", "task_options")
    })  # fmt: skip
    loaded = policy.load(tmp_path / "run", "last")
    run = Run(config, tmp_path / "again", announce=lambda _: None)
    run.load_state_dict(open_run(tmp_path / "run")[1]["state"])
    observation = torch.randn(50, 4)
    action = loaded(observation)
    assert torch.equal(action, run.learner.policy(observation))
    assert not torch.equal(action, run.learner.actor.mode(observation)), "the average is evaluated"
    assert action.abs().max() <= 1
    assert (loaded.which, loaded.env_steps, loaded.task) == ("last", 120, "InvertedPendulum-v5")


@pytest.mark.parametrize(("preset", "eval_policy_averaging"), [("sac", 0.0), ("xqc", 0.5), ("fast", 0.5)])
@pytest.mark.filterwarnings("ignore:No target network updater")
def test_the_best_policy_is_that_of_the_best_evaluation(
    tmp_path: Path, preset: str, eval_policy_averaging: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four evaluations the second and the third are the best, and equal: the later one counts."""
    options = {
        "eval_policy_averaging": eval_policy_averaging,
        "normalize_observations": True,
        "total_env_steps": 160,
        "eval_every": 40,
    }
    config = small_config(preset=preset, **options)
    means, acted = iter([1.0, 3.0, 3.0, 2.0]), []
    observation = torch.randn(50, 4)

    def evaluate(act: Callable[[Tensor], Tensor], _env: BatchEnv) -> Evaluation:
        acted.append(act(observation).clone())
        return Evaluation((next(means),), (1,), 0)

    monkeypatch.setattr(run_module, "evaluate", evaluate)
    run = Run(config, tmp_path / "run", announce=lambda _: None)
    create(config, run.run_dir)
    with Logger(run.run_dir, config, 0, Console(file=io.StringIO())) as logger:
        train(run, logger)
    best, last = policy.load(run.run_dir), policy.load(run.run_dir, "last")
    assert (best.which, best.env_steps, last.which, last.env_steps) == ("best", 120, "last", 160)
    assert len(acted) == 4
    assert torch.equal(best(observation), acted[2])
    assert torch.equal(last(observation), acted[3])
    assert not torch.equal(acted[1], acted[2])
    assert not torch.equal(acted[2], acted[3])


def test_before_the_first_evaluation_there_is_only_the_last_policy(tmp_path: Path) -> None:
    config = small_config()
    run = Run(config, tmp_path / "run", announce=lambda _: None)
    create(config, run.run_dir)
    with Logger(run.run_dir, config, 0, Console(file=io.StringIO())) as logger:
        run.save(logger)
    assert (policy.load(run.run_dir).which, policy.load(run.run_dir).env_steps) == ("last", 0)


def test_its_worlds_have_the_options_of_the_run(tmp_path: Path) -> None:
    train_here(tmp_path / "run", "Hopper-v5", "--task.healthy-reward", "0.5", total_env_steps=80)
    loaded = policy.load(str(tmp_path / "run"))
    env = loaded.make_env(3, seed=1)
    assert (env.num_envs, env.task.healthy_reward) == (3, 0.5)
    first, again = (evaluate(loaded, loaded.make_env(3, seed)) for seed in (1, 1))
    assert first == again != evaluate(loaded, loaded.make_env(3, seed=2))


def test_what_has_no_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not the directory of a run"):
        policy.load(tmp_path)
    create(small_config(), tmp_path / "new")
    with pytest.raises(CheckpointError, match="has no checkpoint: start the run again"):
        policy.load(tmp_path / "new")


def test_what_the_readme_shows_of_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train_here(Path("runs/hopper"), "Hopper-v5", total_env_steps=80)
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "policy.load" in block)
    exec(block, {})
    assert float(capsys.readouterr().out) != 0

"""load_policy: the best and the last policy of a run, as the run evaluated them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_helpers import small_config, train_here
from run_helpers import quiet_console, train_run
from torch import Tensor

import saltus
from envs import BatchEnv
from envs.task import load_model
from envs.tasks import InvertedPendulum
from pipeline import evaluate as evaluate_module
from pipeline.checkpoint import CheckpointError
from pipeline.evaluate import Evaluation, evaluate
from pipeline.logger import Logger
from pipeline.policy import load_policy
from pipeline.run import Run
from pipeline.run_dir import create
from saltus import SaltusError


@pytest.mark.parametrize("preset", ["sac", "xqc", "fast"])
@pytest.mark.filterwarnings("ignore:No target network updater")
def test_last_policy_is_the_one_that_the_run_evaluates(tmp_path: Path, preset: str) -> None:
    config = small_config(preset=preset, normalize_observations=True, total_env_steps=120, eval_policy_averaging=0.5)
    run = train_run(config, tmp_path)
    loaded = load_policy(tmp_path, "last")
    observation = torch.randn(50, 4)
    action = loaded(observation)
    assert torch.equal(action, run.agent.policy(observation))
    assert not torch.equal(action, run.agent.actor.mode(observation)), "not the averaged actor"
    assert action.abs().max() <= 1
    assert (loaded.which, loaded.env_steps, loaded.task) == ("last", 120, "InvertedPendulum-v5")


@pytest.mark.parametrize(("preset", "eval_policy_averaging"), [("sac", 0.0), ("xqc", 0.5), ("fast", 0.5)])
@pytest.mark.filterwarnings("ignore:No target network updater")
def test_best_policy_is_that_of_the_best_evaluation(
    tmp_path: Path, preset: str, eval_policy_averaging: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second and third of four evaluations are equally good: the later one counts."""
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

    monkeypatch.setattr(evaluate_module, "evaluate", evaluate)
    train_run(config, tmp_path)
    best, last = load_policy(tmp_path), load_policy(tmp_path, "last")
    assert (best.which, best.env_steps, last.which, last.env_steps) == ("best", 120, "last", 160)
    assert len(acted) == 4
    assert torch.equal(best(observation), acted[2])
    assert torch.equal(last(observation), acted[3])
    assert not torch.equal(acted[1], acted[2])
    assert not torch.equal(acted[2], acted[3])


def test_before_the_first_evaluation_the_best_policy_is_the_last(tmp_path: Path) -> None:
    config = small_config()
    run = Run(config, tmp_path)
    create(config, tmp_path, run.env.task.model)
    with Logger(tmp_path, config, 0, quiet_console()) as logger:
        run.save(logger)
    with pytest.warns(
        UserWarning, match="has no best policy, because no evaluation.*the last policy, after 0 env steps"
    ):
        loaded = load_policy(tmp_path)
    assert (loaded.which, loaded.env_steps) == ("last", 0)


@pytest.mark.parametrize(
    ("observation", "got"),
    [
        (torch.zeros(2, 3), "torch.float32 of shape (2, 3)"),
        (torch.zeros(4), "torch.float32 of shape (4,)"),
        (torch.zeros(2, 4, dtype=torch.float64), "torch.float64 of shape (2, 4)"),
        ([[0.0] * 4], "list"),
    ],
)
def test_policy_refuses_what_is_no_observation(tmp_path: Path, observation: Any, got: str) -> None:
    policy = load_policy(train_run(small_config(total_env_steps=60), tmp_path / "run").run_dir)
    with pytest.raises(
        SaltusError, match=re.escape(f"the observation is {got}; expected a float32 tensor of shape (N")
    ):
        policy(observation)


def test_evaluation_needs_a_policy() -> None:
    env = saltus.make("InvertedPendulum-v5", 1)
    with pytest.raises(SaltusError, match=r"^the policy is None; expected a function of observations, such as a"):
        saltus.evaluate(None, env)  # type: ignore[arg-type]


@pytest.mark.parametrize("env", [None, "InvertedPendulum-v5"])
def test_evaluation_needs_an_environment(env: Any) -> None:
    with pytest.raises(SaltusError, match=r"an environment of saltus\.make, not in"):
        saltus.evaluate(lambda observation: observation[:, :1], env)


def test_environment_of_a_policy_has_the_runs_task_options(tmp_path: Path) -> None:
    train_here(tmp_path / "run", "Hopper-v5", "--task.healthy-reward", "0.5", total_env_steps=80)
    loaded = load_policy(str(tmp_path / "run"))
    env = loaded.make_env(3, seed=1)
    assert (env.num_envs, env.task.healthy_reward, env.normalized_actions) == (3, 0.5, True)
    first, again = (evaluate(loaded, loaded.make_env(3, seed)) for seed in (1, 1))
    assert first == again != evaluate(loaded, loaded.make_env(3, seed=2))


def test_directory_without_a_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SaltusError, match="is not a run's directory"):
        load_policy(tmp_path)
    create(small_config(), tmp_path / "new", load_model(InvertedPendulum()))
    with pytest.raises(CheckpointError, match="has no checkpoint: start the run again"):
        load_policy(tmp_path / "new")


@pytest.mark.parametrize("which", ["foo", "", None, "Best"])
def test_unknown_policy_is_refused(tmp_path: Path, which: str) -> None:
    with pytest.raises(SaltusError, match=f"which is {which!r}; it must be 'best' or 'last'"):
        load_policy(tmp_path, which)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 4.0, None])
def test_invalid_seed_of_an_environment_is_refused(tmp_path: Path, seed: int) -> None:
    train_run(small_config(total_env_steps=60), tmp_path)
    with pytest.raises(SaltusError, match=f"seed is {seed}; it must be a whole number, 0 or more"):
        load_policy(tmp_path).make_env(1, seed)


def test_load_policy_is_public() -> None:
    assert saltus.load_policy is load_policy

"""Health of runs: what a command says, also after resuming."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cli_helpers import Command
from pipeline_helpers import read_csv, small_arguments, small_config
from run_helpers import continue_run, train_run

from envs import batch_env
from pipeline import session
from pipeline.display import Display
from pipeline.health import evaluations, updates
from pipeline.run import Run
from pipeline.stored_run import open_run


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that the runs of a test print."""
    lines = list[str]()
    monkeypatch.setattr(Display, "say", lambda _self, message: lines.append(message))
    return lines


def test_resumed_run_warns_as_one_that_never_stopped(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluations, "EARLY_ENV_STEPS", 80)
    monkeypatch.setattr(updates, "CRITIC_REWARDS", 1e-6)
    config = small_config(total_env_steps=400, log_every=20, eval_every=40)
    train_run(config, tmp_path / "expected")
    expected = warnings_of(said)
    assert len(expected) == 2, "one of the critics, one of early ends"
    log = (tmp_path / "expected" / "messages.txt").read_text()
    assert all(f" {line}\n" in log for line in expected)

    said.clear()
    train_run(config, tmp_path / "run", until=200)
    resumed = Run(config, tmp_path / "run")
    resumed.load_state_dict(open_run(tmp_path / "run")[1]["state"])
    continue_run(resumed)
    assert [line.partition(":")[0] for line in warnings_of(said)] == [line.partition(":")[0] for line in expected]
    assert resumed.health.last["env_steps"] == 400


def test_run_resumes_without_a_column_of_its_tables(tmp_path: Path) -> None:
    config = small_config(total_env_steps=400, log_every=20, eval_every=40)
    train_run(config, tmp_path, until=200)
    for table, column in (("metrics.csv", "td_error"), ("evaluations.csv", "length_mean")):
        rows = read_csv(tmp_path / table)
        columns = [name for name in rows[0] if name != column]
        lines = [",".join(columns), *(",".join(row[name] for name in columns) for row in rows)]
        (tmp_path / table).write_text("\n".join(lines) + "\n")
    resumed = Run(config, tmp_path)
    resumed.load_state_dict(open_run(tmp_path)[1]["state"])
    continue_run(resumed)
    assert resumed.finished


def warnings_of(said: list[str]) -> list[str]:
    return [line for line in said if line.startswith("warning: ")]


BROKEN = '''
import torch
from envs import Task


class Broken(Task):
    mjcf = """<mujoco><worldbody><body><joint name="hinge" axis="0 1 0"/>
      <geom type="capsule" fromto="0 0 0 0 0 -0.5" size="0.05"/></body></worldbody>
      <actuator><motor joint="hinge" ctrlrange="-1 1"/></actuator></mujoco>"""
    max_episode_steps = 20

    def observation(self, state):
        return torch.cat([state.qpos, state.qvel], dim=-1)

    def reward(self, state, action, next_state):
        return torch.where(action[:, 0] == 0, 0.0, torch.nan)
'''


@pytest.mark.filterwarnings("ignore")
def test_command_says_that_nothing_could_be_learned(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks of a task pass at its initial states, and every later step fails."""
    plain = batch_env.check_functions
    monkeypatch.setattr(batch_env, "check_functions", lambda *args, **_: plain(*args, forms_only=True))
    (tmp_path / "broken.py").write_text(BROKEN)
    arguments = small_arguments(total_env_steps=120, log_every=40)
    outcome = command("train", f"{tmp_path / 'broken.py'}:Broken", *arguments, "--run-dir", tmp_path / "run")
    assert outcome.code == 0, outcome.text
    assert outcome.text.count("warning: every one of 40 world-steps failed") == 1
    assert "nothing could be learned: every world-step failed" in outcome.text


def outcome_of(best: dict[str, Any], last: dict[str, Any], gradient_steps: int = 100) -> str:
    """The last line of a run that has ended."""
    run = SimpleNamespace(
        config=small_config(policy_delay=20, minutes=1.0),
        learner=SimpleNamespace(gradient_steps=gradient_steps),
        health=SimpleNamespace(nothing_learned=False, last=last),
        best=best, finished=True, run_dir="run",
    )  # fmt: skip
    return session._describe_outcome(cast(Run, run), last_is_saved=True)


def test_a_run_without_a_best_policy_says_so() -> None:
    row = {"return_mean": 3.0, "env_steps": 100}
    assert outcome_of({}, row) == (
        "there is no best policy, because every evaluation had failures; `saltus evaluate run --policy last` plays the "
        "policy of the last checkpoint"
    )
    assert outcome_of(row, row).startswith("best evaluation: 3.0 after 100 env steps")
    assert outcome_of({}, {}) == ""


def test_a_run_whose_actor_never_learned_says_so() -> None:
    row = {"return_mean": 3.0, "env_steps": 100}
    assert outcome_of(row, row, gradient_steps=19) == (
        "the run ended before the first update of its actor, after 19 updates of its critics: give it more "
        "--minutes or a lower --policy-delay (20)"
    )


def test_command_ends_with_best_and_last_return(command: Command, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = small_arguments(total_env_steps=160, eval_every=40)
    outcome = command("train", "InvertedPendulum-v5", *arguments, "--run-dir", run_dir)
    returns = [float(row["return_mean"]) for row in read_csv(run_dir / "evaluations.csv")]
    last = outcome.out.splitlines()[-1]
    assert last.startswith(f"best evaluation: {max(returns):.1f} after ")
    assert f"`saltus evaluate {run_dir}` plays" in last
    assert (returns[-1] == max(returns)) or f"last: {returns[-1]:.1f} after 160 env steps" in last

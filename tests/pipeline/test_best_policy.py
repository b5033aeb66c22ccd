"""The best policy of a run survives what ends the run between two checkpoints."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_helpers import differing, read_csv, small_config
from rich.console import Console
from run_helpers import continue_run, train_run

from pipeline import best_policy, checkpoint, policy, session
from pipeline.config import Config
from pipeline.divergence import DivergenceError
from pipeline.policy import load_policy
from pipeline.run import Run
from pipeline.stored_run import open_run

FILE = "best_policy.pt"


def one_checkpoint(**overrides: Any) -> Config:
    """A run that saves no checkpoint between its start and its end."""
    return small_config(**{"log_every": 40, "eval_every": 40, "checkpoint_every": 400, **overrides})


class KilledError(Exception):
    """Ends a run without a save."""


def kill_after(env_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Run.log

    def log(self: Run, *args: Any) -> None:
        if self.env_steps > env_steps:
            raise KilledError
        plain(self, *args)

    monkeypatch.setattr(Run, "log", log)


def chosen(run_dir: Path, config: Config, saved: dict[str, Any]) -> dict[str, Any]:
    return best_policy.choose(best_policy.read(run_dir), config, saved)


def best_row(run_dir: Path) -> dict[str, str]:
    """The last of the rows with the highest mean return."""
    return max(reversed(read_csv(run_dir / "evaluations.csv")), key=lambda row: float(row["return_mean"]))


def test_best_policy_survives_a_kill_and_the_resumed_run_equals_one_that_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = one_checkpoint()
    expected = train_run(config, tmp_path / "expected")
    with monkeypatch.context() as patch:
        kill_after(200, patch)
        with pytest.raises(KilledError):
            train_run(config, tmp_path / "run")
    assert [path.name for path in checkpoint.find(tmp_path / "run" / "checkpoints")] == ["000000000000.pt"]
    best = load_policy(tmp_path / "run")
    assert (best.which, str(best.env_steps)) == ("best", best_row(tmp_path / "run")["env_steps"])

    run = Run(config, tmp_path / "run")
    run.load_state_dict(open_run(tmp_path / "run")[1]["state"])
    assert run.best == {}
    continue_run(run)
    assert differing(run.best, expected.best) == []
    assert load_policy(tmp_path / "run").env_steps == run.best["env_steps"]
    assert not (tmp_path / "run" / FILE).exists(), "the last checkpoint holds it"


def test_the_better_one_of_file_and_checkpoint_counts(tmp_path: Path) -> None:
    """A file that could not be removed may be older."""
    config = small_config()
    saved = {"return_mean": 2.0, "env_steps": 40}
    best_policy.save(tmp_path, config, {"return_mean": 3.0, "env_steps": 20})
    assert chosen(tmp_path, config, saved)["env_steps"] == 20
    assert chosen(tmp_path, config, {})["env_steps"] == 20
    best_policy.save(tmp_path, config, {"return_mean": 1.0, "env_steps": 20})
    assert chosen(tmp_path, config, saved) == saved


def test_a_run_that_saves_while_its_policy_is_loaded_hides_no_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes a checkpoint with the policy, and removes the file, after the checkpoint before was read."""
    run = train_run(small_config(total_env_steps=60, eval_every=40), tmp_path)
    best_policy.save(tmp_path, run.config, {**run.best, "return_mean": math.inf, "env_steps": 99})

    def open_before_the_save(*arguments: Any) -> Any:
        opened = open_run(*arguments)
        best_policy.remove(tmp_path)
        return opened

    monkeypatch.setattr(policy, "open_run", open_before_the_save)
    assert load_policy(tmp_path).env_steps == 99


def test_damaged_file_of_the_best_policy_gives_a_warning(tmp_path: Path) -> None:
    config = small_config()
    (tmp_path / FILE).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=rf"{FILE} is truncated.*The best policy of the last checkpoint is used"):
        assert chosen(tmp_path, config, {"return_mean": 1.0}) == {"return_mean": 1.0}
    best_policy.save(tmp_path, small_config(seed=1), {"return_mean": 1.0})
    with pytest.warns(UserWarning, match="belongs to another run"):
        assert chosen(tmp_path, config, {}) == {}


def test_a_best_policy_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=rf"{FILE} cannot be written: No such file.*The run continues; the next check"):
        best_policy.save(tmp_path / "removed", small_config(), {})


def test_diverged_run_ends_with_its_best_policy_and_its_learning_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Run.log

    def log(self: Run, *args: Any) -> None:
        if self.env_steps > 200:
            with torch.no_grad():
                self.agent.loss.log_alpha.fill_(math.nan)
            self.agent.check_parameters()
        plain(self, *args)

    monkeypatch.setattr(Run, "log", log)
    console = Console(file=io.StringIO(), width=300)
    message = r"learning has diverged\. Start a new run with a lower --actor-lr and --critic-lr, or look for extreme"
    with pytest.raises(DivergenceError, match=message):
        session.train_run(one_checkpoint(), tmp_path / "run", console)
    *_, ended, last = console.file.getvalue().splitlines()
    curve = tmp_path / "run" / "learning_curve.png"
    assert re.fullmatch(rf"ended after \d+ s, because learning has diverged; learning curve: {curve}", ended)
    assert curve.exists()
    best = best_row(tmp_path / "run")
    assert last.startswith(f"best evaluation: {float(best['return_mean']):.1f} after {best['env_steps']} env steps")
    assert "--policy last" not in last, "no checkpoint holds it"
    assert str(load_policy(tmp_path / "run").env_steps) == best["env_steps"]

from __future__ import annotations

import io
import math
import os
import signal
from pathlib import Path

import pytest
from pipeline_helpers import RECIPES, read_csv, small_config
from rich.console import Console

from pipeline.buffer import ReplayBuffer
from pipeline.config import Config
from pipeline.learner import Learner
from pipeline.logger import Logger
from pipeline.run import Run, create
from pipeline.train import StopSignal, train


def trained(config: Config, run_dir: Path) -> Run:
    create(config, run_dir)
    run = Run(config, run_dir, announce=lambda _: None)
    with Logger(run_dir, config, 0, Console(file=io.StringIO())) as logger:
        train(run, logger)
    return run


@pytest.mark.parametrize(("num_envs", "steps_per_round", "utd_ratio"), [(4, 3, 0.25), (1, 1, 2.0), (8, 2, 0.125)])
def test_a_round_precedes_every_so_many_vector_steps_and_keeps_the_ratio(
    tmp_path: Path, num_envs: int, steps_per_round: int, utd_ratio: float
) -> None:
    config = small_config(
        num_envs=num_envs, steps_per_round=steps_per_round, utd_ratio=utd_ratio, total_env_steps=120, log_every=1
    )
    run = trained(config, tmp_path)
    assert run.env_steps == 120
    assert run.vector_steps == 120 // num_envs
    for row in read_csv(tmp_path / "metrics.csv"):
        vector_steps = int(row["env_steps"]) // num_envs
        rounds = sum(
            step % steps_per_round == 0 and step * num_envs > config.learning_starts for step in range(1, vector_steps)
        )
        assert int(row["gradient_steps"]) == rounds * utd_ratio * num_envs * steps_per_round
    assert run.learner.gradient_steps == config.total_gradient_steps


def test_a_round_comes_between_acting_and_stepping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a GPU does it while the CPU simulates; it must not need anything of that step."""
    calls: list[str] = []

    def noting(cls: type, name: str) -> None:
        method = getattr(cls, name)
        monkeypatch.setattr(cls, name, lambda *args, **kwargs: calls.append(name) or method(*args, **kwargs))

    for cls, name in ((Run, "act"), (Learner, "round"), (Run, "step"), (ReplayBuffer, "extend")):
        noting(cls, name)
    trained(small_config(total_env_steps=60), tmp_path)
    assert calls == ["act", "step", "extend"] * 11 + ["act", "round", "step", "extend"] * 4


@pytest.mark.parametrize("preset", RECIPES)
@pytest.mark.filterwarnings("ignore:No target network updater")
def test_once_there_is_a_loss_every_row_has_one(tmp_path: Path, preset: str) -> None:
    """Also where a round is too short to update the actor in each."""
    trained(small_config(preset=preset, log_every=4, policy_delay=3, total_env_steps=120), tmp_path)
    rows = read_csv(tmp_path / "metrics.csv")
    for name in ("critic_loss", "actor_loss", "alpha_loss", "alpha", "entropy"):
        known = [math.isfinite(float(row[name])) for row in rows]
        assert any(known)
        assert all(known[known.index(True) :]), f"{name} is lost in rows after it was known"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_to_stop_and_interrupts_nothing(number: signal.Signals) -> None:
    with StopSignal() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        assert stop.received == number.name


def test_a_second_interrupt_does_not_wait() -> None:
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_afterwards_signals_do_what_they_did_before() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopSignal():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before

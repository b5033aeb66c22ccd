"""The training loop and the signals that stop it."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import pytest
from pipeline_helpers import RECIPES, read_csv, small_config
from run_helpers import train_run

from pipeline.buffer import ReplayBuffer
from pipeline.learner import Learner
from pipeline.run import Run
from pipeline.train import StopSignal


@pytest.mark.parametrize(("num_envs", "steps_per_round", "utd_ratio"), [(4, 3, 0.25), (1, 1, 2.0), (8, 2, 0.125)])
def test_rounds_come_every_steps_per_round_and_keep_utd_ratio(
    tmp_path: Path, num_envs: int, steps_per_round: int, utd_ratio: float
) -> None:
    config = small_config(
        num_envs=num_envs, steps_per_round=steps_per_round, utd_ratio=utd_ratio, total_env_steps=120, log_every=1
    )
    run = train_run(config, tmp_path)
    assert run.env_steps == 120
    assert run.vector_steps == 120 // num_envs
    for row in read_csv(tmp_path / "metrics.csv"):
        vector_steps = int(row["env_steps"]) // num_envs
        rounds = sum(
            step % steps_per_round == 0 and step * num_envs > config.learning_starts for step in range(1, vector_steps)
        )
        assert int(row["gradient_steps"]) == rounds * utd_ratio * num_envs * steps_per_round
    assert run.learner.gradient_steps == config.total_gradient_steps


def test_round_comes_between_act_and_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU then learns while the CPU simulates."""
    calls: list[str] = []

    def record_calls(cls: type, name: str) -> None:
        method = getattr(cls, name)
        monkeypatch.setattr(cls, name, lambda *args, **kwargs: calls.append(name) or method(*args, **kwargs))

    for cls, name in ((Run, "act"), (Learner, "round"), (Run, "step"), (ReplayBuffer, "extend")):
        record_calls(cls, name)
    train_run(small_config(total_env_steps=60), tmp_path)
    assert calls == ["act", "step", "extend"] * 11 + ["act", "round", "step", "extend"] * 4


@pytest.mark.parametrize("preset", RECIPES)
@pytest.mark.filterwarnings("ignore:No target network updater")
def test_every_row_after_the_first_update_has_losses(tmp_path: Path, preset: str) -> None:
    """Even if most rounds do not update the actor."""
    train_run(small_config(preset=preset, log_every=4, policy_delay=3, total_env_steps=120), tmp_path)
    rows = read_csv(tmp_path / "metrics.csv")
    for name in ("critic_loss", "actor_loss", "alpha_loss", "alpha", "entropy"):
        known = [math.isfinite(float(row[name])) for row in rows]
        assert any(known)
        assert all(known[known.index(True) :]), f"{name} is missing in later rows"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_asks_to_stop_without_interrupting(number: signal.Signals) -> None:
    with StopSignal() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        assert stop.received == number.name


def test_second_interrupt_raises_at_once() -> None:
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_signal_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopSignal():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before

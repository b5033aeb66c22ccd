"""The training loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pipeline_helpers import differing, read_csv, small_config
from run_helpers import continue_run, quiet_console, train_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from envs import BatchEnv
from pipeline import checkpoint, rank_state
from pipeline import evaluate as evaluate_module
from pipeline.buffer import ReplayBuffer
from pipeline.evaluate import Evaluation
from pipeline.learner import Learner
from pipeline.logger import Logger
from pipeline.run import Run
from pipeline.stored_run import open_run
from pipeline.train import train


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
    assert run.learner.gradient_steps == config.rounds * config.updates_per_round


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


def stop_in_evaluation(monkeypatch: pytest.MonkeyPatch, number: int) -> Callable[[], bool]:
    """A stop that comes within the evaluation of that number."""
    plain, counts = evaluate_module.evaluate, {"evaluations": 0, "steps": 0}

    def counted(policy: Callable[[Tensor], Tensor], env: BatchEnv) -> Evaluation:
        def act(observation: Tensor) -> Tensor:
            counts["steps"] += counts["evaluations"] == number
            return policy(observation)

        counts["evaluations"] += 1
        return plain(act, env)

    monkeypatch.setattr(evaluate_module, "evaluate", counted)
    return lambda: counts["steps"] > 1


@pytest.mark.parametrize("number", [1, 2], ids=["between", "at the end"])
def test_stopped_evaluation_is_done_when_the_run_resumes(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(log_every=40, eval_every=80, total_env_steps=160)
    expected = train_run(config, tmp_path / "expected")
    run = train_run(config, tmp_path / "run", until=0)
    with monkeypatch.context() as patch, Logger(run.run_dir, config, 0, quiet_console()) as logger:
        train(run, logger, stop_in_evaluation(patch, number))
    assert run.env_steps == 80 * number
    assert not run.finished
    assert len(read_csv(tmp_path / "run" / "evaluations.csv")) == number - 1

    resumed = Run(config, tmp_path / "run")
    resumed.load_state_dict(open_run(tmp_path / "run")[1]["state"])
    continue_run(resumed)
    assert resumed.finished
    assert evaluations(tmp_path / "run") == evaluations(tmp_path / "expected")
    assert differing(resumed.best, expected.best) == []
    assert differing(resumed.agent.state_dict(), expected.agent.state_dict()) == []
    saved = Run(config, tmp_path / "run")
    saved.load_state_dict(open_run(tmp_path / "run")[1]["state"])
    assert saved.finished


@pytest.mark.parametrize("number", [1, 2], ids=["between", "at the end"])
def test_evaluation_whose_checkpoint_was_not_written_is_one_row(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run does the evaluation that was stopped, and is killed before it saves: it is done once more."""
    config = small_config(log_every=40, eval_every=80, total_env_steps=160)
    train_run(config, tmp_path / "expected")
    run = train_run(config, tmp_path / "run", until=0)
    with monkeypatch.context() as patch, Logger(run.run_dir, config, 0, quiet_console()) as logger:
        train(run, logger, stop_in_evaluation(patch, number))
    killed = Run(config, tmp_path / "run")
    killed.load_state_dict(open_run(tmp_path / "run")[1]["state"])
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", abort)
        with pytest.raises(ConnectionAbortedError):
            continue_run(killed)
    assert len(read_csv(tmp_path / "run" / "evaluations.csv")) == number

    resumed = Run(config, tmp_path / "run")
    resumed.load_state_dict(open_run(tmp_path / "run")[1]["state"])
    continue_run(resumed)
    assert evaluations(tmp_path / "run") == evaluations(tmp_path / "expected")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "expected")
    for tag in ("evaluation/return_mean", "train/alpha"):
        assert scalars(tmp_path / "run", tag) == scalars(tmp_path / "expected", tag)


def abort(*_: object, **__: object) -> None:
    raise ConnectionAbortedError


def scalars(run_dir: Path, tag: str) -> list[tuple[int, str]]:
    """What TensorBoard shows; NaN equals itself."""
    found = EventAccumulator(str(run_dir / "tensorboard"))
    found.Reload()
    return [(event.step, str(event.value)) for event in found.Scalars(tag)]


def metrics(run_dir: Path) -> list[str]:
    return [row["env_steps"] for row in read_csv(run_dir / "metrics.csv")]


def evaluations(run_dir: Path) -> list[dict[str, str]]:
    return [{**row, "seconds": ""} for row in read_csv(run_dir / "evaluations.csv")]


@pytest.mark.parametrize(("until", "steps"), [(80, [0, 80]), (84, [0, 80, 84]), (0, [0])])
def test_stop_at_a_step_that_is_saved_saves_it_once(
    tmp_path: Path, until: int, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, plain = list[int](), rank_state.save
    monkeypatch.setattr(rank_state, "save", lambda *args: saved.append(args[2]["env_steps"]) or plain(*args))
    train_run(small_config(checkpoint_every=80), tmp_path, until=until)
    assert saved == steps


def test_evaluation_with_failures_is_never_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that breaks the simulation has high returns until it does."""
    results = iter([Evaluation((9.0,), (1,), 1), Evaluation((1.0,), (1,), 0), Evaluation((9.0,), (1,), 1)])
    monkeypatch.setattr(evaluate_module, "evaluate", lambda *_: next(results))
    said = list[str]()
    monkeypatch.setattr(Logger, "evaluation", lambda _self, _row, summary, _: said.append(summary))
    run = train_run(small_config(total_env_steps=120, eval_every=40), tmp_path)
    assert ["1 truncated by failures; not kept as the best policy" in line for line in said] == [True, False, True]
    assert (run.best["return_mean"], run.best["env_steps"]) == (1.0, 80)


@pytest.mark.parametrize("fails", [False, True])
def test_only_updates_that_compiled_are_called_compiled(
    tmp_path: Path, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_(traced: Any, *_: Any, **__: Any) -> Any:
        if fails:
            raise OSError(28, "No space left on device")
        return traced

    monkeypatch.setattr("torch._inductor.standalone_compile", compile_)
    run, said = Run(small_config(compile=True, policy_delay=1), tmp_path), list[str]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(12):
            run.buffer.extend(run.step(run.act()))
        logger = SimpleNamespace(phase=lambda name: None, say=said.append)
        run.learn(logger)  # type: ignore[arg-type]
    assert any("No space left on device" in str(warning.message) for warning in caught) == fails
    assert [line.partition(" in ")[0] for line in said] == ([] if fails else ["compiled the updates"])
    assert run.learner.gradient_steps > 0


def test_run_that_is_stopped_while_it_compiles_continues_as_if_it_had_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[bool] = []

    def compile_(traced: Any, *_: Any, **__: Any) -> Any:
        stopped.append(True)
        raise RuntimeError("g++ was killed by signal 15")

    config = small_config(compile=True, policy_delay=1, total_env_steps=80)
    monkeypatch.setattr("torch._inductor.standalone_compile", lambda traced, *_, **__: traced)
    whole = train_run(config, tmp_path / "whole")
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("error", message="compilation failed")
        patch.setattr("torch._inductor.standalone_compile", compile_)
        run = train_run(config, tmp_path / "run", until=0)
        with Logger(run.run_dir, config, 0, quiet_console()) as logger:
            train(run, logger, lambda: bool(stopped))
    assert (stopped, run.learner.gradient_steps, run.env_steps) == ([True], 0, 44), "before the first update"
    continue_run(run)
    states = [{**one.state_dict(), "seconds": 0, "logged": {}} for one in (whole, run)]
    assert differing(*states) == []


@pytest.fixture
def second_per_vector_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "seconds", property(lambda run: float(run.vector_steps)))


@pytest.mark.usefixtures("second_per_vector_step")
def test_run_of_minutes_ends_after_them(tmp_path: Path) -> None:
    config = small_config(minutes=0.5, log_every=40, eval_every=10**9, checkpoint_every=10**9)
    run = train_run(config, tmp_path)
    assert run.vector_steps == 30
    assert run.finished
    assert run.progress == 1
    assert float(run.agent.progress) == 29 / 30  # at the last round
    assert [int(row["env_steps"]) for row in read_csv(tmp_path / "evaluations.csv")] == [120]
    assert [path.name for path in checkpoint.find(tmp_path / "checkpoints")] == [f"{0:012d}.pt", f"{120:012d}.pt"]


@pytest.mark.usefixtures("second_per_vector_step")
def test_run_of_minutes_continues_with_the_time_that_is_left(tmp_path: Path) -> None:
    config = small_config(minutes=0.5)
    train_run(config, tmp_path, until=80)
    resumed = Run(config, tmp_path)
    resumed.load_state_dict(open_run(tmp_path)[1]["state"])
    assert resumed.progress == 20 / 30
    continue_run(resumed)
    assert resumed.vector_steps == 30


def test_stopped_run_of_minutes_is_not_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time may be over before it is saved, but its last evaluation is still to come."""
    seconds = {"now": 0.0}
    monkeypatch.setattr(Run, "seconds", property(lambda run: seconds["now"]))
    run = train_run(small_config(minutes=0.5), tmp_path, until=60)
    seconds["now"] = 30.0
    assert not run.finished
    resumed = Run(run.config, tmp_path)
    resumed.load_state_dict(open_run(tmp_path)[1]["state"])
    continue_run(resumed)
    assert resumed.finished
    assert resumed.env_steps == 64
    assert [int(row["env_steps"]) for row in read_csv(tmp_path / "evaluations.csv")] == [64]


def test_learning_rates_fall_with_the_env_steps(tmp_path: Path) -> None:
    run = train_run(small_config(total_env_steps=120), tmp_path)
    assert float(run.agent.progress) == 116 / 120  # at the last round

"""The files of a run, its rows of numbers, and what stops it."""

from __future__ import annotations

import io
import json
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import mujoco_warp
import numpy as np
import pytest
import torch
from pipeline_helpers import read_csv, small_config, train_here
from rich.console import Console
from run_helpers import quiet_console, train_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from envs import transition as transitions
from envs.tasks.inverted_pendulum import InvertedPendulum
from pipeline import checkpoint, cli, torchrl_adapter
from pipeline import run as run_module
from pipeline.config import Config
from pipeline.divergence import DivergenceError
from pipeline.learner import Learner
from pipeline.logger import Logger
from pipeline.plot import learning_curve
from pipeline.run import Run
from pipeline.stored_run import open_run
from pipeline.tables import read_table
from saltus import SaltusError
from saltus.device import resolve_device
from saltus.versions import versions

COLUMNS = {
    "env_steps", "gradient_steps", "utd_ratio", "episodes", "episode_return", "episode_length", "unstable", "nonfinite",
    "overflowed", "critic_loss", "td_error", "q_mean", "target_mean", "actor_loss", "alpha_loss", "alpha", "entropy",
    "gamma", "actor_lr", "reward_terms/reward_survive", "seconds", "env_steps_per_second", "gradient_steps_per_second",
}  # fmt: skip
SETTINGS: dict[str, Any] = {"total_env_steps": 402, "num_envs": 3, "utd_ratio": 2 / 3, "log_every": 50, "seed": 5}


@pytest.fixture(autouse=True, scope="module")
def blank_learning_curves() -> None:
    """Learning curves are drawn here."""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 402 env steps, logged every 50, evaluated every 200, saved every 100."""
    path = tmp_path_factory.mktemp("runs") / "created" / "on-demand"
    train_here(path, **SETTINGS)
    return path


@pytest.fixture(scope="module")
def rows(run_dir: Path) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in row.items()} for row in read_csv(run_dir / "metrics.csv")]


def test_run_directory_has_all_files(run_dir: Path) -> None:
    assert {path.name for path in run_dir.iterdir()} == {
        "checkpoints", "config.json", "evaluation_episodes.csv", "evaluations.csv", "learning_curve.png",
        "lock", "messages.txt", "metrics.csv", "task", "tensorboard",
    }  # fmt: skip
    content = json.loads((run_dir / "config.json").read_text())
    assert Config.from_dict(content["config"]) == small_config(**SETTINGS)
    assert content["versions"] == versions()
    assert [int(path.stem) for path in checkpoint.find(run_dir / "checkpoints")] == [300, 402]


def test_every_evaluation_has_its_episodes(run_dir: Path) -> None:
    episodes = read_csv(run_dir / "evaluation_episodes.csv")
    for row in read_csv(run_dir / "evaluations.csv"):
        own = [one for one in episodes if one["env_steps"] == row["env_steps"]]
        assert [one["episode"] for one in own] == [str(number) for number in range(int(row["episodes"]))]
        for column, mean in (("return", "return_mean"), ("length", "length_mean")):
            assert np.mean([float(one[column]) for one in own]) == pytest.approx(float(row[mean]))
    assert {one["env_steps"] for one in episodes} == {row["env_steps"] for row in read_csv(run_dir / "evaluations.csv")}


def test_learning_curve_is_not_blank(run_dir: Path) -> None:
    picture = matplotlib.image.imread(run_dir / "learning_curve.png")
    assert min(picture.shape[:2]) > 200
    assert np.std(picture) > 0.01


def test_learning_curve_leaves_a_programs_backend(run_dir: Path) -> None:
    """Such as that of a notebook, which shows its figures."""
    before = matplotlib.get_backend()
    matplotlib.use("svg")
    try:
        assert learning_curve(run_dir, "title") == run_dir / "learning_curve.png"
        assert matplotlib.get_backend() == "svg"
    finally:
        matplotlib.use(before)


def test_metrics_have_a_row_per_log_every_and_at_the_end(rows: list[dict[str, float]]) -> None:
    assert [row["env_steps"] for row in rows] == [51, 102, 150, 201, 252, 300, 351, 402]


def test_metrics_agree_with_the_config_and_each_other(rows: list[dict[str, float]]) -> None:
    assert all(row.keys() == COLUMNS for row in rows)
    before = dict.fromkeys(COLUMNS, 0.0)
    for row in rows:
        learned = sum(1 for steps in range(3, int(row["env_steps"]), 3) if steps > 40)
        assert row["gradient_steps"] == 2 * learned
        assert row["utd_ratio"] == pytest.approx(row["gradient_steps"] / row["env_steps"])
        since = {name: row[name] - before[name] for name in ("env_steps", "gradient_steps", "episodes", "seconds")}
        assert row["env_steps_per_second"] == pytest.approx(since["env_steps"] / since["seconds"], rel=0.1)
        assert row["gradient_steps_per_second"] == pytest.approx(since["gradient_steps"] / since["seconds"], rel=0.1)
        if since["episodes"]:
            assert row["episode_return"] == pytest.approx(row["episode_length"] - 1)  # the fall has reward 0
        falls = since["episodes"] / since["env_steps"]
        assert row["reward_terms/reward_survive"] == pytest.approx(1 - falls)
        assert row["unstable"] == row["nonfinite"] == row["overflowed"] == 0
        before = row


def test_losses_are_finite_after_the_first_update(rows: list[dict[str, float]]) -> None:
    names = ("critic_loss", "td_error", "actor_loss", "alpha_loss", "alpha", "entropy")
    assert all(math.isfinite(row["critic_loss"]) for row in rows)
    assert any(all(math.isfinite(row[name]) for name in names) for row in rows)


def test_evaluations_are_of_whole_episodes_with_an_interval_around_the_mean(run_dir: Path) -> None:
    evaluations = [{name: float(value) for name, value in row.items()} for row in read_csv(run_dir / "evaluations.csv")]
    assert [row["env_steps"] for row in evaluations] == [201, 402]
    for row in evaluations:
        assert row["episodes"] == 2
        assert row["return_low"] <= row["return_mean"] <= row["return_high"]
        assert row["return_mean"] == pytest.approx(row["length_mean"] - 1)


def assert_tensorboard_has_the_tables(run_dir: Path) -> None:
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    for file, prefix in (("metrics.csv", "train"), ("evaluations.csv", "evaluation")):
        table = read_csv(run_dir / file)
        for name in table[0]:
            if name == "env_steps":
                continue
            found = [(event.step, event.value) for event in events.Scalars(f"{prefix}/{name}")]
            assert [step for step, _ in found] == [int(row["env_steps"]) for row in table], name
            expected = [float(row[name]) for row in table]
            assert [value for _, value in found] == pytest.approx(expected, rel=1e-6, nan_ok=True)


def test_table_cut_anywhere_is_read_and_continued_from_its_complete_rows(tmp_path: Path) -> None:
    written = [{"env_steps": 10.0 * i, "return_mean": i + 0.125, "seconds": 0.5, "alpha": math.inf} for i in range(3)]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    write_evaluations(whole, written, 0)
    content = (whole / "evaluations.csv").read_bytes()
    assert read_table(whole / "evaluations.csv") == written
    assert read_table(cut / "evaluations.csv") == []
    cut.mkdir()
    for length in range(len(content)):
        (cut / "evaluations.csv").write_bytes(content[:length])
        known = read_table(cut / "evaluations.csv")
        assert known == written[: len(known)]
        lines = content[: length + 1].count(b"\r\n")  # a line is complete without its last character
        assert len(known) == max(lines - 1, 0)
        write_evaluations(cut, written[len(known) :], 10 * (len(known) - 1))
        assert (cut / "evaluations.csv").read_bytes() == content


def write_evaluations(run_dir: Path, rows: list[dict[str, float]], env_steps: int) -> None:
    with Logger(run_dir, small_config(), env_steps, Console(file=io.StringIO())) as logger:
        for row in rows:
            logger.evaluation(row | {"env_steps": int(row["env_steps"])}, "")


def test_tensorboard_has_the_numbers_of_the_tables(run_dir: Path) -> None:
    assert_tensorboard_has_the_tables(run_dir)


@pytest.mark.parametrize("checkpoint_every", [100, 1000], ids=["from the middle", "from the start"])
def test_tensorboard_has_the_numbers_of_the_tables_after_a_resume(tmp_path: Path, checkpoint_every: int) -> None:
    run_dir = tmp_path / "run"
    train_here(run_dir, checkpoint_every=checkpoint_every)
    checkpoint.find(run_dir / "checkpoints")[-1].unlink()
    cli.resume([str(run_dir)], quiet_console())
    assert [row["env_steps"] for row in read_csv(run_dir / "metrics.csv")] == ["100", "200", "300", "400"]
    assert_tensorboard_has_the_tables(run_dir)


def test_losses_are_nan_before_the_first_update(tmp_path: Path) -> None:
    train_here(tmp_path / "run", log_every=20, total_env_steps=60)
    first = read_csv(tmp_path / "run" / "metrics.csv")[0]
    assert int(first["env_steps"]) == 20
    assert first["critic_loss"] == "nan"
    assert first["gradient_steps"] == "0"


@pytest.mark.parametrize("physics", ["cpu", "warp"])
def test_memory_is_logged_before_allocation(
    physics: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[str] = []
    caplog.set_level(logging.INFO, "saltus")
    monkeypatch.setattr(caplog.handler, "emit", lambda record: events.append(record.getMessage()))
    buffer_class = run_module.ReplayBuffer

    def allocate(*args: Any, **options: Any) -> object:
        events.append("allocated")
        return buffer_class(*args, **options)

    def make_data(*args: Any, nworld: int, **options: int) -> object:
        if nworld > 2:  # one and two worlds are made to estimate the memory
            events.append(f"{nworld} worlds allocated")
        return plain_make_data(*args, nworld=nworld, **options)

    monkeypatch.setattr(run_module, "ReplayBuffer", allocate)
    plain_make_data = mujoco_warp.make_data
    monkeypatch.setattr(mujoco_warp, "make_data", make_data)
    run = Run(small_config(total_env_steps=100_000, physics=physics), tmp_path)
    if physics == "warp":
        assert events[0].startswith(f"memory on cpu: physics: {run.config.num_envs} worlds, ")
        assert events[1] == "4 worlds allocated"
        del events[:2]
    assert len(events) == 2
    assert events[1] == "allocated"
    megabytes = 100_000 * transitions.num_bytes(4, 1) / 1e6
    assert run.buffer.num_bytes == megabytes * 1e6
    assert f"memory on cpu: replay buffer: 100,000 transitions, {megabytes:.0f} MB" in events[0]


def test_run_whose_buffer_does_not_fit_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(MemoryError, match="set buffer_size below"):
        train_here(tmp_path / "run", buffer_size=10**14, total_env_steps=10**14)
    assert not (tmp_path / "run").exists()


class FakeWandb(SimpleNamespace):
    """Records the calls of a run."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **settings: Any) -> FakeWandb:
        self.started.append(settings)
        return self

    def log(self, scalars: dict[str, float], step: int) -> None:
        self.logged.append((step, scalars))

    def finish(self) -> None:
        self.finished += 1


def test_wandb_gets_the_config_and_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    train_here(tmp_path / "run", wandb=True)
    (settings,) = wandb.started
    assert settings["config"] == small_config(wandb=True).to_dict()
    assert wandb.finished == 1
    rows = read_csv(tmp_path / "run" / "metrics.csv")
    train_rows = [(step, row) for step, row in wandb.logged if "train/critic_loss" in row]
    assert [step for step, _ in train_rows] == [int(row["env_steps"]) for row in rows]
    assert train_rows[-1][1]["train/gradient_steps"] == float(rows[-1]["gradient_steps"])
    assert sum("evaluation/return_mean" in row for _, row in wandb.logged) == 2


def test_missing_wandb_is_refused_with_what_to_install_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SaltusError, match=r"pip install -c constraints.txt -e '.\[wandb\]'"):
        train_here(tmp_path / "run", wandb=True)
    assert not (tmp_path / "run").exists()


def assert_last_checkpoint_is_finite(run_dir: Path, before: int) -> None:
    last = checkpoint.find(run_dir / "checkpoints")[-1]
    assert int(last.stem) <= before
    numbers = checkpoint.load(last)["state"]["agent"]["loss"]
    assert all(value.isfinite().all() for value in numbers.values())


def test_overflowing_loss_stops_the_run_and_the_last_checkpoint_is_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def reward(self: InvertedPendulum, state: Any, action: Tensor, next_state: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.full_like(next_state.qpos[:, 0], 1.0 if calls < 60 else 1e30)

    monkeypatch.setattr(InvertedPendulum, "reward", reward)
    with pytest.raises(DivergenceError, match=r"critic_loss is (inf|nan) at gradient step \d+.*diverged"):
        train_here(tmp_path / "run")
    assert_last_checkpoint_is_finite(tmp_path / "run", 240)
    assert all(row["critic_loss"] not in ("inf", "nan") for row in read_csv(tmp_path / "run" / "metrics.csv")[1:])


@pytest.mark.parametrize("poisoned", ["critic", "actor"])
def test_nan_parameter_stops_the_run_and_the_last_checkpoint_is_finite(
    tmp_path: Path, poisoned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_round = Learner.round
    parameters = {"critic": torchrl_adapter.critic_parameters, "actor": torchrl_adapter.actor_parameters}[poisoned]

    def poisoning_round(self: Learner, *args: Any) -> Any:
        metrics = plain_round(self, *args)
        if self.gradient_steps == 50:
            with torch.no_grad():
                next(iter(parameters(self.agent.loss).values())).fill_(math.nan)
        return metrics

    monkeypatch.setattr(Learner, "round", poisoning_round)
    with pytest.raises(DivergenceError, match=r"(critic_loss|actor_loss|action).* nan at gradient step \d+"):
        train_here(tmp_path / "run")
    assert_last_checkpoint_is_finite(tmp_path / "run", 240)


@pytest.mark.parametrize("action", [Run.save, Run.evaluate])
def test_nan_parameter_is_never_saved_and_ends_an_evaluation(
    tmp_path: Path, action: Callable[[Run, Logger], None]
) -> None:
    run = train_run(small_config(total_env_steps=100), tmp_path)
    with torch.no_grad():
        next(iter(run.agent.actor.parameters())).fill_(math.nan)
    run.env_steps += 4
    logger = Logger(tmp_path, run.config, run.env_steps, quiet_console())
    with logger, pytest.raises(DivergenceError, match=r"body\.0\.weight is not finite at .*: learning has diverged"):
        action(run, logger)
    assert_last_checkpoint_is_finite(tmp_path, 100)


def test_stopped_run_is_saved(tmp_path: Path) -> None:
    config = small_config()
    run = train_run(config, tmp_path, until=132)
    assert run.env_steps == 132
    read, content = open_run(tmp_path)
    assert read == config
    assert content["state"]["env_steps"] == 132
    assert len(content["state"]["buffer"]["stored"]["observation"]) == 132


def test_actions_are_uniform_until_learning_starts_then_the_policys(tmp_path: Path) -> None:
    run = Run(small_config(num_envs=1000, learning_starts=2000, total_env_steps=10_000, utd_ratio=0.001), tmp_path)
    for run.vector_steps in (0, 1, 2):
        action = run.act()
        assert action.shape == (1000, 1)
        assert action.abs().max() <= 1
        observed = torch.histc(action, 10, -1, 1)
        assert (observed - 100).abs().max() < 5 * 10
    run.vector_steps = 3
    torch.manual_seed(0)
    action = run.act()
    torch.manual_seed(0)
    assert torch.equal(action, run.agent.act(run.observation, torch.randn(1000, 1)))


def test_step_takes_and_stores_normalized_actions(tmp_path: Path) -> None:
    """The pendulum's control range is [-3, 3]."""
    run = Run(small_config(), tmp_path)
    assert (run.env.action_low.item(), run.env.control_low.item()) == (-1, -3)
    action = run.act()
    assert torch.equal(run.step(action)["action"], action)


def test_runs_are_equal_with_the_same_seed_and_differ_with_another(tmp_path: Path) -> None:
    seen = [Run(small_config(seed=seed), tmp_path) for seed in (0, 0, 1)]
    for name in ("observation", "networks"):
        first, same, other = (
            run.observation if name == "observation" else run.agent.actor.body[0].weight.detach() for run in seen
        )
        assert torch.equal(first, same)
        assert not torch.isclose(first, other).any()


def test_cuda_settings_are_refused_without_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SaltusError, match=r"use .*cpu or auto"):
        train_here(tmp_path / "run", device="cuda")
    assert not (tmp_path / "run").exists()
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(SaltusError, match="tf32 needs CUDA, and this run is on cpu: use float32 or bfloat16"):
        train_here(tmp_path / "run", matmul_dtype="tf32")
    assert not (tmp_path / "run").exists()


def test_diverged_actions_are_checked_on_the_device_of_the_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the learner on a GPU and physics on the CPU, the actions are on the CPU and the metrics are not."""
    run, devices = train_run(small_config(total_env_steps=100), tmp_path), set[str]()
    run.device = torch.device("meta")
    run.metrics = {"critic_loss": torch.zeros((), device="meta")}
    monkeypatch.setattr(run.learner, "act", lambda observation, noise: torch.full((4, 1), math.nan))
    monkeypatch.setattr(
        run.agent, "check_finite", lambda metrics: devices.update(one.device.type for one in metrics.values())
    )
    run.act()
    assert devices == {"meta"}

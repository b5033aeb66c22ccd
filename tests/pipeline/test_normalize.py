from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline_helpers import small_config
from rich.console import Console
from torch import Tensor

from pipeline.logger import Logger
from pipeline.normalize import EPSILON, Moments, ObservationNormalizer, RewardScaler
from pipeline.run import Run
from pipeline.run_dir import create
from pipeline.train import train

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
BATCH_SIZES = [[1000], [1] * 1000, [1, 999], [16] * 62 + [8], [500, 500]]


def rows(offset: float = 0.0) -> Tensor:
    """A thousand rows with a different mean and standard deviation in each column."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1000, 3, generator=generator, dtype=torch.float64)
    return values * torch.tensor([0.01, 1.0, 300.0]) + torch.tensor([5.0, 0.0, -1000.0]) + offset


@pytest.mark.parametrize("sizes", BATCH_SIZES, ids=["at once", "row by row", "one first", "sixteens", "halves"])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_of_batches_are_those_of_all_rows(sizes: list[int], offset: float) -> None:
    moments, values = Moments(3), rows(offset)
    for batch in values.split(sizes):
        moments.update(batch)
    assert int(moments.count) == 1000
    np.testing.assert_allclose(moments.mean, values.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, values.numpy().var(0), rtol=1e-8)


def test_large_means_lose_no_digits() -> None:
    """E[x^2] - E[x]^2 would lose them all: 1e18 + 1 is no float64."""
    moments = Moments(1)
    for value in [1.0, -1.0] * 500:
        moments.update(torch.tensor([[1e9 + value]], dtype=torch.float64))
    assert float(moments.variance) == pytest.approx(1.0, rel=1e-7)
    assert float(moments.mean) == pytest.approx(1e9, rel=1e-15)


def test_initial_mean_is_0_and_variance_1() -> None:
    normalizer, scaler = ObservationNormalizer(3), RewardScaler(2, 0.9, 5.0)
    torch.testing.assert_close(normalizer(rows().float()), rows().float())
    torch.testing.assert_close(scaler(torch.tensor([[2.0]])), torch.tensor([[2.0]]))


def test_normalized_observations_have_mean_0_and_std_1_in_each_column() -> None:
    normalizer, observations = ObservationNormalizer(3), rows().float()
    for batch in observations.split(100):
        normalizer.update(batch)
    normalized = normalizer(observations)
    assert normalized.dtype == torch.float32
    torch.testing.assert_close(normalized.mean(0), torch.zeros(3), rtol=0, atol=2e-3)
    torch.testing.assert_close(normalized.std(0, correction=0), torch.ones(3), rtol=2e-3, atol=0)


def test_a_constant_column_becomes_zeros() -> None:
    normalizer, observation = ObservationNormalizer(2), torch.tensor([[3.0, 1.0], [3.0, 2.0]])
    normalizer.update(observation)
    assert normalizer(observation)[:, 0].tolist() == [0.0, 0.0]


def test_calls_do_not_change_the_statistics() -> None:
    normalizer, scaler = ObservationNormalizer(3), RewardScaler(4, 0.9, 5.0)
    normalizer.update(rows()[:50])
    scaler.update(torch.randn(4, 1), torch.zeros(4, 1, dtype=torch.bool))
    before = [value.clone() for one in (normalizer, scaler) for value in one.state_dict().values()]
    normalizer(rows().float())
    scaler(torch.randn(100, 1) * 1e6)
    after = [value for one in (normalizer, scaler) for value in one.state_dict().values()]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def observe(scaler: RewardScaler, rewards: list[list[float]], dones: list[list[bool]]) -> None:
    for reward, done in zip(rewards, dones, strict=True):
        scaler.update(torch.tensor(reward).unsqueeze(-1), torch.tensor(done).unsqueeze(-1))


def test_rewards_are_divided_by_the_std_of_discounted_returns() -> None:
    scaler = RewardScaler(2, 0.5)
    observe(scaler, [[1, 8], [2, -4], [4, 2]], [[False, False], [False, True], [False, False]])
    # World 0: 1, 2 + 1/2, 4 + 2.5/2. World 1: 8, -4 (the episode ends), 2 - 4/2.
    returns = [1.0, 2.5, 5.25, 8.0, -4.0, 0.0]
    assert scaler.returns.flatten().tolist() == [5.25, 0.0]
    assert float(scaler.max_abs_return) == 8.0
    reward = torch.tensor([[3.0], [-6.0]])
    torch.testing.assert_close(scaler(reward), reward / np.sqrt(np.var(returns) + EPSILON), check_dtype=False)
    assert scaler(reward).dtype == torch.float32


def test_the_bounded_divisor_is_the_larger_of_std_and_largest_return_over_range() -> None:
    rewards, dones = [[1.0], [-30.0], [2.0]], [[False], [False], [False]]
    plain, narrow, wide = RewardScaler(1, 0.0), RewardScaler(1, 0.0, 0.5), RewardScaler(1, 0.0, 1e6)
    for scaler in (plain, narrow, wide):
        observe(scaler, rewards, dones)
    reward = torch.tensor([[12.0]])
    torch.testing.assert_close(narrow(reward), reward / (30 / 0.5))
    torch.testing.assert_close(wide(reward), plain(reward))


@pytest.mark.parametrize("spikes", [0.0, 1000.0])
@pytest.mark.parametrize("gamma", [0.9, 0.99])
def test_bounded_scaling_keeps_every_return_within_the_range(spikes: float, gamma: float) -> None:
    generator, scaler, seen = torch.Generator().manual_seed(0), RewardScaler(4, gamma, 5.0), []
    for step in range(300):
        reward = torch.rand(4, 1, generator=generator) * 3 + spikes * (step % 97 == 50)
        scaler.update(reward, torch.rand(4, 1, generator=generator) < 0.02)
        seen.append(scaler.returns.clone())
        scaled = scaler(torch.cat(seen).float())
        assert scaled.abs().max() <= 5.0 * (1 + 1e-6)
    assert scaled.abs().max() > 1


def test_statistics_change_in_place() -> None:
    normalizer, scaler = ObservationNormalizer(3), RewardScaler(4, 0.9, 5.0)
    tensors = {**normalizer.state_dict(), **{f"reward {name}": value for name, value in scaler.state_dict().items()}}
    before = {name: value.clone() for name, value in tensors.items()}
    normalizer.update(rows())
    scaler.update(torch.randn(4, 1), torch.zeros(4, 1, dtype=torch.bool))
    assert [name for name, value in tensors.items() if torch.equal(value, before[name])] == []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run with evaluations that normalises observations and rewards."""
    run_dir = tmp_path_factory.mktemp("run")
    config = small_config(preset="flashsac", normalize_observations=True, total_env_steps=120, eval_every=20)
    run = Run(config, run_dir)
    create(config, run_dir, run.env.task.model)
    with Logger(run_dir, config, 0, Console(file=io.StringIO())) as logger:
        train(run, logger)
    return run


def test_a_runs_statistics_are_those_of_its_stored_transitions(run: Run) -> None:
    stored = run.buffer.state_dict()["stored"]
    statistics = run.agent.state_dict()["normalizers"]
    observations = stored["observation"].double().numpy()
    assert int(statistics["observations"]["count"]) == int(statistics["rewards"]["count"]) == len(observations) == 120
    np.testing.assert_allclose(statistics["observations"]["mean"], observations.mean(0), rtol=1e-9)
    np.testing.assert_allclose(statistics["observations"]["variance"], observations.var(0), rtol=1e-9)
    returns, seen = np.zeros(4), []
    for reward, done in zip(stored["next.reward"].reshape(-1, 4), stored["next.done"].reshape(-1, 4), strict=True):
        returns = reward.numpy() + run.config.gamma * ~done.numpy() * returns
        seen.append(returns)
    np.testing.assert_allclose(statistics["rewards"]["variance"], [np.var(seen)], rtol=1e-5)
    np.testing.assert_allclose(statistics["rewards"]["max_abs_return"], np.abs(seen).max(), rtol=1e-6)


def test_evaluation_does_not_change_the_statistics(run: Run, tmp_path: Path) -> None:
    tensors = [value for one in run.agent.state_dict()["normalizers"].values() for value in one.values()]
    before = [value.clone() for value in tensors]
    with Logger(tmp_path, run.config, run.env_steps, Console(file=io.StringIO())) as logger:
        run.evaluate(logger)
    assert all(torch.equal(*pair) for pair in zip(before, tensors, strict=True))


def test_the_policy_normalizes_observations(run: Run) -> None:
    observation = torch.randn(5, 4)
    statistics = run.agent.state_dict()["normalizers"]["observations"]
    std = (statistics["variance"] + EPSILON).sqrt()
    normalized = ((observation - statistics["mean"]) / std).float()
    torch.testing.assert_close(run.agent.policy(observation), run.agent.actor.mode(normalized))


def test_statistics_are_saved_and_restored(run: Run, tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.save(run.state_dict(), file)
    file.seek(0)
    other = Run(run.config, tmp_path)
    other.load_state_dict(torch.load(file, weights_only=True))
    mine, loaded = (one.agent.state_dict()["normalizers"] for one in (run, other))
    assert mine.keys() == loaded.keys() == {"observations", "rewards"}
    for name, statistics in mine.items():
        assert all(torch.equal(value, loaded[name][key]) for key, value in statistics.items())
    observation, reward = torch.randn(5, 4), torch.randn(5, 1)
    assert torch.equal(run.agent.policy(observation), other.agent.policy(observation))
    assert run.agent.normalizers.rewards is not None
    assert other.agent.normalizers.rewards is not None
    assert torch.equal(run.agent.normalizers.rewards(reward), other.agent.normalizers.rewards(reward))

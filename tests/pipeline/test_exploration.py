from __future__ import annotations

import io
from itertools import groupby
from pathlib import Path

import pytest
import torch
from pipeline_helpers import small_config
from run_helpers import train_run

from pipeline.exploration import RepeatedNoise
from pipeline.learner import Learner


def sample(noise: RepeatedNoise, steps: int) -> list[tuple[float, ...]]:
    return [tuple(noise().flatten().tolist()) for _ in range(steps)]


def durations(noise: RepeatedNoise, steps: int) -> list[int]:
    """The duration of each sample except the last, which may continue."""
    return [len(list(group)) for _, group in groupby(sample(noise, steps))][:-1]


@pytest.mark.parametrize("max_repeat", [2, 5, 16])
def test_a_sample_lasts_k_steps_with_probability_proportional_to_one_over_k_squared(max_repeat: int) -> None:
    torch.manual_seed(0)
    found = durations(RepeatedNoise(1, 1, max_repeat), 20_000)
    total = sum(k**-2 for k in range(1, max_repeat + 1))
    assert set(found) <= set(range(1, max_repeat + 1))
    for k in range(1, max_repeat + 1):
        probability = k**-2 / total
        std = (probability * (1 - probability) * len(found)) ** 0.5
        assert abs(found.count(k) - probability * len(found)) < 4 * std + 1, k


def test_without_repeats_every_step_is_a_normal_sample() -> None:
    torch.manual_seed(0)
    assert durations(RepeatedNoise(2, 3, 1), 1000) == [1] * 999
    torch.manual_seed(0)
    expected = [tuple(torch.randn(2, 3).flatten().tolist()) for _ in range(20)]
    torch.manual_seed(0)
    assert sample(RepeatedNoise(2, 3, 1), 20) == expected


@pytest.mark.parametrize("max_repeat", [1, 16])
def test_entries_are_standard_normal_and_independent(max_repeat: int) -> None:
    torch.manual_seed(0)
    noise = RepeatedNoise(50, 4, max_repeat)
    values = torch.tensor(list(dict.fromkeys(sample(noise, 4000))))
    bound = 5 / len(values) ** 0.5
    assert values.mean().abs() < bound / 200**0.5
    assert (values.mean(0)).abs().max() < bound
    assert (torch.cov(values.T) - torch.eye(200)).abs().max() < 2 * bound


def test_noise_changes_in_all_worlds_at_once() -> None:
    torch.manual_seed(0)
    before = torch.zeros(3, 2)
    noise = RepeatedNoise(3, 2, 8)
    for _ in range(100):
        now = noise().clone()
        changed = now != before
        assert changed.all() or not changed.any()
        before = now


@pytest.mark.parametrize("max_repeat", [1, 4, 16])
@pytest.mark.parametrize("steps", [0, 1, 7, 50])
def test_loaded_noise_continues(max_repeat: int, steps: int) -> None:
    torch.manual_seed(0)
    original = RepeatedNoise(2, 3, max_repeat)
    sample(original, steps)
    file = io.BytesIO()
    torch.save((original.state_dict(), torch.get_rng_state()), file)
    expected = sample(original, 50)
    file.seek(0)
    state, random = torch.load(file, weights_only=True)
    restored = RepeatedNoise(2, 3, max_repeat)
    sample(restored, 5)
    restored.load_state_dict(state)
    torch.set_rng_state(random)
    assert sample(restored, 50) == expected


@pytest.mark.parametrize(("num_envs", "steps_per_round"), [(4, 1), (4, 4), (3, 1), (2, 3)])
def test_the_policy_acts_from_the_first_update_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_envs: int, steps_per_round: int
) -> None:
    calls: list[str] = []
    for name in ("act", "round"):
        method = getattr(Learner, name)
        monkeypatch.setattr(Learner, name, lambda *args, n=name, m=method: calls.append(n) or m(*args))
    sizes = {"num_envs": num_envs, "steps_per_round": steps_per_round, "utd_ratio": 1.0, "total_env_steps": 72}
    run = train_run(small_config(**sizes), tmp_path)
    assert calls[:2] == ["act", "round"]
    first = run.vector_steps - calls.count("act")
    assert (first - steps_per_round) * num_envs <= run.config.learning_starts < first * num_envs

from __future__ import annotations

import io
from itertools import groupby

import pytest
import torch

from pipeline.exploration import RepeatedNoise


def drawn(noise: RepeatedNoise, steps: int) -> list[tuple[float, ...]]:
    return [tuple(noise().flatten().tolist()) for _ in range(steps)]


def lengths(noise: RepeatedNoise, steps: int) -> list[int]:
    """For how long each noise was held, but for the last, which may not be over."""
    return [len(list(group)) for _, group in groupby(drawn(noise, steps))][:-1]


@pytest.mark.parametrize("longest", [2, 5, 16])
def test_noise_is_held_for_k_steps_with_a_probability_that_falls_as_one_over_k_squared(longest: int) -> None:
    torch.manual_seed(0)
    found = lengths(RepeatedNoise(1, 1, longest), 20_000)
    total = sum(k**-2 for k in range(1, longest + 1))
    assert set(found) <= set(range(1, longest + 1))
    for k in range(1, longest + 1):
        share = k**-2 / total
        deviation = (share * (1 - share) * len(found)) ** 0.5
        assert abs(found.count(k) - share * len(found)) < 4 * deviation + 1, k


def test_noise_that_is_not_held_is_fresh_at_each_step() -> None:
    torch.manual_seed(0)
    assert lengths(RepeatedNoise(2, 3, 1), 1000) == [1] * 999
    torch.manual_seed(0)
    expected = [tuple(torch.randn(2, 3).flatten().tolist()) for _ in range(20)]
    torch.manual_seed(0)
    assert drawn(RepeatedNoise(2, 3, 1), 20) == expected, "and takes from the random stream what a normal draw takes"


@pytest.mark.parametrize("longest", [1, 16])
def test_each_entry_is_standard_normal_and_independent_of_the_others(longest: int) -> None:
    torch.manual_seed(0)
    noise = RepeatedNoise(50, 4, longest)
    values = torch.tensor(list(dict.fromkeys(drawn(noise, 4000))))
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


@pytest.mark.parametrize("longest", [1, 4, 16])
@pytest.mark.parametrize("steps", [0, 1, 7, 50])
def test_restored_noise_continues(longest: int, steps: int) -> None:
    torch.manual_seed(0)
    original = RepeatedNoise(2, 3, longest)
    drawn(original, steps)
    file = io.BytesIO()
    torch.save((original.state_dict(), torch.get_rng_state()), file)
    expected = drawn(original, 50)
    file.seek(0)
    state, random = torch.load(file, weights_only=True)
    restored = RepeatedNoise(2, 3, longest)
    drawn(restored, 5)
    restored.load_state_dict(state)
    torch.set_rng_state(random)
    assert drawn(restored, 50) == expected

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from pipeline.seeding import derive_seed
from saltus import SaltusError


def test_equal_arguments_give_the_same_seed() -> None:
    assert derive_seed(3, "buffer", 7) == derive_seed(3, "buffer", 7)


def test_no_two_streams_share_a_seed() -> None:
    names = ("learner", "environment", "buffer", "evaluation", "play")
    keys = list(itertools.product(range(30), names, range(30)))
    assert len({derive_seed(*key) for key in keys}) == len(keys)


def test_seeds_are_valid_for_a_generator() -> None:
    seeds = [derive_seed(seed, "x", index) for seed in (0, 1, 2**40) for index in (0, 10**9)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    draws = [torch.Generator().manual_seed(seed).initial_seed() for seed in seeds]
    assert draws == seeds


def test_streams_of_neighbouring_seeds_are_uncorrelated() -> None:
    draws = torch.stack(
        [torch.rand(2000, generator=torch.Generator().manual_seed(derive_seed(seed, "x"))) for seed in range(20)]
    )
    assert torch.corrcoef(draws).fill_diagonal_(0).abs().max() < 5 / 2000**0.5


@pytest.mark.parametrize("seed", [-1, 1.0, None, "1", True])
def test_invalid_seed_is_refused(seed: Any) -> None:
    with pytest.raises(SaltusError, match=r"seed is .*; it must be a whole number, 0 or more"):
        derive_seed(seed, "x")

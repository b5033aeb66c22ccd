"""Sums in NumPy's order and NumPy's functions, which equal Gymnasium's bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from env_helpers import same_bits

from envs.tasks import numpy_math
from envs.tasks.rewards import ordered_sum, weighted_positions

DRAWS = 6
FUNCTIONS: dict[str, Callable[[np.ndarray], Any]] = {
    "sin": np.sin,
    "cos": np.cos,
    "norm": np.linalg.norm,
    "square": lambda row: np.array([value**2 for value in row]),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ordered_sum_equals_numpy(dtype: type):
    rng = np.random.default_rng(0)
    for length in range(1, 301):
        values = (rng.normal(size=(DRAWS, length)) * 10.0 ** rng.uniform(-4, 4, size=(DRAWS, length))).astype(dtype)
        theirs = np.array([np.sum(row) for row in values])
        assert same_bits(ordered_sum(torch.from_numpy(values)), theirs), length


def test_torch_sum_differs_on_these_draws():
    """Otherwise the test above would prove nothing."""
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(DRAWS, 300)))
    assert not torch.equal(ordered_sum(values), values.sum(-1))


def test_ordered_sum_keeps_leading_axes():
    values = torch.randn(2, 3, 37, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theirs = np.array([[np.sum(row) for row in block] for block in values.numpy()])
    assert same_bits(ordered_sum(values), theirs)


def test_ordered_sum_of_a_view_equals_its_copy():
    values = torch.randn(40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).T
    assert torch.equal(ordered_sum(values), ordered_sum(values.contiguous()))


@pytest.mark.parametrize("num_bodies", [1, 2, 5, 14, 40])
def test_weighted_positions_equal_einsum(num_bodies: int):
    """Gymnasium's `mass_center` is this einsum, divided by the total mass."""
    rng = np.random.default_rng(num_bodies)
    for _ in range(DRAWS):
        mass, xipos = rng.uniform(0, 9, num_bodies), rng.normal(size=(3, num_bodies, 3))
        theirs = np.stack([np.einsum("b,bj->j", mass, world) / mass.sum() for world in xipos])
        ours = weighted_positions(torch.from_numpy(mass), torch.from_numpy(xipos)) / float(mass.sum())
        assert same_bits(ours, theirs)


def vectors() -> np.ndarray:
    """Numbers of all sizes, as rows of one array's columns, which are not contiguous."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(20_000, 5)) * 10.0 ** rng.uniform(-4, 2, size=(20_000, 5)))[:, 1:4]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_equal_numpys_of_one_world(name: str):
    values = vectors()
    theirs = np.array([FUNCTIONS[name](row.copy()) for row in values])
    assert same_bits(getattr(numpy_math, name)(torch.from_numpy(values)), theirs)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_in_single_precision_are_torchs(name: str):
    values = torch.from_numpy(vectors()).float()
    torch.testing.assert_close(
        getattr(numpy_math, name)(values), getattr(numpy_math, name)(values.double()).float(), rtol=1e-6, atol=1e-7
    )

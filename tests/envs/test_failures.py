"""Worlds with finite values, in every shape and dtype that fields have; how a step ends in failed ones."""

import pytest
import torch

from envs.failures import finite_worlds, truncate_failed


@pytest.mark.parametrize("shape", [(), (1,), (400,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_marks_its_world(shape, dtype, wrong):
    values = torch.full((3, *shape), -torch.finfo(dtype).max, dtype=dtype)
    values.view(3, -1)[1, -1] = wrong
    assert finite_worlds(values).tolist() == [True, False, True]


def test_worlds_without_values_are_finite():
    assert finite_worlds(torch.zeros(2, 0)).tolist() == [True, True]


def test_failed_worlds_are_truncated_with_reward_0_and_an_unchanged_observation():
    """World 0 is broken, 1 has a bad successor, 2 a bad reward; 3 terminates and 4 is truncated without a failure."""
    broken = torch.tensor([True, False, False, False, False])
    before, after, reward = torch.zeros(5, 2), torch.ones(5, 2), torch.ones(5)
    after[1, 1], reward[2] = torch.inf, torch.nan
    terminated, truncated = torch.tensor([True] * 4 + [False]), torch.tensor([False] * 4 + [True])
    failed, successor, paid, *flags = truncate_failed(broken, before, after, reward, terminated, truncated)
    assert failed.tolist() == [True, True, True, False, False]
    assert successor.tolist() == [[0, 0]] * 3 + [[1, 1]] * 2
    assert paid.tolist() == [0, 0, 0, 1, 1]
    assert [flag.tolist() for flag in flags] == [[False] * 3 + [True, False], [True] * 3 + [False, True]]

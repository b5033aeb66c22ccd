"""Worlds with finite values, in every shape and dtype that fields have."""

import pytest
import torch

from envs.finite import finite_worlds


@pytest.mark.parametrize("shape", [(), (1,), (400,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_marks_its_world(shape, dtype, wrong):
    values = torch.full((3, *shape), -torch.finfo(dtype).max, dtype=dtype)
    values.view(3, -1)[1, -1] = wrong
    assert finite_worlds(values).tolist() == [True, False, True]


def test_worlds_without_values_are_finite():
    assert finite_worlds(torch.zeros(2, 0)).tolist() == [True, True]

"""The projection of a distribution onto the atoms of a categorical critic."""

from __future__ import annotations

import pytest
import torch

from pipeline import losses


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.0, [0, 0, 0, 1, 0]),
        (-2.0, [1, 0, 0, 0, 0]),
        (2.0, [0, 0, 0, 0, 1]),
        (0.25, [0, 0, 0.75, 0.25, 0]),
        (-1.5, [0.5, 0.5, 0, 0, 0]),
        (1.75, [0, 0, 0, 0.25, 0.75]),
        (7.0, [0, 0, 0, 0, 1]),
        (-1e9, [1, 0, 0, 0, 0]),
    ],
)
def test_projection_splits_a_value_between_the_nearest_atoms(value: float, expected: list[float]) -> None:
    atoms, probabilities, other = torch.linspace(-2, 2, 5), torch.tensor([[0, 0.6, 0, 0, 0.4]]), 0.5
    found = losses.project(torch.eye(5)[:1], torch.full((1, 5), value), atoms)
    torch.testing.assert_close(found, torch.tensor([expected]).float())
    found = losses.project(probabilities, torch.tensor([[9.0, value, 9.0, 9.0, other]]), atoms)
    torch.testing.assert_close(found, 0.6 * torch.tensor([expected]) + 0.4 * torch.tensor([[0, 0, 0.5, 0.5, 0]]))


@pytest.mark.parametrize("num_atoms", [2, 5, 101, 201])
def test_projection_preserves_total_probability_and_the_mean_within_the_range(num_atoms: int) -> None:
    torch.manual_seed(0)
    atoms = torch.linspace(-5, 5, num_atoms)
    probabilities = torch.randn(1000, num_atoms).softmax(-1)
    values = torch.rand(1000, num_atoms) * 10 - 5
    found = losses.project(probabilities, values, atoms)
    assert (found >= 0).all()
    assert (losses.project(probabilities, values * 10, atoms) >= 0).all(), "beyond the range"
    torch.testing.assert_close(found.sum(-1), torch.ones(1000))
    torch.testing.assert_close(found @ atoms, (probabilities * values).sum(-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.project(probabilities, values * 10, atoms).sum(-1), torch.ones(1000))
    torch.testing.assert_close(
        losses.project(probabilities, atoms.expand(1000, -1), atoms), probabilities, rtol=0, atol=1e-4
    )

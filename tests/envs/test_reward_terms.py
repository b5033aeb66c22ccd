"""The public terms of rewards, against independent formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
import pytest
import torch

from saltus import rewards
from saltus.errors import SaltusError

# Written from the definitions: the scale at which a function of one number has a value at 1, and the function.
SCALES: dict[str, Callable[[float], float]] = {
    "gaussian": lambda v: math.sqrt(-2 * math.log(v)),
    "hyperbolic": lambda v: math.acosh(1 / v),
    "long_tail": lambda v: math.sqrt(1 / v - 1),
    "reciprocal": lambda v: 1 / v - 1,
    "cosine": lambda v: math.acos(2 * v - 1) / math.pi,
    "linear": lambda v: 1 - v,
    "quadratic": lambda v: math.sqrt(1 - v),
    "tanh_squared": lambda v: math.atanh(math.sqrt(1 - v)),
}
FUNCTIONS: dict[str, Callable[[float], float]] = {
    "gaussian": lambda x: math.exp(-(x**2) / 2),
    "hyperbolic": lambda x: 2 / (math.exp(x) + math.exp(-x)),
    "long_tail": lambda x: 1 / (1 + x**2),
    "reciprocal": lambda x: 1 / (1 + abs(x)),
    "cosine": lambda x: math.cos(math.pi * x / 2) ** 2 if abs(x) < 1 else 0,
    "linear": lambda x: max(0, 1 - x),
    "quadratic": lambda x: max(0, 1 - x**2),
    "tanh_squared": lambda x: 1 / math.cosh(x) ** 2,
}
SIGMOIDS = list(FUNCTIONS)


@pytest.mark.parametrize("sigmoid", SIGMOIDS)
@pytest.mark.parametrize("value", [0.05, 0.1, 0.6])
def test_tolerance_is_the_published_function(sigmoid: str, value: float):
    low, high, margin = -0.5, 2.0, 1.5
    x = torch.linspace(-8, 8, 801, dtype=torch.float64)
    found = rewards.tolerance(x, (low, high), margin, sigmoid, value)
    for one, ours in zip(x.tolist(), found.tolist(), strict=True):
        distance = max(low - one, one - high, 0) / margin
        assert ours == pytest.approx(FUNCTIONS[sigmoid](distance * SCALES[sigmoid](value)), abs=1e-12)


@pytest.mark.parametrize("sigmoid", SIGMOIDS)
def test_tolerance_is_one_inside_the_value_at_the_margin_and_falls(sigmoid: str):
    def at(*x: float) -> torch.Tensor:
        return rewards.tolerance(torch.tensor(x, dtype=torch.float64), (1.0, 2.0), 0.5, sigmoid, 0.2)

    assert (at(1.0, 1.5, 2.0) == 1).all()
    torch.testing.assert_close(at(0.5, 2.5), torch.full((2,), 0.2, dtype=torch.float64))
    falling = at(*np.linspace(2, 9, 50))
    assert (falling.diff() <= 0).all()
    assert ((falling >= 0) & (falling <= 1)).all()
    torch.testing.assert_close(at(*np.linspace(1, -6, 50)), falling)


@pytest.mark.parametrize("sigmoid", ["cosine", "linear", "quadratic"])
def test_sigmoids_that_end_may_reach_zero_at_the_margin(sigmoid: str):
    found = rewards.tolerance(torch.tensor([0.5, 1.0, 1.5]), margin=1.0, sigmoid=sigmoid, value_at_margin=0.0)
    assert 0 < float(found[0]) < 1
    assert found[1:].abs().max() < 1e-6


def test_tolerance_without_margin_is_an_interval_and_keeps_shape_and_dtype():
    x = torch.tensor([[-1.0, 0.0], [3.0, math.inf]], dtype=torch.float32)
    found = rewards.tolerance(x, (0.0, math.inf))
    assert found.dtype == torch.float32
    assert found.tolist() == [[0, 1], [1, 1]]
    far = rewards.tolerance(x, (0.0, math.inf), margin=1.0)
    assert torch.isfinite(far).all()
    assert far[1].tolist() == [1, 1]


def test_upright_is_the_cosine_of_the_tilt():
    rng = np.random.default_rng(0)
    quaternions = rng.normal(size=(50, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    matrices, axes = np.zeros((50, 9)), np.zeros((50, 3))
    for quaternion, matrix, axis in zip(quaternions, matrices, axes, strict=True):
        mujoco.mju_quat2Mat(matrix, quaternion)
        mujoco.mju_rotVecQuat(axis, np.array([0.0, 0.0, 1.0]), quaternion)
    for orientation in (quaternions, matrices):
        np.testing.assert_allclose(rewards.upright(torch.as_tensor(orientation)), axes[:, 2], atol=1e-12)


def test_joint_pos_limits_are_the_sum_of_what_exceeds_them():
    limits = torch.tensor([[-1.0, 1.0], [0.0, 4.0]], dtype=torch.float64)
    qpos = torch.tensor([[0.0, 2.0], [1.5, 4.0], [-1.25, -1.0], [1.0, 4.5]], dtype=torch.float64)
    assert rewards.joint_pos_limits(qpos, limits).tolist() == [0, 0.5, 1.25, 0.5]
    assert rewards.joint_pos_limits(qpos, torch.zeros_like(limits)).tolist() == [0, 0, 0, 0], "no joint has limits"
    soft = [
        max(-0.5 - first, 0) + max(first - 0.5, 0) + max(1 - second, 0) + max(second - 3, 0)
        for first, second in qpos.tolist()
    ]
    assert rewards.joint_pos_limits(qpos, limits, soft_limit=0.5).tolist() == pytest.approx(soft)


def test_control_cost_is_the_sum_of_squares():
    assert rewards.control_cost(torch.tensor([[1.0, -2.0], [0.0, 3.0]])).tolist() == [5, 9]


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda x: rewards.tolerance(x, (1, 0)), ["bounds", "(1, 0)", "lower one first"]),
        (lambda x: rewards.tolerance(x, margin=-1), ["margin", "-1"]),
        (lambda x: rewards.tolerance(x, margin=1, sigmoid="cubic"), ["'cubic'", "gaussian", "quadratic"]),
        (lambda x: rewards.tolerance(x, margin=1, value_at_margin=0), ["value_at_margin", "above 0 and below 1"]),
        (
            lambda x: rewards.tolerance(x, margin=1, sigmoid="linear", value_at_margin=1),
            ["value_at_margin", "0 or more and below 1"],
        ),
        (rewards.upright, ["last axis of 3", "quaternions, 4"]),
    ],
)
def test_impossible_arguments_are_refused(call: Callable[[Any], Any], parts: list[str]):
    with pytest.raises(SaltusError) as caught:
        call(torch.zeros(2, 3))
    assert not [part for part in parts if part not in str(caught.value)], caught.value

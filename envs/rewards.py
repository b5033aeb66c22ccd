"""Terms that rewards share, for `Task.reward` and `Task.terminated`: ``saltus.rewards``.

All take and return batched tensors and never synchronise with the GPU. The names are dm_control's, Isaac Lab's and
Gymnasium's.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from saltus.errors import SaltusError

_POSITIVE_AT_MARGIN = ("gaussian", "hyperbolic", "long_tail", "reciprocal", "tanh_squared")


def _within_one(distance: Tensor, value: Tensor) -> Tensor:
    """`value` where `distance` is below 1, else 0."""
    return torch.where(distance < 1, value, 0.0)


# Functions of the distance and of the value at the distance 1.
_SIGMOIDS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "gaussian": lambda x, v: (x.square() * math.log(v)).exp(),
    "hyperbolic": lambda x, v: 1 / (x * math.acosh(1 / v)).cosh(),
    "long_tail": lambda x, v: 1 / (x.square() * (1 / v - 1) + 1),
    "reciprocal": lambda x, v: 1 / (x * (1 / v - 1) + 1),
    "cosine": lambda x, v: _within_one(x * math.acos(2 * v - 1) / math.pi, (1 + (x * math.acos(2 * v - 1)).cos()) / 2),
    "linear": lambda x, v: _within_one(x * (1 - v), 1 - x * (1 - v)),
    "quadratic": lambda x, v: _within_one(x * math.sqrt(1 - v), 1 - x.square() * (1 - v)),
    "tanh_squared": lambda x, v: 1 - (x * math.atanh(math.sqrt(1 - v))).tanh().square(),
}


def tolerance(
    x: Tensor,
    bounds: tuple[float, float] = (0.0, 0.0),
    margin: float = 0.0,
    sigmoid: str = "gaussian",
    value_at_margin: float = 0.1,
) -> Tensor:
    """1 where `x` lies within bounds, and less outside of them, down to 0.

    Source: dm_control's ``rewards.tolerance`` (Tassa et al. 2018, DeepMind Control Suite, section "Reward").

    Args:
        x: a tensor of any shape.
        bounds: lowest and highest value of full reward; may be infinite.
        margin: distance from the bounds at which the result is `value_at_margin`; 0: the result is 0 outside.
        sigmoid: how it falls: gaussian, hyperbolic, long_tail, reciprocal or tanh_squared, which stay positive; cosine,
            linear or quadratic, which reach 0.
        value_at_margin: above 0 and below 1; of the sigmoids that reach 0 also 0.

    Returns:
        Values in [0, 1] in the shape and dtype of `x`.

    Raises:
        SaltusError: bounds in the wrong order, a negative margin, an unknown sigmoid or an impossible value.
    """
    low, high = bounds
    if not low <= high:
        raise SaltusError(f"the bounds of tolerance are {bounds}; expected the lower one first")
    if not margin >= 0:
        raise SaltusError(f"the margin of tolerance is {margin}; expected a distance, 0 or more")
    if sigmoid not in _SIGMOIDS:
        raise SaltusError(f"the sigmoid of tolerance is {sigmoid!r}; expected one of {', '.join(_SIGMOIDS)}")
    if not (0 < value_at_margin < 1 or (value_at_margin == 0 and sigmoid not in _POSITIVE_AT_MARGIN)):
        least = "above 0" if sigmoid in _POSITIVE_AT_MARGIN else "0 or more"
        raise SaltusError(f"value_at_margin of tolerance is {value_at_margin}; expected {least} and below 1")
    inside = (low <= x) & (x <= high)
    if margin == 0:
        return inside.to(x)
    distance = torch.where(x < low, low - x, x - high) / margin
    return torch.where(inside, 1.0, _SIGMOIDS[sigmoid](distance, value_at_margin))


def upright(orientation: Tensor) -> Tensor:
    """Cosine of the angle between an object's z axis and the world's: 1 upright, 0 lying, -1 upside down.

    Args:
        orientation: unit quaternions (..., 4), such as ``state.qpos[:, 3:7]`` of a free joint, or rotation matrices
            (..., 9), such as ``state.body("torso").xmat``.

    Returns:
        (...).

    Raises:
        SaltusError: a last axis of another size.
    """
    size = orientation.shape[-1]
    if size == 9:
        return orientation[..., 8]
    if size == 4:
        return 1 - 2 * orientation[..., 1:3].square().sum(dim=-1)
    raise SaltusError(f"upright got a last axis of {size}; expected quaternions, 4, or rotation matrices, 9")


def joint_pos_limits(qpos: Tensor, limits: Tensor, soft_limit: float = 1.0) -> Tensor:
    """Sum of the distances by which joints exceed their limits.

    Source: Isaac Lab's ``joint_pos_limits``.

    Args:
        qpos: positions of hinges and slides, (..., n).
        limits: lower and upper limits, (n, 2), in the dtype and on the device of `qpos`, such as those of
            ``model.jnt_range`` that a task converts in `bind`. A joint whose limits are equal has none.
        soft_limit: share of each range, about its middle, that is free of cost.

    Returns:
        (...), in radians or metres; 0 within the limits.
    """
    middle, half = limits.mean(dim=-1), soft_limit * (limits[..., 1] - limits[..., 0]) / 2
    excess = ((qpos - middle).abs() - half).clamp(min=0)
    return torch.where(half > 0, excess, 0.0).sum(dim=-1)


def control_cost(action: Tensor) -> Tensor:
    """Sum of an action's squares, (..., n) -> (...), as in Gymnasium's ``reward_ctrl``, without its weight."""
    return action.square().sum(dim=-1)

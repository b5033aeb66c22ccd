"""The target entropy of a configuration, and which ones a policy can have."""

from __future__ import annotations

import math

from pipeline.config import Config
from saltus.errors import SaltusError


def continuous_target(config: Config, action_dim: int) -> float:
    """The target entropy of a policy over [-1, 1]^action_dim.

    Raises:
        SaltusError: it is not below that of the uniform distribution, which is largest.
    """
    largest = action_dim * math.log(2)
    return _resolve(
        config,
        -config.target_entropy_scale * action_dim,
        (-math.inf, largest),
        f"the entropy of a policy with {action_dim} actions in [-1, 1] is below {largest:.3g}, that of uniform ones: "
        "leave --target-entropy at auto, which is minus their number",
    )


def discrete_target(config: Config, largest: float) -> float:
    """The target entropy of a discrete policy.

    Args:
        config: the run's configuration.
        largest: the logarithm of the number of joint actions.

    Raises:
        SaltusError: it is not between 0 (one action) and `largest` (all alike).
    """
    return _resolve(
        config,
        config.target_entropy_scale * largest,
        (0.0, largest),
        f"the entropy of --policy {config.policy} lies between 0 and {largest:.3g}, the logarithm of the number of "
        "joint actions: give --target-entropy-scale 0.3, a fraction of the largest entropy",
    )


def _resolve(config: Config, automatic: float, limits: tuple[float, float], reason: str) -> float:
    if config.target_entropy == "auto":
        target, given = automatic, f"scale is {config.target_entropy_scale:g}"
    else:
        target, given = config.target_entropy, f"is {config.target_entropy:g}"
    if config.learns_temperature and not limits[0] < target < limits[1]:
        raise SaltusError(f"the target entropy {given}, and {reason}")
    return target

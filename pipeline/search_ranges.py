"""Search ranges of `saltus tune`, for the options of each preset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline import presets


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, both included.

    Attributes:
        low, high: the bounds, both whole if the option takes whole numbers.
        log: values are drawn uniformly in their logarithm.
    """

    low: float
    high: float
    log: bool = False

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}{' (log scale)' if self.log else ''}"


@dataclass(frozen=True)
class Choices:
    """Some values, without an order."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return ", ".join(" ".join(map(str, one)) if isinstance(one, tuple) else str(one) for one in self.values)


Range = Interval | Choices

# Options of which a factor matters, not a difference.
LOG_SCALE = frozenset({"actor_lr", "critic_lr", "alpha_lr", "alpha_init", "tau", "dropout", "utd_ratio", "value_range"})

_LEARNING_RATE = Interval(1e-4, 3e-3, log=True)
_COMMON: dict[str, Range] = {
    "actor_lr": _LEARNING_RATE,
    "critic_lr": _LEARNING_RATE,
    "alpha_init": Interval(1e-3, 1.0, log=True),
    "target_entropy_scale": Interval(0.25, 1.0),
    "gamma": Choices((0.97, 0.98, 0.99, 0.995)),
    "n_step": Choices((1, 3, 5)),
}
_DECAY: dict[str, Range] = {"lr_final_fraction": Choices((0.1, 0.5, 1.0))}
_TARGETS: dict[str, Range] = {"tau": Interval(1e-3, 5e-2, log=True)}
_ONE_UPDATE: dict[str, Range] = {"utd_ratio": Choices((1.0, 2.0, 4.0))}
_MANY_UPDATES: dict[str, Range] = {"utd_ratio": Choices((5.0, 10.0, 20.0))}
_FLASHSAC: dict[str, Range] = {**_COMMON, **_TARGETS, "noise_repeat": Choices((1, 4, 16))}
_RANGES: dict[str, dict[str, Range]] = {
    "fast": {
        **_COMMON,
        **_DECAY,
        "gamma": Choices(("auto", 0.97, 0.98, 0.995)),
        "utd_ratio": Choices((1 / 32, 1 / 16, 1 / 8)),
    },
    "sac": {**_COMMON, **_TARGETS, **_ONE_UPDATE},
    # Without a learned temperature, alpha_init is the reward scale of the paper.
    "sac-v1": {**_COMMON, **_TARGETS, **_ONE_UPDATE},
    # The target is a share of the largest entropy.
    "sac-discrete": {**_COMMON, **_TARGETS, **_ONE_UPDATE, "target_entropy_scale": Interval(0.1, 0.9)},
    "redq": {**_COMMON, **_TARGETS, **_MANY_UPDATES},
    "droq": {**_COMMON, **_TARGETS, **_MANY_UPDATES, "dropout": Interval(1e-3, 0.1, log=True)},
    "crossq": {**_COMMON, **_ONE_UPDATE},
    "xqc": {**_COMMON, **_TARGETS, **_DECAY, **_ONE_UPDATE},
    "flashsac": {**_FLASHSAC, **_ONE_UPDATE},
    "flashsac-parallel": {**_FLASHSAC, "utd_ratio": Choices((1 / 1024, 2 / 1024, 4 / 1024))},
}


def search_ranges(preset: str) -> dict[str, Range]:
    """The ranges of a preset, by the names of its settings.

    Settings that have no effect in the preset are left out. The preset's own values lie within the ranges.
    """
    unused = presets.preset(preset, task="").unused_settings()
    return {name: values for name, values in _RANGES[preset].items() if name not in unused}

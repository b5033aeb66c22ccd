"""Named recipes: settings that belong together, each with its source."""

from __future__ import annotations

from typing import Any

from pipeline.config import Config

DEFAULT = "crossq"

_SETTINGS: dict[str, dict[str, Any]] = {
    # Batch-normalised critics without target networks, thin enough for a CPU. Bhatt et al. 2024, "CrossQ", with
    # 256 instead of 2048 wide critics, batch norm instead of batch renorm, and a linearly falling learning rate.
    "crossq": {},
    # The reference: Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications", as the usual
    # implementations have it: one update an env step, constant learning rate 3e-4, two critics with targets.
    "sac": {
        "algorithm": "sac",
        "num_envs": 1,
        "utd_ratio": 1.0,
        "policy_delay": 1,
        "actor_lr": 3e-4,
        "critic_lr": 3e-4,
        "alpha_lr": 3e-4,
        "lr_final": 1.0,
        "adam_beta1": 0.9,
    },
}


def names() -> list[str]:
    """The presets there are."""
    return sorted(_SETTINGS)


def preset(name: str, task: str, **overrides: Any) -> Config:
    """The configuration of a preset for a task, with fields overridden.

    Raises:
        ValueError: no such preset, or what `Config` refuses.
    """
    if name not in _SETTINGS:
        raise ValueError(f"there is no preset {name!r}; there are {', '.join(names())}")
    return Config(task, **{**_SETTINGS[name], **overrides})

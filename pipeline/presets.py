"""Presets: named recipes, each with its source."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from pipeline.config import Config
from pipeline.config_checks import refuse_unused
from saltus.errors import SaltusError, did_you_mean

DEFAULT = "fast"

_ONE_WORLD: dict[str, Any] = {
    "matmul_dtype": "float32",
    "num_envs": 1,
    "total_env_steps": 1_000_000,
    "utd_ratio": 1.0,
    "buffer_size": 1_000_000,
    "n_step": 1,
    "gamma": 0.99,
    "noise_repeat": 1,
    "eval_policy_averaging": 0.0,
    "log_every": 1_000,
    "eval_every": 10_000,
    "checkpoint_every": 25_000,
}
_MSE: dict[str, Any] = {**_ONE_WORLD, "critic_loss": "mse", "reward_scaling": "none", "alpha_init": 1.0}
_SAC: dict[str, Any] = {
    **_MSE,
    "target_network": True,
    "critic_norm": "none",
    "policy_delay": 1,
    "actor_lr": 3e-4,
    "critic_lr": 3e-4,
    "alpha_lr": 3e-4,
    "lr_final_fraction": 1.0,
    "adam_beta1": 0.9,
}
_CATEGORICAL: dict[str, Any] = {
    **_ONE_WORLD,
    "target_network": True,
    "actor_norm": "batch",
    "critic_norm": "batch",
    "norm_order": "before",
    "adam_beta1": 0.9,
    "alpha_init": 0.01,
    "alpha_loss": "exp",
}
_FLASHSAC: dict[str, Any] = {
    **_CATEGORICAL,
    "network": "residual",
    "actor_hidden": (128, 128),
    "critic_hidden": (256, 256),
    "weight_normalization": "all",
    "tau": 0.01,
    "policy_delay": 2,
    "actor_lr": 3e-4,
    "critic_lr": 3e-4,
    "alpha_lr": 3e-4,
    "lr_schedule": "cosine",
    "lr_final_fraction": 0.5,
    "target_entropy_scale": 0.478,
    "noise_repeat": 16,
}
_SETTINGS: dict[str, dict[str, Any]] = {
    # Config's defaults, chosen for wall-clock time on two CPU cores: CrossQ's joint pass and low beta1 with narrow
    # categorical critics, bounded rewards and repeated noise (FlashSAC), 128 worlds, a small replay buffer, 3-step
    # returns, a growing horizon, decaying learning rates, and an averaged policy for evaluation.
    "fast": {},
    # Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications", as usually implemented.
    "sac": _SAC,
    # Haarnoja et al. 2018, "Soft Actor-Critic: Off-Policy Maximum Entropy Deep Reinforcement Learning with a Stochastic
    # Actor" (arXiv 1801.01290). Its reward scale of 5 is a temperature of 1/5.
    "sac-v1": {**_SAC, "target_network": False, "value_network": True, "alpha_init": 0.2, "alpha_lr": 0.0},
    # Christodoulou 2019, "Soft Actor-Critic for Discrete Action Settings", with five levels for a continuous actuator.
    "sac-discrete": {**_SAC, "policy": "joint", "action_levels": "auto", "target_entropy_scale": 0.3},
    # Chen et al. 2021, "Randomized Ensembled Double Q-Learning".
    "redq": {
        **_SAC,
        "utd_ratio": 20.0,
        "num_critics": 10,
        "target_subset": 2,
        "actor_value": "mean",
        "policy_delay": 20,
    },
    # Hiraoka et al. 2022, "Dropout Q-Functions for Doubly Efficient Reinforcement Learning".
    "droq": {
        **_SAC,
        "utd_ratio": 20.0,
        "critic_norm": "layer",
        "dropout": 0.01,
        "actor_value": "mean",
        "policy_delay": 20,
    },
    # Bhatt et al. 2024, "CrossQ", with critics of width 256 instead of 2048, and batch norm instead of batch renorm.
    "crossq": {**_MSE, "alpha_loss": "exp", "lr_final_fraction": 1.0},
    # Palenicek et al. 2025, "XQC": batch norm, weight normalisation and cross-entropy, for a well-conditioned loss.
    "xqc": {
        **_CATEGORICAL,
        "utd_ratio": 2.0,
        "actor_hidden": (256,) * 4,
        "critic_hidden": (512,) * 4,
        "weight_normalization": "linear",
        "reward_scaling": "std",
        "gamma": 0.995,
        "actor_lr": 3e-4,
        "critic_lr": 3e-4,
        "alpha_lr": 3e-4,
        "lr_final_fraction": 0.1,
        "target_entropy_scale": 0.5,
    },
    # "FlashSAC" (2026, arXiv 2604.04539): one world, and 1024.
    "flashsac": {**_FLASHSAC, "batch_size": 512, "learning_starts": 10_000},
    "flashsac-parallel": {
        **_FLASHSAC,
        "num_envs": 1024,
        "n_step": 3,
        "total_env_steps": 50_000_000,
        "utd_ratio": 2 / 1024,
        "batch_size": 2048,
        "buffer_size": 10_000_000,
        "learning_starts": 100_000,
        "log_every": 100_000,
        "eval_every": 500_000,
        "checkpoint_every": 5_000_000,
    },
}


def names() -> list[str]:
    """Names of all presets."""
    return sorted(_SETTINGS)


def preset(name: str, task: str, **overrides: Any) -> Config:
    """The configuration of a preset for a task.

    Args:
        name: one of `names()`.
        task: as in `Config`.
        **overrides: further fields of `Config`.

    Raises:
        SaltusError: an unknown preset or setting, or settings that are invalid or have no effect.
    """
    if name not in names():
        raise SaltusError(f"there is no preset {name!r}; there are {', '.join(names())}")
    fields = [item.name for item in dataclasses.fields(Config)]
    for key in overrides:
        if key not in fields:
            raise unknown_setting(key, fields)
    default = Config(task, **_SETTINGS[name])
    config = dataclasses.replace(default, **overrides)
    refuse_unused(config, default)
    return config


def unknown_setting(name: str, known: Collection[str]) -> SaltusError:
    """The error for a name that is none of the `known` settings: it names those near it, or all."""
    return SaltusError(f"there is no setting {name!r}{did_you_mean(name, known) or ': ' + ', '.join(known)}")

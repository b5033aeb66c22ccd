"""Presets: the settings that they accept, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from pipeline_helpers import POSITIVE

from pipeline import presets
from pipeline.config import Config
from saltus import SaltusError


@pytest.mark.parametrize("name", presets.names())
def test_preset_accepts_overrides(name: str) -> None:
    config = presets.preset(name, "Hopper-v5")
    assert config.task == "Hopper-v5"
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert presets.preset(name, "Hopper-v5", gamma=0.5, seed=3) == dataclasses.replace(config, gamma=0.5, seed=3)


@pytest.mark.parametrize(
    ("name", "settings", "unused"),
    [
        ("sac", {"num_atoms": 11}, "--num-atoms has no effect here: it needs --critic-loss categorical"),
        ("sac", {"target_subset": 2}, "--target-subset has no effect here: it needs --num-critics above it"),
        (
            "sac",
            {"minutes": 1.0, "total_env_steps": 10_000},
            "--total-env-steps has no effect here: it needs a run without",
        ),
        ("redq", {"num_critics": 1, "target_subset": 1}, "--target-subset has no effect here"),
        ("sac", {"num_critics": 1, "actor_value": "mean"}, "--actor-value has no effect here: it needs --num-critics"),
        (
            "sac-discrete",
            {"discrete_update": "soft-q", "alpha_lr": 0.0, "policy_delay": 7},
            "--policy-delay has no effect here: it needs --discrete-update other than soft-q, or --alpha-lr above 0",
        ),
    ],
)
def test_settings_of_a_preset_without_effect_are_refused(name: str, settings: dict[str, Any], unused: str) -> None:
    with pytest.raises(SaltusError, match=unused):
        presets.preset(name, "Hopper-v5", **settings)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("redq", {"num_critics": 1, "target_subset": 0}),
        ("redq", {"num_critics": 2}),
        ("redq", {"critic_loss": "categorical", "critic_norm": "batch", "target_subset": 0, "actor_value": "min",
                  "reward_scaling": "bounded"}),
        ("sac-discrete", {"discrete_update": "soft-q", "policy_delay": 7}),
    ],
)  # fmt: skip
def test_settings_of_a_preset_that_others_need_are_accepted(name: str, settings: dict[str, Any]) -> None:
    config = presets.preset(name, "Hopper-v5", **settings)
    assert {setting: getattr(config, setting) for setting in settings} == settings


def test_presets_differ() -> None:
    configs = [presets.preset(name, "Hopper-v5").to_dict() for name in presets.names()]
    assert all(configs.count(config) == 1 for config in configs)


@pytest.mark.parametrize("name", ["sca", "", "SAC"])
def test_unknown_preset_is_refused_with_a_list(name: str) -> None:
    with pytest.raises(SaltusError, match=f"there is no preset '{name}'") as refusal:
        presets.preset(name, "Hopper-v5")
    assert all(known in str(refusal.value) for known in presets.names())


def test_default_preset_is_config_itself() -> None:
    assert presets.preset(presets.DEFAULT, "Hopper-v5") == Config("Hopper-v5")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"lr": 3}, "no setting 'lr'; did you mean actor_lr or critic_lr or alpha_lr"),
        ({"batchsize": 3}, r"no setting 'batchsize'; did you mean batch_size\?"),
        ({"gama": 0.9, "zzz": 1}, r"no setting 'gama'; did you mean gamma\?"),
        ({"num_envs": "8"}, "num_envs is '8'; it must be a whole number"),
        ({"buffer_size": None}, "buffer_size is None; it must be a whole number"),
        ({"minutes": "5"}, "minutes is '5'; it must be a finite number above 0, or None"),
        ({"target_entropy": None}, "target_entropy is None; it must be a finite number, or auto"),
        ({"actor_hidden": ("a",)}, r"actor_hidden is \('a',\); it must be widths"),
        *(({name: "a"}, f"{name} is 'a'; it must be") for name in ("tau", "dropout", *POSITIVE)),
        *(({name: 10**400}, f"{name} is 10+; it must be") for name in POSITIVE),
    ],
)
def test_presets_refuse_unknown_settings_and_other_types(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(SaltusError, match=message):
        presets.preset("fast", "Hopper-v5", **overrides)

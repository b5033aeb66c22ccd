"""Settings of a configuration that combine, and those that do not."""

from __future__ import annotations

import re
import warnings

import pytest
from pipeline_helpers import DIMENSIONS, filled_buffer, small_config

from pipeline import presets
from pipeline.agent import Agent
from pipeline.learner import Learner
from saltus import SaltusError

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
CATEGORICAL = {"critic_loss": "categorical", "target_network": True, "value_range": 20.0}
RESIDUAL = {**CATEGORICAL, "network": "residual", "actor_norm": "batch"}
RECIPES = [
    (
        "redq",
        {"num_critics": 2, "target_subset": 3},
        "target_subset is 3 and num_critics is only 2: raise num_critics or lower target_subset",
    ),
    *[
        (
            "sac",
            {"target_network": False, "critic_norm": norm},
            "without target networks critics are stable only with batch norm: set --target-network or "
            "--critic-norm batch",
        )
        for norm in ("none", "layer")
    ],
    *[
        (
            preset,
            overrides,
            "batch-normalised critics with target networks need --critic-loss categorical (as in XQC); with "
            "--critic-loss mse, drop --target-network (CrossQ) or choose another --critic-norm",
        )
        for preset, overrides in (("crossq", {"target_network": True}), ("sac", {"critic_norm": "batch"}))
    ],
    *[
        (
            preset,
            overrides,
            "--target-subset and --actor-value mean need --critic-loss mse and --target-network",
        )
        for preset in ("crossq", "xqc", "flashsac")
        for overrides in ({"actor_value": "mean"}, {"num_critics": 3, "target_subset": 2})
    ],
    *[
        (preset, {"dropout": 0.1}, "--dropout needs --critic-loss mse and --critic-norm layer or none")
        for preset in ("crossq", "xqc", "flashsac")
    ],
    *[
        (preset, {"actor_norm": "batch"}, "--actor-norm batch needs --critic-loss categorical (as in XQC and FlashSAC)")
        for preset in ("sac", "redq", "droq", "crossq")
    ],
    *[
        (preset, overrides, "--network residual needs --actor-norm batch and --critic-norm batch")
        for preset, overrides in (
            ("flashsac", {"actor_norm": "none"}),
            ("flashsac", {"critic_norm": "layer"}),
            ("sac", {"network": "residual"}),
        )
    ],
    *[
        (
            "flashsac",
            {name: (8, 16)},
            "--network residual needs blocks of equal width: give --actor-hidden and --critic-hidden equal numbers",
        )
        for name in ("actor_hidden", "critic_hidden")
    ],
    ("xqc", {"num_atoms": 1}, "a categorical critic needs num_atoms of at least 2, not 1"),
    (
        "sac-v1",
        {"target_network": True},
        "--value-network makes the critics' targets, from a copy of its own: set --no-target-network",
    ),
    (
        "sac-v1",
        {"critic_loss": "categorical", "reward_scaling": "bounded"},
        "--value-network learns the mean of returns, and categorical critics their distribution: set --critic-loss mse",
    ),
    (
        "sac-v1",
        {"critic_norm": "batch"},
        "--critic-norm batch normalises (s, a) and (s', a') jointly (as in CrossQ), and critics with --value-network "
        "see no (s', a'): set --critic-norm none or layer",
    ),
    (
        "sac-v1",
        {"num_critics": 3, "target_subset": 2},
        "--target-subset 2 draws critics for a target (as in REDQ), and --value-network makes the target: set "
        "--target-subset 0",
    ),
    (
        "sac-v1",
        {"actor_value": "mean"},
        "--value-network learns the minimum over the critics, which the actor then maximises too: set "
        "--actor-value min",
    ),
    (
        "sac-v1",
        {"alpha_lr": 3e-4},
        "--alpha-lr is 0.0003, and --value-network keeps the temperature fixed (Haarnoja et al. 2018a): set "
        "--alpha-lr 0; --preset sac learns the temperature",
    ),
    (
        "sac",
        {"value_network": True},
        "--value-network makes the critics' targets, from a copy of its own: set --no-target-network",
    ),
]


@pytest.mark.parametrize(("preset", "overrides", "message"), RECIPES)
def test_settings_that_do_not_combine_are_refused_with_those_that_do(
    preset: str, overrides: dict[str, object], message: str
) -> None:
    small_config(preset=preset)
    with pytest.raises(SaltusError, match=re.escape(message)) as refusal:
        small_config(preset=preset, **overrides)
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("redq", {"target_subset": 10}),
        ("sac", {"critic_norm": "layer"}),
        ("sac", {"dropout": 0.1}),
        ("sac", {"num_critics": 3, "target_subset": 3}),
        ("crossq", {"critic_loss": "categorical", "reward_scaling": "std"}),
        ("crossq", {"critic_loss": "categorical", "reward_scaling": "bounded", "value_range": 2.0}),
        ("sac", CATEGORICAL),
        ("crossq", RESIDUAL),
        ("crossq", {**RESIDUAL, "target_network": False}),
        ("sac", {"num_atoms": 1}),
        ("sac", {"n_step": 3, "normalize_observations": True, "reward_scaling": "bounded", "noise_repeat": 16}),
        ("crossq", {"weight_normalization": "linear", "norm_order": "before", "eval_policy_averaging": 0.1}),
        ("fast", {"weight_normalization": "all", "n_step": 1}),
        ("sac-v1", {"critic_norm": "layer", "dropout": 0.1, "n_step": 3, "matmul_dtype": "bfloat16"}),
        ("sac-v1", {"num_critics": 1, "normalize_observations": True, "reward_scaling": "std", "alpha_init": "auto"}),
        *((name, {"alpha_lr": 0.0}) for name in presets.names()),
    ],
)
def test_settings_that_combine_are_accepted_and_learn(preset: str, overrides: dict[str, object]) -> None:
    agent = Agent(small_config(preset=preset, policy_delay=1, **overrides), DIMENSIONS)
    metrics = Learner(agent).round(filled_buffer(n_step=agent.config.rewards_per_target(DIMENSIONS.action_dim)), 2)
    agent.check_finite(metrics)


@pytest.mark.parametrize(
    ("preset", "parts", "message"),
    [
        ("xqc", {"critic_norm": "layer", "dropout": 0.1}, "--dropout needs --critic-loss mse"),
        ("droq", {"weight_normalization": "linear"}, "--weight-normalization needs --critic-norm batch"),
        ("crossq", {"weight_normalization": "all"}, "it needs --critic-loss categorical"),
        ("crossq", {"batch_size": 1}, "batch norm needs a batch_size of at least 2"),
    ],
)
def test_settings_that_would_silently_do_less_are_refused(preset: str, parts: dict, message: str) -> None:
    with pytest.raises(SaltusError, match=message):
        small_config(preset=preset, **parts)


@pytest.mark.parametrize(("value_range", "warned"), [(1.0, True), (5.0, True), (20.0, False)])
def test_narrow_values_of_unscaled_returns_are_accepted_with_a_warning(value_range: float, warned: bool) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        small_config(preset="fast", reward_scaling="none", value_range=value_range)
    text = f"a categorical critic's values lie in [-{value_range:g}, {value_range:g}], and returns are usually larger: "
    advice = "set --reward-scaling bounded, or set --value-range to the largest return"
    assert [str(one.message) for one in found] == [text + advice] * warned

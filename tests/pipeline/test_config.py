from __future__ import annotations

import dataclasses
import json
import math
import re
import typing

import pytest
from pipeline_helpers import ACTION_DIM, HUMANOID, OBSERVATION_DIM, filled_buffer, small_config

from pipeline import presets
from pipeline.config import Config
from pipeline.learner import Learner

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
HINTS = typing.get_type_hints(Config)
INTEGERS = [name for name, kind in HINTS.items() if kind is int]
FLOATS = [name for name, kind in HINTS.items() if kind is float]
POSITIVE = ["utd_ratio", "actor_lr", "critic_lr", "alpha_lr", "alpha_init", "value_range"]
AT_LEAST_ZERO = ["seed", "num_threads", "max_contacts", "max_constraints", "target_subset"]
AT_LEAST_ONE = [name for name in INTEGERS if name not in AT_LEAST_ZERO]

REFUSED = [
    *[(name, value, "at least 1") for name in AT_LEAST_ONE for value in (0, -1)],
    *[(name, -1, "0 or more") for name in AT_LEAST_ZERO],
    *[(name, value, "above 0") for name in POSITIVE for value in (0.0, -1e-9, math.inf, math.nan)],
    *[("gamma", value, "[0, 1)") for value in (-0.01, 1.0, 1.5, math.nan)],
    *[(name, value, "(0, 1]") for name in ("tau", "lr_final_fraction") for value in (0.0, -0.5, 1.01, math.nan)],
    *[("eval_policy_averaging", value, "[0, 1]") for value in (-0.01, 1.01, math.nan)],
    *[(name, value, "[0, 1)") for name in ("adam_beta1", "dropout") for value in (-0.01, 1.0, math.nan)],
    *[(name, value, "at least 1") for name in ("actor_hidden", "critic_hidden") for value in ((), (0,), (16, -1))],
    *[
        (name, value, "finite")
        for name in ("target_entropy", "target_entropy_scale")
        for value in (math.inf, -math.inf, math.nan)
    ],
]


@pytest.mark.parametrize(("name", "value", "accepted"), REFUSED)
def test_an_impossible_number_is_refused_with_field_value_and_what_is_accepted(
    name: str, value: object, accepted: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{name} is {value}")) as refusal:
        small_config(**{name: value})
    assert accepted in str(refusal.value)


@pytest.mark.parametrize("name", [*INTEGERS, *FLOATS])
def test_no_number_may_be_below_zero_or_no_number_at_all(name: str) -> None:
    """But for the scale of an entropy, which is below 0 for a policy that is to be nearly deterministic."""
    for value in (-1, math.nan) if name != "target_entropy_scale" else (math.nan,):
        with pytest.raises(ValueError, match=name):
            small_config(**{name: value})


@pytest.mark.parametrize("name", INTEGERS)
def test_a_count_is_a_whole_number(name: str) -> None:
    value = getattr(small_config(), name) + 0.5
    with pytest.raises(ValueError, match=re.escape(f"{name} is {value}")):
        small_config(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gamma", 0.0), ("tau", 1.0), ("eval_policy_averaging", 0.0), ("eval_policy_averaging", 1.0),
        ("lr_final_fraction", 1.0),
        ("dropout", 0.0), ("target_subset", 0), ("adam_beta1", 0.0), ("target_entropy", -3.5),
        ("target_entropy", 1), ("seed", 2**40), ("num_threads", 0), ("num_critics", 1), ("policy_delay", 1),
        ("actor_hidden", (1,)), ("learning_starts", 395),
    ],
)  # fmt: skip
def test_the_limits_themselves_are_accepted(name: str, value: object) -> None:
    assert getattr(small_config(**{name: value}), name) == value


def suggested_ratios(num_envs: int, steps_per_round: int, utd_ratio: float) -> list[float]:
    with pytest.raises(ValueError, match=f"utd_ratio {utd_ratio:g}") as refusal:
        small_config(num_envs=num_envs, steps_per_round=steps_per_round, utd_ratio=utd_ratio)
    listed = re.search(r"ratios that work are (.+?); or", str(refusal.value))
    assert listed is not None, str(refusal.value)
    return [float(text) for text in listed[1].split(" or ")]


@pytest.mark.parametrize("num_envs", [1, 3, 7, 16, 101])
@pytest.mark.parametrize("steps_per_round", [1, 3])
@pytest.mark.parametrize("utd_ratio", [1e-4, 0.0131, 0.31, 0.77, 1.51, 7.123])
def test_a_utd_ratio_that_gives_no_whole_number_of_updates_names_the_nearest_that_do(
    num_envs: int, steps_per_round: int, utd_ratio: float
) -> None:
    steps = num_envs * steps_per_round
    ratios = suggested_ratios(num_envs, steps_per_round, utd_ratio)
    nearest = min((count / steps for count in range(1, 10 * steps)), key=lambda ratio: abs(ratio - utd_ratio))
    assert nearest == pytest.approx(min(ratios, key=lambda ratio: abs(ratio - utd_ratio)))
    for ratio in ratios:
        config = small_config(num_envs=num_envs, steps_per_round=steps_per_round, utd_ratio=ratio)
        assert config.updates_per_round == pytest.approx(ratio * steps)
        assert config.updates_per_round >= 1


@pytest.mark.parametrize(
    ("num_envs", "steps_per_round", "utd_ratio", "updates"),
    [(1, 1, 1.0, 1), (1, 1, 20.0, 20), (16, 1, 1 / 16, 1), (16, 1, 2.5, 40), (3, 1, 1 / 3, 1), (64, 4, 0.125, 32)],
)
def test_the_updates_of_a_round_are_the_ratio_times_its_env_steps(
    num_envs: int, steps_per_round: int, utd_ratio: float, updates: int
) -> None:
    config = small_config(num_envs=num_envs, steps_per_round=steps_per_round, utd_ratio=utd_ratio)
    assert config.updates_per_round == updates


@pytest.mark.parametrize("limit", ["buffer_size", "total_env_steps"])
def test_a_buffer_that_cannot_take_one_vector_step_is_refused(limit: str) -> None:
    with pytest.raises(ValueError, match=r"holds 31 transitions and 32 worlds") as refusal:
        small_config(num_envs=32, batch_size=2, learning_starts=2, **{limit: 31})
    assert limit in str(refusal.value)
    small_config(num_envs=32, batch_size=2, learning_starts=2, **{limit: 33})


def test_a_run_that_would_end_before_it_learns_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"learning_starts is 400 .* total_env_steps = 400, .*: nothing would be learned"
    ):
        small_config(learning_starts=400, total_env_steps=400)


@pytest.mark.parametrize("limit", ["learning_starts", "buffer_size"])
def test_a_batch_larger_than_what_the_first_update_finds_is_refused(limit: str) -> None:
    with pytest.raises(ValueError, match=r"batch_size = 33.*only 32 are stored") as refusal:
        small_config(batch_size=33, **{limit: 32})
    assert "learning_starts" in str(refusal.value)
    small_config(batch_size=32, **{limit: 32})


def test_the_buffer_allocates_no_more_than_the_run_will_fill() -> None:
    assert small_config(buffer_size=10**9, total_env_steps=1234).capacity == 1234
    assert small_config(buffer_size=99, total_env_steps=1234).capacity == 99


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"healthy_z_range": (0.7, math.inf), "reset_noise_scale": 0.01, "name": "x", "flag": False},
        {"corners": ((0.0, 1.0), (2.0, 3.0)), "nothing": ()},
    ],
    ids=["none", "flat", "nested"],
)
def test_a_configuration_survives_json_unchanged(options: dict[str, object]) -> None:
    config = small_config(task_options=options, actor_hidden=(32, 16), target_entropy=-2.5, seed=7)
    written = json.dumps(config.to_dict())
    assert Config.from_dict(json.loads(written)) == config
    assert Config.from_dict(config.to_dict()) == config


def test_a_configuration_of_another_version_names_the_fields_that_differ() -> None:
    values = small_config().to_dict()
    del values["gamma"]
    with pytest.raises(ValueError, match=r"another version.*'discount'.*'gamma'"):
        Config.from_dict({**values, "discount": 0.9})


def test_a_written_configuration_is_checked_when_it_is_read() -> None:
    with pytest.raises(ValueError, match="gamma is 2"):
        Config.from_dict({**small_config().to_dict(), "gamma": 2})


def test_a_configuration_cannot_be_changed_behind_its_checks() -> None:
    config = small_config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.gamma = 2.0  # type: ignore[misc]


CATEGORICAL = {"critic_loss": "categorical", "target_network": True, "value_range": 20.0}
RESIDUAL = {**CATEGORICAL, "network": "residual", "actor_norm": "batch"}
RECIPES = [
    (
        "redq",
        {"num_critics": 2, "target_subset": 3},
        "a target_subset of 3 cannot be drawn from num_critics = 2: raise num_critics or lower target_subset",
    ),
    *[
        (
            "sac",
            {"target_network": False, "critic_norm": norm},
            "without target networks critics are stable only with batch norm: set target_network or "
            "--critic-norm batch",
        )
        for norm in ("none", "layer")
    ],
    *[
        (
            preset,
            overrides,
            "batch-normalised critics with target networks need --critic-loss categorical (as in XQC); with "
            "--critic-loss mse, leave target_network out (CrossQ) or take another critic_norm",
        )
        for preset, overrides in (("crossq", {"target_network": True}), ("sac", {"critic_norm": "batch"}))
    ],
    *[
        (
            preset,
            overrides,
            "target_subset and --actor-value mean go with --critic-loss mse and target networks",
        )
        for preset in ("crossq", "xqc", "flashsac")
        for overrides in ({"actor_value": "mean"}, {"num_critics": 3, "target_subset": 2})
    ],
    *[
        (preset, {"dropout": 0.1}, "dropout goes with --critic-loss mse and --critic-norm layer or none")
        for preset in ("crossq", "xqc", "flashsac")
    ],
    *[
        (preset, {"actor_norm": "batch"}, "--actor-norm batch goes with --critic-loss categorical (XQC, FlashSAC)")
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
            "--network residual has blocks of one width: give actor_hidden and critic_hidden equal numbers",
        )
        for name in ("actor_hidden", "critic_hidden")
    ],
    ("xqc", {"num_atoms": 1}, "a categorical critic needs num_atoms of 2 at least, not 1"),
]


@pytest.mark.parametrize(("preset", "overrides", "said"), RECIPES)
def test_parts_that_do_not_go_together_are_refused_with_what_does(
    preset: str, overrides: dict[str, object], said: str
) -> None:
    small_config(preset=preset)
    with pytest.raises(ValueError, match=re.escape(said)) as refusal:
        small_config(preset=preset, **overrides)
    assert str(refusal.value) == said


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
        (HUMANOID, {"weight_normalization": "all"}),
    ],
)
def test_parts_that_go_together_are_accepted_and_learn(preset: str, overrides: dict[str, object]) -> None:
    learner = Learner(small_config(preset=preset, policy_delay=1, **overrides), OBSERVATION_DIM, ACTION_DIM)
    learner.check_finite(learner.round(filled_buffer(n_step=learner.config.n_step), 2))


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_builds_and_gives_way_to_overrides(name: str) -> None:
    config = presets.preset(name, "Hopper-v5")
    assert config.task == "Hopper-v5"
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert presets.preset(name, "Hopper-v5", gamma=0.5, seed=3) == dataclasses.replace(config, gamma=0.5, seed=3)


def test_no_two_presets_are_the_same() -> None:
    configs = [presets.preset(name, "Hopper-v5").to_dict() for name in presets.names()]
    assert all(configs.count(config) == 1 for config in configs)


@pytest.mark.parametrize("name", ["sca", "", "SAC"])
def test_an_unknown_preset_lists_those_there_are(name: str) -> None:
    with pytest.raises(ValueError, match=f"there is no preset '{name}'") as refusal:
        presets.preset(name, "Hopper-v5")
    assert all(known in str(refusal.value) for known in presets.names())


def test_the_default_preset_is_the_configuration_as_it_stands() -> None:
    assert presets.preset(presets.DEFAULT, "Hopper-v5") == Config("Hopper-v5")


@pytest.mark.parametrize(
    ("field", "value"),
    [("critic_norm", "Layer"), ("lr_schedule", "cos"), ("reward_scaling", "bounds"), ("weight_normalization", "rows")],
)
def test_a_choice_that_is_none_is_refused_with_those_there_are(field: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{field} is '{value}'; it must be one of .*, "):
        small_config(**{field: value})


@pytest.mark.parametrize(
    ("preset", "parts", "message"),
    [
        ("xqc", {"critic_norm": "layer", "dropout": 0.1}, "dropout goes with --critic-loss mse"),
        ("droq", {"weight_normalization": "linear"}, "--weight-normalization goes with --critic-norm batch"),
        ("crossq", {"weight_normalization": "all"}, "it goes with --critic-loss categorical"),
        (
            "crossq",
            {"critic_loss": "categorical"},
            "values lie within 5 of 0, where returns seldom do: set --reward-scaling bounded or std, or another",
        ),
        ("crossq", {"batch_size": 1}, "batch norm needs a batch_size of 2"),
    ],
)
def test_parts_that_would_silently_do_less_are_refused(preset: str, parts: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(preset=preset, **parts)

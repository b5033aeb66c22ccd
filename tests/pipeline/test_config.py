"""Config: what it refuses and accepts, its JSON, automatic settings."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_helpers import POSITIVE, small_config

import envs
from envs import Simulation
from pipeline import config as config_module
from pipeline import presets
from pipeline.config import Config
from saltus import SaltusError

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
HINTS = typing.get_type_hints(Config)
INTEGERS = [name for name, kind in HINTS.items() if kind is int]
FLOATS = [name for name, kind in HINTS.items() if kind is float]
AT_LEAST_ZERO = ["seed", "num_threads", "solver_iterations", "max_contacts", "max_constraints", "target_subset"]
AT_LEAST_ONE = [name for name in INTEGERS if name not in (*AT_LEAST_ZERO, "action_levels")]

REFUSED = [
    *[(name, value, "at least 1") for name in AT_LEAST_ONE for value in (0, -1)],
    *[
        (name, value, "at least 1, or auto")
        for name in ("n_step", "noise_repeat")
        for value in (0, -1, 1.5, True, "three")
    ],
    *[("action_levels", value, "at least 2, or 0, or auto") for value in (1, -1, 2.5, "five")],
    *[("minutes", value, "above 0, or None") for value in (0.0, -1.0, math.inf, math.nan)],
    *[(name, -1, "0 or more") for name in AT_LEAST_ZERO],
    *[(name, value, "above 0") for name in POSITIVE for value in (0.0, -1e-9, math.inf, math.nan)],
    *[("alpha_lr", value, "a finite number, 0 or more") for value in (-1e-9, math.inf, math.nan)],
    *[("gamma", value, "[0, 1)") for value in (-0.01, 1.0, 1.5, math.nan, "high")],
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
def test_invalid_number_is_refused_with_field_value_and_accepted_range(name: str, value: object, accepted: str) -> None:
    with pytest.raises(SaltusError, match=re.escape(f"{name} is {value!r}")) as refusal:
        small_config(**{name: value})
    assert accepted in str(refusal.value)


@pytest.mark.parametrize("name", [*INTEGERS, *FLOATS])
def test_negative_numbers_and_nan_are_refused(name: str) -> None:
    """Except a negative target_entropy_scale, for a nearly deterministic policy."""
    for value in (-1, math.nan) if name != "target_entropy_scale" else (math.nan,):
        with pytest.raises(SaltusError, match=name):
            small_config(**{name: value})


@pytest.mark.parametrize("name", INTEGERS)
def test_count_must_be_a_whole_number(name: str) -> None:
    value = getattr(small_config(), name) + 0.5
    with pytest.raises(SaltusError, match=re.escape(f"{name} is {value!r}")):
        small_config(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gamma", 0.0), ("tau", 1.0), ("eval_policy_averaging", 0.0), ("eval_policy_averaging", 1.0),
        ("lr_final_fraction", 1.0),
        ("dropout", 0.0), ("target_subset", 0), ("adam_beta1", 0.0), ("target_entropy", -3.5),
        ("target_entropy", 1), ("seed", 2**40), ("num_threads", 0), ("num_critics", 1), ("policy_delay", 1),
        ("actor_hidden", (1,)), ("learning_starts", 387),
    ],
)  # fmt: skip
def test_limits_are_accepted(name: str, value: object) -> None:
    assert getattr(small_config(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, 10**18) for name in (
            "n_step", "eval_episodes", "noise_repeat", "num_envs", "batch_size", "buffer_size", "total_env_steps",
            "learning_starts", "steps_per_round", "num_atoms", "num_critics", "policy_delay", "num_threads",
            "solver_iterations", "max_contacts", "max_constraints",
        )],
        *[(name, 1e300) for name in (
            "utd_ratio", "actor_lr", "critic_lr", "alpha_lr", "alpha_init", "value_range", "target_entropy",
            "target_entropy_scale",
        )],
        ("seed", 2**63), ("actor_hidden", (10**9,)), ("critic_hidden", (2,) * 1000),
    ],
)  # fmt: skip
def test_numbers_beyond_sense_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(SaltusError, match=f"{name} is .*; it must be .*at most"):
        small_config(**{name: value})


@pytest.mark.parametrize(
    ("task", "rewards", "repeat"),
    [
        ("Ant-v5", 3, 2), ("HalfCheetah-v5", 3, 2), ("Hopper-v5", 3, 16), ("Humanoid-v5", 1, 8),
        ("HumanoidStandup-v5", 1, 8), ("InvertedDoublePendulum-v5", 3, 2), ("InvertedPendulum-v5", 3, 3),
        ("Pusher-v5", 3, 2), ("Reacher-v5", 3, 6), ("Swimmer-v5", 3, 3), ("Walker2d-v5", 3, 16),
    ],
)  # fmt: skip
def test_automatic_settings_follow_the_task(task: str, rewards: int, repeat: int) -> None:
    env = envs.make(task, 1)
    config = presets.preset("fast", task)
    assert config.rewards_per_target(env.action_dim) == rewards
    assert config.longest_repeat(env.task.dt) == repeat
    config = presets.preset("fast", task, n_step=5, noise_repeat=7)
    assert config.rewards_per_target(env.action_dim) == 5
    assert config.longest_repeat(env.task.dt) == 7


def test_automatic_settings_have_bounds() -> None:
    config = presets.preset("fast", "Hopper-v5")
    assert [config.longest_repeat(step) for step in (0.001, 0.008, 0.0081, 0.064, 0.065, 1.0)] == [16, 16, 15, 2, 1, 1]
    assert [config.rewards_per_target(dimensions) for dimensions in (1, 8, 9, 100)] == [3, 3, 1, 1]


def test_discount_grows_with_env_steps() -> None:
    config, times = Config("Hopper-v5"), (0, 250_000, 375_000, 500_000, 750_000, 5_000_000)
    horizons = [1 / (1 - config.discount(steps, 0.008)) for steps in times]
    assert horizons == pytest.approx([100, 100, 125, 150, 200, 200])
    constant = dataclasses.replace(config, gamma=0.97)
    assert [constant.discount(steps, 0.008) for steps in times] == [0.97] * 6
    assert [one.initial_discount for one in (config, constant)] == [config.discount(0, 0.008), 0.97]


@pytest.mark.parametrize(
    ("task", "horizon"), [("Hopper-v5", 200), ("Walker2d-v5", 200), ("Humanoid-v5", 107), ("HalfCheetah-v5", 100)]
)
def test_discount_grows_to_a_span_of_simulated_time_within_bounds(task: str, horizon: int) -> None:
    control_step = envs.make(task, 1).task.dt
    assert round(1 / (1 - Config(task).discount(10**7, control_step))) == horizon
    assert 1 / (1 - Config(task).discount(10**7, 1e-4)) == pytest.approx(200)


@pytest.mark.parametrize("supported", [False, True])
def test_products_are_rounded_in_compiled_updates_on_cpus_that_do_it_fast(
    supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_module, "multiplies_bfloat16", lambda: supported)
    config, cpu, cuda = presets.preset("fast", "Hopper-v5"), torch.device("cpu"), torch.device("cuda")
    assert config.for_device(cpu) == dataclasses.replace(config, matmul_dtype="bfloat16" if supported else "float32")
    assert config.for_device(cuda).matmul_dtype == "float32"
    assert dataclasses.replace(config, compile=False).for_device(cpu).matmul_dtype == "float32"
    for chosen in ("float32", "bfloat16", "tf32"):
        config = dataclasses.replace(config, matmul_dtype=chosen)
        assert config.for_device(cpu) == config.for_device(cuda) == config


def test_initial_temperature_follows_the_action_dimensions() -> None:
    config = Config("Hopper-v5")
    assert [config.initial_temperature(dimensions) for dimensions in (1, 2, 5, 20)] == [0.2, 0.1, 0.04, 0.01]
    assert dataclasses.replace(config, alpha_init=0.3).initial_temperature(5) == 0.3


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("task", 5, "a string"), ("task", None, "a string"), ("compile", "no", "true or false"),
        ("target_network", 1, "true or false"), ("task_options", [], "a dictionary"),
        ("actor_hidden", 16, "a list of numbers"), ("critic_hidden", (1.5,), "a whole number"),
        ("num_critics", True, "a whole number"), ("seed", False, "a whole number"),
    ],
)  # fmt: skip
def test_values_of_other_types_are_refused_by_name(name: str, value: Any, accepted: str) -> None:
    values = {**vars(small_config()), name: value}
    with pytest.raises(SaltusError, match=rf"{name} is .*; it must be .*{accepted}"):
        Config(**values)


def test_updates_per_round_are_bounded() -> None:
    with pytest.raises(SaltusError, match=r"gives 10,000,000 updates per round .*; it must be at most 1,000,000"):
        small_config(num_envs=1000, utd_ratio=10_000.0, total_env_steps=10_000)


def suggested_ratios(num_envs: int, steps_per_round: int, utd_ratio: float) -> list[float]:
    with pytest.raises(SaltusError, match=f"utd_ratio {utd_ratio:g}") as refusal:
        small_config(num_envs=num_envs, steps_per_round=steps_per_round, utd_ratio=utd_ratio)
    listed = re.search(r"valid ratios are (.+?); or", str(refusal.value))
    assert listed is not None, str(refusal.value)
    return [float(text) for text in listed[1].split(" or ")]


@pytest.mark.parametrize("num_envs", [1, 3, 7, 16, 101])
@pytest.mark.parametrize("steps_per_round", [1, 3])
@pytest.mark.parametrize("utd_ratio", [1e-4, 0.0131, 0.31, 0.77, 1.51, 7.123])
def test_refused_utd_ratio_names_the_nearest_valid_ones(num_envs: int, steps_per_round: int, utd_ratio: float) -> None:
    steps = num_envs * steps_per_round
    ratios = suggested_ratios(num_envs, steps_per_round, utd_ratio)
    nearest = min((count / steps for count in range(1, 10 * steps)), key=lambda ratio: abs(ratio - utd_ratio))
    assert nearest == pytest.approx(min(ratios, key=lambda ratio: abs(ratio - utd_ratio)))
    for ratio in ratios:
        config = small_config(num_envs=num_envs, steps_per_round=steps_per_round, utd_ratio=ratio, policy_delay=1)
        assert config.updates_per_round == pytest.approx(ratio * steps)
        assert config.updates_per_round >= 1


@pytest.mark.parametrize(
    ("num_envs", "steps_per_round", "utd_ratio", "updates"),
    [(1, 1, 1.0, 1), (1, 1, 20.0, 20), (16, 1, 1 / 16, 1), (16, 1, 2.5, 40), (3, 1, 1 / 3, 1), (64, 4, 0.125, 32)],
)
def test_updates_per_round_are_utd_ratio_times_env_steps(
    num_envs: int, steps_per_round: int, utd_ratio: float, updates: int
) -> None:
    config = small_config(num_envs=num_envs, steps_per_round=steps_per_round, utd_ratio=utd_ratio)
    assert config.updates_per_round == updates


@pytest.mark.parametrize("limit", ["buffer_size", "total_env_steps"])
def test_buffer_smaller_than_a_vector_step_is_refused(limit: str) -> None:
    with pytest.raises(SaltusError, match=r"holds 31 transitions and 32 worlds") as refusal:
        small_config(num_envs=32, batch_size=2, learning_starts=2, **{limit: 31})
    assert limit in str(refusal.value)
    small_config(num_envs=32, batch_size=2, learning_starts=2, **{limit: 33})


def test_run_without_updates_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"learning_starts is 400 .* total_env_steps is 400: .* end before its first update"
    ):
        small_config(learning_starts=400, total_env_steps=400)


def test_run_without_an_update_of_the_actor_is_refused() -> None:
    with pytest.raises(SaltusError, match="policy_delay is 91 and the run has 89 updates: actor and temperature would"):
        small_config(policy_delay=91)
    small_config(policy_delay=89)
    small_config(policy_delay=91, minutes=1.0)


@pytest.mark.parametrize("limit", ["learning_starts", "buffer_size"])
def test_batch_larger_than_the_stored_transitions_is_refused(limit: str) -> None:
    with pytest.raises(SaltusError, match=r"batch_size = 33.*only 32 are stored") as refusal:
        small_config(batch_size=33, **{limit: 32})
    assert "learning_starts" in str(refusal.value)
    small_config(batch_size=32, **{limit: 32})


def test_buffer_allocates_at_most_total_env_steps() -> None:
    assert small_config(buffer_size=10**9, total_env_steps=1234).capacity == 1234
    assert small_config(buffer_size=99, total_env_steps=1234).capacity == 99


@pytest.mark.parametrize(("num_envs", "expected"), [(1, 250_000), (250, 250_000), (256, 256_000), (4096, 4_096_000)])
def test_automatic_buffer_holds_a_thousand_steps_of_many_worlds(num_envs: int, expected: int) -> None:
    config = presets.preset("fast", "Hopper-v5", num_envs=num_envs, utd_ratio=1.0, total_env_steps=10_000_000)
    assert config.capacity == config.max_transitions == expected
    assert dataclasses.replace(config, total_env_steps=100_000).capacity == 100_000


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"healthy_z_range": [0.7, math.inf], "reset_noise_scale": 0.01, "name": "x", "flag": False},
        {"corners": [[0.0, 1.0], [2.0, 3.0]], "nothing": []},
    ],
    ids=["none", "flat", "nested"],
)
def test_config_survives_json(options: dict[str, object]) -> None:
    config = small_config(task_options=options, actor_hidden=(32, 16), target_entropy=-2.5, seed=7)
    written = json.dumps(config.to_dict())
    assert Config.from_dict(json.loads(written)) == config
    assert Config.from_dict(config.to_dict()) == config


def test_options_that_are_not_encoded_are_not_written_as_text() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        small_config(task_options={"folder": Path("models")}).to_dict()


def test_config_of_another_version_is_refused_with_the_fields_that_differ() -> None:
    values = small_config().to_dict()
    del values["gamma"]
    with pytest.raises(SaltusError, match=r"another version of saltus \(unknown: discount; missing: gamma\)"):
        Config.from_dict({**values, "discount": 0.9})


@pytest.mark.parametrize("preset", ["sac", "crossq", "flashsac"])
def test_runs_written_before_the_temperatures_loss_could_be_chosen_keep_it(preset: str) -> None:
    values = small_config(preset=preset).to_dict()
    del values["alpha_loss"]
    assert Config.from_dict(values) == small_config(preset=preset, alpha_loss="log")


def test_config_from_json_is_checked() -> None:
    with pytest.raises(SaltusError, match="gamma is 2"):
        Config.from_dict({**small_config().to_dict(), "gamma": 2})


def test_config_is_frozen() -> None:
    config = small_config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.gamma = 2.0  # type: ignore[misc]


def test_config_has_the_fields_of_simulation_and_its_checks() -> None:
    settings = Simulation(physics="warp", num_threads=3, solver="newton", max_contacts=7, max_constraints=9)
    assert small_config(**vars(settings)).simulation == settings
    with pytest.raises(SaltusError, match="physics is 'gpu'; it must be one of auto, cpu, warp"):
        small_config(physics="gpu")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("critic_norm", "Layer"),
        ("lr_schedule", "cos"),
        ("reward_scaling", "deviation"),
        ("critic_loss", "squared"),
        ("device", "cuda:1"),  # a run's GPU is the current one, and a rank's the one of its number
    ],
)
def test_unknown_choice_is_refused_with_a_list(field: str, value: str) -> None:
    with pytest.raises(SaltusError, match=f"{field} is '{value}'; it must be one of .*, "):
        small_config(**{field: value})

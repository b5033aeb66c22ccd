"""`saltus tune`: ranges, refusals and objective, without training."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from cli_helpers import Command

from pipeline import presets
from pipeline.search_ranges import Choices, Interval, Range, search_ranges
from pipeline.tune.command import parse_plan
from pipeline.tune.options import TuneOptions, fixed_settings, fixed_words, scored_evaluations
from pipeline.tune.score import is_complete, score, steps_of_evaluations
from pipeline.tune.search import own_values, search_space, words
from saltus.errors import SaltusError

TASK = "InvertedPendulum-v5"


@pytest.mark.parametrize("name", presets.names())
def test_ranges_of_a_preset_contain_its_own_values_and_have_an_effect(name: str) -> None:
    config = presets.preset(name, task=TASK)
    ranges = search_ranges(name)
    assert not ranges.keys() & config.unused_settings().keys()
    assert search_space([], config, name, []) == ranges  # so that every end and choice makes a configuration
    assert own_values(ranges, config, action_dim=6, control_step=0.008).keys() == ranges.keys()


@pytest.mark.parametrize(
    ("options", "control_step", "values", "own"),
    [
        ({}, 0.008, ("auto", 0.97), {"gamma": "auto"}),
        ({}, 0.008, (0.97, 0.99), {}),
        ({}, 0.04, (0.97, 0.99), {"gamma": 0.99}),
        ({"minutes": 1.0}, 0.04, (0.97, 0.99), {"gamma": 0.99}),
        ({"total_env_steps": 250_000}, 0.008, (0.97, 0.99), {"gamma": 0.99}),
        ({"total_env_steps": 250_000}, 0.008, ("auto", 0.99), {"gamma": "auto"}),
        ({"total_env_steps": 250_000, "minutes": 1.0}, 0.008, (0.97, 0.99), {}),
        ({"gamma": 0.97}, 0.008, (0.97, 0.99), {"gamma": 0.97}),
    ],
)
def test_own_discount_is_a_number_if_it_does_not_grow(
    options: dict[str, Any], control_step: float, values: tuple[Any, ...], own: dict[str, Any]
) -> None:
    config = dataclasses.replace(presets.preset("fast", TASK), **options)
    assert own_values({"gamma": Choices(values)}, config, action_dim=1, control_step=control_step) == own


def test_fixed_options_are_not_searched() -> None:
    plan = parse_plan([TASK, "--preset", "sac", "--actor_lr=1e-3", "--trials", "7", "--search", "gamma", "tau"])
    assert plan.space.keys() == {"gamma", "tau"}
    assert plan.train_words({"gamma": 0.99, "critic_hidden": (64, 32)}, 3) == (
        [TASK, "--preset", "sac", "--actor-lr", "1e-3", "--gamma", "0.99", "--critic-hidden", "64", "32", "--seed", "3"]
    )
    plan = parse_plan(["--preset", "sac", TASK, "--actor_lr", "1e-3", "--no-compile", "--target-entropy", "-2"])
    assert plan.space.keys() == search_ranges("sac").keys() - {"actor_lr", "target_entropy_scale"}
    assert plan.fixed == ["--actor-lr", "1e-3", "--no-compile", "--target-entropy", "-2"]
    assert plan.config.target_entropy == -2


def test_choices_that_do_not_work_with_fixed_options_are_left_out() -> None:
    assert parse_plan([TASK, "--num-envs", "16"]).space["utd_ratio"] == Choices((1 / 16, 1 / 8))
    assert parse_plan([TASK, "--num-envs", "16", "--search", "utd-ratio"]).space == {
        "utd_ratio": Choices((1 / 16, 1 / 8))
    }
    assert "utd_ratio" not in parse_plan([TASK, "--num-envs", "4", "--utd-ratio", "0.25"]).space


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("actor-lr=1e-4..1e-2", Interval(1e-4, 1e-2, log=True)),
        ("alpha_lr=0..0.01:linear", Interval(0, 0.01)),
        ("--gamma=0.9..0.99", Interval(0.9, 0.99)),
        ("batch-size=64..512:log", Interval(64, 512, log=True)),
        ("n-step=1,auto", Choices((1, "auto"))),
        ("buffer-size=1e5,1e6", Choices((100_000, 1_000_000))),
        ("critic-hidden=64 64,256 256", Choices(((64, 64), (256, 256)))),
        ("normalize-observations=true,false", Choices((True, False))),
        ("reward-scaling=std,bounded", Choices(("std", "bounded"))),
    ],
)
def test_search_takes_intervals_and_choices(text: str, expected: Range) -> None:
    config = presets.preset("fast", task=TASK)
    assert [*search_space([text], config, "fast", []).values()] == [expected]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed=1,2", "'speed' is no option that can be searched; these can: action-levels, actor-hidden, actor-lr, "),
        ("seed=1,2", "seed does not change how a trial learns: fix it with --seed"),
        ("tau", "the option has no effect here: it needs --target-network or --value-network"),
        ("tau=0.01..0.1", "the option has no effect here: it needs --target-network or --value-network"),
        ("critic-lr=1e-4..1e-3", "--critic-lr fixes the option: leave out one of the two"),
        ("dropout", "the preset has no range for it: give one, as in dropout=LOW..HIGH or VALUE,VALUE"),
        ("gamma=", "the range is empty: give LOW..HIGH or VALUE,VALUE (is a shell variable unset?)"),
        ("gamma=0.9", "one value is no range: fix it with --gamma 0.9, or give several, as in A,B"),
        ("gamma=0.9,0.9", "a value is given twice"),
        ("gamma=0.99..0.9", "the low end, 0.99, is above the high end, 0.9: give LOW..HIGH with LOW below HIGH"),
        ("gamma=0.9..0.9", "both ends are equal: give LOW..HIGH with LOW below HIGH"),
        ("gamma=0.9..1.5", "gamma is 1.5; it must be in [0, 1), or auto"),
        ("gamma=0.9..inf", "inf is not finite"),
        ("gamma=0.9..0.99:cubic", "there is no scale 'cubic': it is log or linear"),
        (
            "actor-lr=0..1e-3",
            "the scale is logarithmic, and 0 has no logarithm: raise the low end above 0, or append :linear",
        ),
        ("actor-lr=low..1", "'low' is no value of actor-lr: give a number"),
        ("n-step=1.5,2", "'1.5' is no value of n-step: give a whole number or auto"),
        ("n-step=auto..3", "'auto' is no number, and LOW..HIGH needs numbers: list the values, as in A,B"),
        ("critic-norm=batch,group", "'group' is no value of critic-norm: give one of none, batch, layer"),
        ("normalize-observations=true,maybe", "'maybe' is no value of normalize-observations: give true or false"),
        ("critic-hidden=64,wide", "'wide' is no value of critic-hidden: give whole numbers, such as '256 256'"),
        ("utd-ratio=1..20", "not every number of the range works (utd_ratio "),
        ("num-envs=64..128", "not every number of the range works ("),
        ("utd-ratio=0.01,0.0625", "utd_ratio 0.01 gives 1.28 updates per round of 1 vector steps of 128 worlds"),
    ],
)
def test_bad_ranges_are_refused(text: str, message: str) -> None:
    with pytest.raises(SaltusError) as refusal:
        search_space([text], presets.preset("fast", task=TASK), "fast", ["critic_lr"])
    assert str(refusal.value).startswith(f"--search {text}: {message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--search", "num-envs=64,128", "utd-ratio=0.015625,0.0078125"],
            "the searched num-envs and utd-ratio depend on each other: num-envs 64, utd-ratio 0.0078125 do not work "
            "together (",
        ),
        (["--trials", "0"], "--trials is 0; it must be at least 1 and at most 1,000,000"),
        (["--lease", "2"], "--lease is 2; it must be at least 3 and at most "),
        (["--seeds-per-trial", "0"], "--seeds-per-trial is 0; it must be at least 1 and at most 1,000"),
        (["--storage", ""], "--storage is empty: give a database's URL (is a shell variable unset?)"),
        (["--pruner", "median", "--minutes", "1"], "--pruner median compares trials at the same env steps, and "),
        (
            ["--pruner", "hyperband", "--total-env-steps", "100000"],
            "--pruner hyperband needs 3 evaluations before the end of a trial, and --eval-every 50000 with "
            "--total-env-steps 100000 gives 1: lower --eval-every",
        ),
        (["--search", "gamma", "gamma=0.9,0.99"], "--search gamma=0.9,0.99: the option is named twice"),
    ],
)
def test_bad_options_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(SaltusError) as refusal:
        parse_plan([TASK, *arguments])
    assert str(refusal.value).startswith(message)


def test_sweep_of_fixed_options_alone_is_refused() -> None:
    with pytest.raises(SaltusError, match=r"^every option that the preset searches is fixed: name one"):
        search_space([], presets.preset("fast", task=TASK), "fast", search_ranges("fast"))


def test_missing_package_is_named(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tune.command.find_spec", lambda name: None)
    outcome = command("tune", TASK)
    assert outcome.err == "saltus: saltus tune needs optuna: pip install -c constraints.txt optuna\n"


def rows(*returns: float, every: int = 100, worlds: int = 1) -> list[dict[str, float]]:
    steps = [-(-(index + 1) * every // worlds) * worlds for index in range(len(returns))]
    return [
        {"env_steps": step, "return_mean": value, "seconds": 60.0 * (index + 1)}
        for index, (step, value) in enumerate(zip(steps, returns, strict=True))
    ]


def test_score_is_the_mean_of_the_last_third() -> None:
    config = presets.preset("fast", task=TASK, total_env_steps=900, num_envs=1, utd_ratio=1.0, learning_starts=300)
    found = rows(*range(1, 10))
    assert score(found, config) == 8  # 7, 8, 9: after 600 env steps
    assert scored_evaluations(dataclasses.replace(config, eval_every=100)) == 3
    assert is_complete(found, config)
    assert not is_complete(found[:-1], config)
    assert not is_complete([], config)


def test_score_of_minutes_is_the_mean_of_their_last_third() -> None:
    config = presets.preset("fast", task=TASK, minutes=6.0)
    assert score(rows(1, 2, 3, 4, 5, 6), config) == 5.5


def test_trials_with_other_numbers_of_worlds_are_compared_at_the_same_steps() -> None:
    config = presets.preset("fast", task=TASK, total_env_steps=500, num_envs=1, utd_ratio=1.0, learning_starts=300,
                            eval_every=100)  # fmt: skip
    found = rows(1, 2, float("nan"), 4, 5)
    assert steps_of_evaluations(found, config) == {100: 1, 200: 2, 300: -float("inf"), 400: 4}
    assert steps_of_evaluations(rows(1, 2, 3, worlds=64), config) == {100: 1, 200: 2, 300: 3}


def test_words_of_options_are_those_of_train() -> None:
    options = {"value_network": False, "wandb": True, "actor_hidden": (8, 4), "alpha_init": 1e-05, "n_step": "auto"}
    assert words(options) == (
        ["--no-value-network", "--wandb", "--actor-hidden", "8", "4", "--alpha-init", "1e-05", "--n-step", "auto"]
    )
    kept = fixed_words(["T", "--seed", "3", "--gamma=0.9", "--search", "a", "b", "--run_dir", "x", "--no-compile"])
    assert kept == ["--gamma", "0.9", "--no-compile"]
    assert fixed_settings(kept) == {"gamma", "compile"}
    assert TuneOptions().chosen_pruner(presets.preset("fast", task=TASK)) == "median"
    assert TuneOptions().chosen_pruner(presets.preset("fast", task=TASK, minutes=1.0)) == "none"

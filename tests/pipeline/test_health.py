"""Health: each state is found where it is, once, and not in good runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config
from pipeline.health import Health, describe_policies

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
FALLS = Path(__file__).with_name("falls.jsonl")  # measured runs of earlier recipes whose returns fell
FELL = {
    ("actor3e-4-cpu2", 2): "since 750,080 env steps, return 2397.3 on average, far below the best one, 3408.2 after "
    "650,112 env steps",
    ("average-0.005-cpu2", 0): "return 2405.3 on average",
    ("cpu2", 0): "return 2442.5 on average",
    ("rounded-cpu2", 1): "return 2237.7 on average",
}

NAMES = {
    "env_steps": "env_steps", "return": "return_mean", "return_low": "return_low", "return_high": "return_high",
    "length": "length_mean",
}  # fmt: skip


def new_health(total_env_steps: int = 2_000_000, minutes: float | None = None) -> Health:
    progress = Config("Hopper-v5", total_env_steps=total_env_steps, minutes=minutes).progress
    return Health(1000, progress, target_entropy=-3.0, alpha_init=1.0)


def evaluation(env_steps: int, mean: float, length: float = 1000.0, noise: float = 10.0) -> dict[str, float]:
    bounds = {"return_low": mean - noise, "return_high": mean + noise}
    seconds = env_steps / 2_000
    return {"env_steps": env_steps, "seconds": seconds, "return_mean": mean, "length_mean": length, **bounds}


def metrics(env_steps: int, **values: float) -> dict[str, float]:
    usual = {"td_error": 5.0, "alpha": 0.1, "entropy": -3.0, "episode_return": 1000.0, "episode_length": 500.0}
    return {"env_steps": env_steps, "unstable": 0, "nonfinite": 0, **usual, **values}


def evaluate(returns: Iterable[float], health: Health | None = None, **values: Any) -> list[str]:
    """Messages of evaluations every 50,000 env steps."""
    health = health or new_health()
    rows = [evaluation(50_000 * number, mean, **values) for number, mean in enumerate(returns, start=1)]
    return [message for row in rows for message in health.evaluation(row)]


def train(rows: Iterable[dict[str, float]], health: Health | None = None) -> list[str]:
    """Messages of rows of metrics every 10,000 env steps."""
    health = health or new_health()
    numbered = (metrics(10_000 * number, **row) for number, row in enumerate(rows, start=1))
    return [message for row in numbered for message in health.metrics(row)]


# Measured runs


def measured_runs() -> list[Any]:
    runs = []
    for path in [*RESULTS.glob("training-*.jsonl"), *RESULTS.glob("recipes-*.jsonl"), FALLS]:
        for line in path.read_text().splitlines():
            run = json.loads(line)
            if "length" not in run.get("curve", {}):
                continue
            columns = {name: run["curve"][name] for name in NAMES}
            rows = [dict(zip(NAMES.values(), row, strict=True)) for row in zip(*columns.values(), strict=True)]
            name, total = run.get("name", path.stem), run.get("total_env_steps", 2_000_000)
            runs.append(pytest.param(name, run["seed"], total, rows, id=f"{name}-{run['seed']}"))
    return runs


@pytest.mark.parametrize(("name", "seed", "total", "rows"), measured_runs())
def test_measured_runs_are_warned_of_once_if_they_fell(
    name: str, seed: int, total: int, rows: Sequence[dict[str, float]]
) -> None:
    health = new_health(total)
    messages = [message for row in rows for message in health.evaluation({"seconds": 0.0, **row})]
    expected = FELL.get((name, seed))
    assert len(messages) == (expected is not None)
    assert all(str(expected) in message for message in messages)


def test_fallen_runs_are_measured() -> None:
    assert set(FELL) <= {(run.values[0], run.values[1]) for run in measured_runs()}


# A fall


RISE = [-1000.0, -700.0, -400.0, *[-150.0] * 7]


@pytest.mark.parametrize("shift", [0.0, 1150.0, 4000.0])
def test_fall_is_said_once_until_the_returns_recover(shift: float) -> None:
    """With negative, mixed and positive returns."""
    fallen = -150.0 - 0.4 * max(850.0, abs(shift - 150.0))
    returns = [*RISE, *[fallen] * 20, *[-150.0] * 6, *[fallen] * 20]
    messages = evaluate(shift + value for value in returns)
    assert len(messages) == 2
    assert "the last 5 evaluations, since 500,000 env steps, return" in messages[0]
    assert f"{shift - 150.0:.1f} after 200,000 env steps" in messages[0]
    assert "--actor-lr" in messages[0]


@pytest.mark.parametrize(
    ("returns", "noise"),
    [
        ([*RISE, -500.0, -500.0, *[-150.0] * 8], 10.0),
        ([*RISE, *[-250.0] * 20], 10.0),
        ([*RISE, *[-500.0] * 20], 400.0),
        ([1000.0] * 30, 0.0),
        ([0.0, 3.0, -2.0, 1.0, 4.0, -4.0] * 6, 5.0),
    ],
    ids=["two bad evaluations", "a small fall", "within the noise", "constant", "nothing learned"],
)
def test_what_is_no_fall(returns: list[float], noise: float) -> None:
    assert evaluate(returns, noise=noise) == []


# Early ends, standing still


def test_episodes_that_always_end_early_are_said_once_after_many_env_steps() -> None:
    messages = evaluate([100.0] * 20, length=60.0)
    assert len(messages) == 1
    assert "after 300,000 env steps episodes still end early: mean length 60 of 1,000" in messages[0]
    assert "--utd-ratio" in messages[0]
    assert evaluate([100.0] * 20, new_health(10_000_000), length=60.0)[0].startswith("after 1,000,000 env steps")
    # Half an hour, of which a tenth has passed after 180 seconds: at 360,000 env steps.
    assert evaluate([100.0] * 20, new_health(minutes=30), length=60.0)[0].startswith("after 400,000 env steps")


def test_episodes_that_end_at_a_goal_are_not_early() -> None:
    health = new_health()
    assert evaluate([-1000.0], health) == []
    assert evaluate([-50.0] * 20, health, length=50.0) == []


def stand(returns: list[float], length: float = 1000.0, **terms: list[float]) -> list[str]:
    """Messages of evaluations after rows with these means of the reward's terms."""
    health = new_health()
    rows = [
        {f"reward_terms/{name}": value for name, value in zip(terms, values, strict=True)}
        for values in zip(*terms.values(), strict=True)
    ]
    assert train(rows, health) == []
    return evaluate(returns, health, length=length)


SURVIVE = [4.75, 4.9, 5.0, 5.0]
FORWARD = [0.3, 0.5, 0.1, 0.05]


def test_standing_still_is_said_once_with_its_term() -> None:
    messages = stand([5010.0, 5040.0, 4990.0, 5020.0] * 5, reward_survive=SURVIVE, reward_forward=FORWARD)
    assert len(messages) == 1
    assert (
        "since 50,000 env steps episodes last to the time limit and the return, 5018.3, equals the reward's term "
        in (messages[0])
    )
    assert "reward_survive (5 per step)" in messages[0]
    assert "another --seed" in messages[0]


def test_penalty_of_each_step_is_a_constant_term() -> None:
    messages = stand([-1005.0] * 10, time=[-1.0] * 4, distance=[-0.5, -0.2, -0.1, -0.005])
    assert len(messages) == 1
    assert "time (-1 per step)" in messages[0]


@pytest.mark.parametrize(
    ("returns", "length", "terms"),
    [
        ([5010.0] * 20, 1000.0, {"reward_survive": SURVIVE}),
        ([5000.0 + 30 * step for step in range(20)], 1000.0, {"reward_survive": SURVIVE, "reward_forward": FORWARD}),
        ([6000.0] * 20, 1000.0, {"reward_survive": SURVIVE, "reward_forward": FORWARD}),
        ([5010.0] * 20, 999.0, {"reward_survive": SURVIVE, "reward_forward": FORWARD}),
        ([990.0] * 20, 1000.0, {"height": [-0.8, 0.1, 0.9, 0.99], "effort": [-0.1, -0.1, -0.01, -0.01]}),
        ([5010.0] * 20, 1000.0, {}),
    ],
    ids=["one term", "rising", "other terms", "early ends", "a learned term", "no terms"],
)
def test_what_is_not_standing_still(returns: list[float], length: float, terms: dict[str, list[float]]) -> None:
    assert stand(returns, length, **terms) == []


# Critics, temperature


def test_exploding_critics_are_said_once() -> None:
    good = [{"td_error": 5.0}] * 12
    messages = train([*good, *[{"td_error": 10.0**power} for power in range(1, 20)]])
    assert len(messages) == 1
    assert (
        "the critics' error explodes: td_error is 1e+05 at 170,000 env steps, and its median before is 5" in messages[0]
    )
    assert "--critic-lr" in messages[0]


def test_critics_that_explode_at_once_are_compared_with_the_rewards() -> None:
    messages = train([{"td_error": 1e5}] * 6)
    assert len(messages) == 1
    assert "the mean reward per step is at most 2" in messages[0]


@pytest.mark.parametrize(
    "errors",
    [
        [0.5 * 1.04**step for step in range(100)],
        [5.0] * 12 + [2e3, 5.0, 2e3] * 5,
        [float("nan")] * 20 + [5.0] * 20,
    ],
    ids=["growing with the returns", "single batches", "before the first update"],
)
def test_what_is_no_explosion(errors: list[float]) -> None:
    assert train({"td_error": error} for error in errors) == []


def test_errors_without_any_reward_are_no_explosion() -> None:
    assert train([{"td_error": 10.0, "episode_return": 0.0}] * 20) == []


def test_temperature_at_its_floor_is_said_once() -> None:
    messages = train([{"alpha": 0.3**step, "entropy": 2.0} for step in range(60)])
    assert len(messages) == 1
    assert messages[0].startswith("the temperature vanishes: alpha is ")
    assert "the entropy 2, with a target of -3" in messages[0]
    assert "--alpha-lr" in messages[0]


def test_exploding_temperature_is_said_once() -> None:
    messages = train([{"alpha": 2.0**step, "entropy": -9.0} for step in range(60)])
    assert len(messages) == 1
    assert messages[0].startswith("the temperature explodes: alpha is ")


@pytest.mark.parametrize(
    "row",
    [{"alpha": 1e-8}, {"alpha": 3e-5, "entropy": 5.0}, {"alpha": 150.0}, {"alpha": float("nan")}],
    ids=["tiny, at the target", "small", "as large as the rewards", "before the first update"],
)
def test_what_is_no_lost_temperature(row: dict[str, float]) -> None:
    assert train([row] * 30) == []


def test_a_fixed_temperature_is_never_lost() -> None:
    progress = Config("Hopper-v5").progress
    health = Health(1000, progress, target_entropy=-3.0, alpha_init=1e-7, learns_temperature=False)
    assert train([{"alpha": 1e-7, "entropy": 2.0}] * 30, health) == []


def test_temperature_of_measured_runs_is_never_lost() -> None:
    """The lowest temperature of a good run, and the entropy's widest swing, both on Humanoid-v5."""
    health = Health(1000, Config("Humanoid-v5").progress, target_entropy=-17.0, alpha_init=0.01)
    assert train([{"alpha": 3e-5, "entropy": -21.0}, {"alpha": 3e-5, "entropy": 8.6}] * 15, health) == []


# Failed worlds, the last line


def test_failure_of_every_world_step_is_said_once() -> None:
    health = new_health()
    for env_steps in (100, 200):
        messages = health.metrics(metrics(env_steps, nonfinite=env_steps - 10, unstable=12))
        assert ["every one of 100 world-steps failed (unstable: 12, not finite: 90)" in line for line in messages] == (
            [True] if env_steps == 100 else []
        )
        assert health.nothing_learned
    assert new_health().metrics(metrics(100, nonfinite=99)) == []


@pytest.mark.parametrize(
    ("best", "last", "expected"),
    [
        (3392.0, 2293.0, "plays the best policy, with `--policy last` the last one"),
        (3392.0, 3300.0, "plays more episodes with the best policy"),
        (-150.0, -200.0, "plays the best policy, with `--policy last` the last one"),
        (-150.0, -155.0, "plays more episodes with the best policy"),
    ],
)
def test_last_line_compares_best_and_last(best: float, last: float, expected: str) -> None:
    line = describe_policies(evaluation(650_112, best), evaluation(1_100_032, last), "runs/hopper")
    assert line == (
        f"best evaluation: {best:.1f} after 650,112 env steps; last: {last:.1f} after 1,100,032 env steps; "
        f"`saltus evaluate runs/hopper` {expected}"
    )


def test_last_line_offers_no_policy_that_was_not_saved() -> None:
    line = describe_policies(evaluation(100, 3392.0), evaluation(200, 2293.0), "run", last_is_saved=False)
    assert line.endswith(
        "; last: 2293.0 after 200 env steps; `saltus evaluate run` plays more episodes with the best policy"
    )


def test_last_line_of_a_run_whose_last_policy_is_the_best() -> None:
    row = evaluation(50_000, 417.4)
    assert describe_policies(row, row, "run") == (
        "best evaluation: 417.4 after 50,000 env steps, the last one; `saltus evaluate run` plays more episodes with "
        "that policy"
    )

"""Falls, early ends and standing still are found where they are, once, and not in good runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from statistics import fmean, stdev
from typing import Any

import pytest
from health_helpers import evaluate, evaluation, new_health, train

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
FALLS = Path(__file__).with_name("falls.jsonl")  # measured runs of earlier recipes whose returns fell
FELL = {
    ("actor3e-4-cpu2", 2): "since 750,080 env steps, return 2397.3 on average, far below the best one, 3408.2 after "
    "650,112 env steps",
    ("average-0.005-cpu2", 0): "return 2405.3 on average",
    ("cpu2", 0): "return 2442.5 on average",
    ("rounded-cpu2", 1): "return 2237.7 on average",
}

# Measured runs


def measured_runs() -> list[Any]:
    runs = []
    for path in [*RESULTS.glob("training-*.jsonl"), *RESULTS.glob("recipes-*.jsonl"), FALLS]:
        for line in path.read_text().splitlines():
            run = json.loads(line)
            if "length" not in run.get("curve", {}) or ":" in run.get("task", ""):  # shorter episodes
                continue
            names = ("env_steps", "return", "length", "return_low", "return_high")
            rows = [
                evaluation(env_steps, mean, length, noise=(high - low) / 2)
                for env_steps, mean, length, low, high in zip(*(run["curve"][name] for name in names), strict=True)
            ]
            name, total = run.get("name", path.stem), run.get("total_env_steps", 2_000_000)
            runs.append(pytest.param(name, run["seed"], total, rows, id=f"{name}-{run['seed']}"))
    return runs


@pytest.mark.parametrize(("name", "seed", "total", "rows"), measured_runs())
def test_measured_runs_are_warned_of_once_if_they_fell(
    name: str, seed: int, total: int, rows: Sequence[dict[str, float]]
) -> None:
    health = new_health(total_env_steps=total)
    messages = [message for row in rows for message in health.evaluation(row)]
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


def episodes_of(draw: Callable[[], float], evaluations: int, episodes: int) -> Iterator[dict[str, float]]:
    """Rows of evaluations, every 50,000 env steps, whose episodes return what `draw` does."""
    for number in range(1, evaluations + 1):
        returns = [draw() for _ in range(episodes)]
        row = evaluation(50_000 * number, fmean(returns), episodes=episodes)
        yield {**row, "return_std": stdev(returns) if episodes > 1 else 0.0}


@pytest.mark.parametrize(("evaluations", "episodes"), [(30, 1), (30, 2), (8, 3), (8, 10)])
def test_steady_policy_with_few_episodes_is_no_fall(evaluations: int, episodes: int) -> None:
    """Of 120 runs whose episodes return 3,300 or 1,500, fewer than one in 40 warn; all that fall to 500 do."""
    random = Random(1)

    def steady() -> float:
        return 3300.0 if random.random() < 0.6 else 1500.0

    def fallen() -> float:
        return random.gauss(500.0, 300.0)

    false = found = 0
    for _ in range(120):
        health = new_health(total_env_steps=50_000 * evaluations)
        rows = [*episodes_of(steady, evaluations, episodes)]
        false += any([health.evaluation(row) for row in rows])
    for _ in range(10):
        health = new_health(total_env_steps=50_000 * evaluations)
        before = [*episodes_of(lambda: random.gauss(3300.0, 300.0), evaluations // 2, episodes)]
        after = [
            {**row, "env_steps": row["env_steps"] + before[-1]["env_steps"]}
            for row in episodes_of(fallen, evaluations - len(before), episodes)
        ]
        found += any([health.evaluation(row) for row in [*before, *after]])
    assert false < 120 / 40
    assert found == 10


@pytest.mark.parametrize(("evaluations", "size"), [(6, 3), (9, 3), (12, 4), (15, 5), (40, 5)])
def test_a_third_of_a_short_runs_evaluations_decides(evaluations: int, size: int) -> None:
    """Also of a run whose length is a time: its evaluations come every 25 seconds."""
    returns = [3300.0] * (evaluations - size) + [500.0] * size
    for length in ({"total_env_steps": 50_000 * evaluations}, {"minutes": 25 * evaluations / 60}):
        (message,) = evaluate(returns, new_health(**length))
        assert re.match(rf"the last {size} evaluations, since [\d,]+ env steps, return", message)
    assert evaluate([3300.0, 3300.0, 500.0, 500.0], new_health(total_env_steps=200_000)) == [], "too few"
    one_bad = [0.0, *[3300.0] * (evaluations - 2), 0.0]
    assert evaluate(one_bad, new_health(total_env_steps=50_000 * evaluations)) == []


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
    assert evaluate([100.0] * 20, new_health(total_env_steps=10_000_000), length=60.0)[0].startswith(
        "after 1,000,000 env steps"
    )
    # Half an hour, of which a tenth has passed after 180 seconds: at 360,000 env steps.
    assert evaluate([100.0] * 20, new_health(minutes=30), length=60.0)[0].startswith("after 400,000 env steps")


def test_early_ends_in_a_short_run_are_said_near_its_end() -> None:
    rows = [evaluation(10_000 * number, 20.0, length=15.0) for number in range(1, 11)]
    health = new_health(total_env_steps=100_000)
    messages = [message for row in rows for message in health.evaluation(row)]
    assert len(messages) == 1
    assert messages[0].startswith("after 90,000 env steps episodes still end early")
    health = new_health(total_env_steps=40_000)
    assert [message for row in rows[:4] for message in health.evaluation(row)] == [], "too few env steps"


def test_episodes_that_end_at_a_goal_are_not_early() -> None:
    """The random actions before the first evaluation do not reach it."""
    health = new_health()
    assert train([{"episode_length": 900.0}, {"episode_length": 60.0}], health) == []
    assert evaluate([-50.0] * 20, health, length=50.0) == []
    health = new_health()
    assert train([{"episode_length": float("nan")}, {"episode_length": 60.0}], health) == []
    assert len(evaluate([-50.0] * 20, health, length=50.0)) == 1


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
        ([4990.0] * 20, 1000.0, {"alive": [5.0] * 4, "control": [-0.2, -0.1, -0.05, -0.01], "gap": [0.001, 0, 0, 0]}),
        ([5000.0 + 30 * step for step in range(20)], 1000.0, {"reward_survive": SURVIVE, "reward_forward": FORWARD}),
        ([6000.0] * 20, 1000.0, {"reward_survive": SURVIVE, "reward_forward": FORWARD}),
        ([5010.0] * 20, 999.0, {"reward_survive": SURVIVE, "reward_forward": FORWARD}),
        ([990.0] * 20, 1000.0, {"height": [-0.8, 0.1, 0.9, 0.99], "effort": [-0.1, -0.1, -0.01, -0.01]}),
        ([5010.0] * 20, 1000.0, {}),
    ],
    ids=["one term", "other terms are costs", "rising", "other terms", "early ends", "a learned term", "no terms"],
)
def test_what_is_not_standing_still(returns: list[float], length: float, terms: dict[str, list[float]]) -> None:
    assert stand(returns, length, **terms) == []

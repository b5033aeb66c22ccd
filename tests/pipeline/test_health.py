"""Health: failed worlds, and the last line of a run."""

from __future__ import annotations

import pytest
from health_helpers import evaluation, metrics, new_health

from pipeline.health.health import describe_policies


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


@pytest.mark.parametrize(
    ("mean", "text"),
    [(-1.2e-5, "-1.2e-05"), (0.25, "0.25"), (0.0, "0.0"), (-3392.04, "-3392.0"), (1.234e31, "1.23e+31")],
)
def test_small_and_large_returns_are_readable(mean: float, text: str) -> None:
    row = evaluation(100, mean)
    assert describe_policies(row, row, "run").startswith(f"best evaluation: {text} after 100 env steps")


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

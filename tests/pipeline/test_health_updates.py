"""Exploding critics and a lost temperature are found where they are, once, and not in good runs."""

from __future__ import annotations

import pytest
from health_helpers import new_health, train

from pipeline.config import Config
from pipeline.health.health import Health


def test_exploding_critics_are_said_once() -> None:
    good = [{"td_error": 5.0}] * 12
    messages = train([*good, *[{"td_error": 10.0**power} for power in range(1, 20)]])
    assert len(messages) == 1
    assert (
        "the critics' error explodes: td_error is 1e+06 at 180,000 env steps, and its median before is 5" in messages[0]
    )
    assert "--critic-lr" in messages[0]


def test_critics_that_explode_at_once_are_compared_with_the_rewards() -> None:
    messages = train([{"td_error": 1e5}] * 6)
    assert len(messages) == 1
    assert "td_error is 1e+05 at 30,000 env steps, and reward and entropy are at most 2.3 per step" in messages[0]


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


@pytest.mark.parametrize(
    "rows",
    [
        [{"td_error": 10.0, "episode_return": 0.0}] * 20,
        [{"td_error": 0.5, "alpha": 0.9, "episode_return": 0.2, "episode_length": 1000.0}] * 20,
        [{"td_error": 0.5, "alpha": 0.01, "episode_return": 0.2, "episode_length": 1000.0}] * 20,
        [{"td_error": 1e-5, "episode_return": 0.0}] * 15 + [{"td_error": 0.5, "episode_return": 1.0}] * 20,
    ],
    ids=["no reward", "small rewards, high temperature", "small rewards", "a first rare reward"],
)
def test_errors_that_rewards_and_entropy_explain_are_no_explosion(rows: list[dict[str, float]]) -> None:
    assert train(rows) == []


def test_errors_of_scaled_rewards_are_compared_with_their_median_alone() -> None:
    """The rows have the returns before the scaling."""
    tiny = {"episode_return": 1e-4, "episode_length": 1000.0, "alpha": 1e-4}
    scaled = {"reward_scaling": "std"}
    assert train([{"td_error": 0.5, **tiny}] * 20, new_health(**scaled)) == []
    assert train([{"td_error": 1e-3, **tiny}] * 15 + [{"td_error": 5.0, **tiny}] * 20, new_health(**scaled)) == []
    messages = train([{"td_error": 0.1, **tiny}] * 15 + [{"td_error": 50.0, **tiny}] * 20, new_health(**scaled))
    assert ["its median before is 0.1" in message for message in messages] == [True]


def test_the_bounded_error_of_categorical_critics_never_explodes() -> None:
    health = new_health(critic_loss="categorical", reward_scaling="bounded")
    assert train([{"td_error": 1e-4, "episode_return": 0.0}] * 15 + [{"td_error": 5.0}] * 20, health) == []


def test_targets_that_stay_out_of_range_are_said_once() -> None:
    health = new_health(critic_loss="categorical", reward_scaling="bounded", value_range=4.0)
    assert train([{"clipped_targets": share} for share in [0.1, *[0.5] * 30, *[0.25] * 10]], health) == [
        "returns leave the critics' range, -4 to 4: clipped_targets is 0.5 at 110,000 env steps, and above 0.3 in the "
        "last 10 rows. A larger --value-range or a lower --alpha-init often helps"
    ]
    unscaled = new_health(critic_loss="categorical", value_range=50.0)
    (message,) = train([{"clipped_targets": 1.0}] * 30, unscaled)
    assert message.endswith("A larger --value-range or --reward-scaling bounded often helps")


@pytest.mark.parametrize(
    "shares",
    [
        [0.159, 0.223, 0.176, 0.02, 0.002] + [1e-4] * 30,
        [0.9] * 9 + [0.25] * 30,
        [0.9] * 9 + [0.25] + [0.9] * 9,
        [float("nan")] * 30,
    ],
    ids=["measured on Hopper-v5", "a high start", "single rows", "before the first update"],
)
def test_what_are_no_targets_out_of_range(shares: list[float]) -> None:
    health = new_health(critic_loss="categorical", reward_scaling="bounded")
    assert train([{"clipped_targets": share} for share in shares], health) == []


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


def test_temperature_is_compared_with_scaled_rewards() -> None:
    """Returns of 5,000 are raw ones: a scaled reward is at most about 0.1."""
    rows = [{"alpha": 50.0, "entropy": -9.0, "episode_return": 5000.0}] * 20
    assert train(rows, new_health(0.1)) == []
    (message,) = train(rows, new_health(0.1, reward_scaling="bounded"))
    assert message.startswith("the temperature explodes: alpha is 50")
    assert train([{"alpha": 5.0}] * 20, new_health(1e-4, reward_scaling="bounded")) == []


@pytest.mark.parametrize(
    "row",
    [{"alpha": 1e-8}, {"alpha": 3e-5, "entropy": 5.0}, {"alpha": 150.0}, {"alpha": float("nan")}],
    ids=["tiny, at the target", "small", "as large as the rewards", "before the first update"],
)
def test_what_is_no_lost_temperature(row: dict[str, float]) -> None:
    assert train([row] * 30) == []


def test_a_fixed_temperature_is_never_lost() -> None:
    assert train([{"alpha": 1e-7, "entropy": 2.0}] * 30, new_health(1e-7, alpha_lr=0.0)) == []


def test_temperature_of_measured_runs_is_never_lost() -> None:
    """The lowest temperature of a good run, and the entropy's widest swing, both on Humanoid-v5."""
    health = Health(Config("Humanoid-v5"), 1000, target_entropy=-17.0, alpha_init=0.01)
    assert train([{"alpha": 3e-5, "entropy": -21.0}, {"alpha": 3e-5, "entropy": 8.6}] * 15, health) == []

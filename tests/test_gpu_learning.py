"""Laws of captured learners, resets and profiles on a GPU. Run with ``pytest -m gpu``."""

from __future__ import annotations

import captured_laws as laws
import pytest
import torch

from pipeline.profile.phases import ROUND, WAITING

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    pytest.mark.filterwarnings("ignore:No target network updater", "ignore::DeprecationWarning"),
]


def test_learning_rate_and_discount_change_between_captured_rounds() -> None:
    laws.learning_rate_and_discount_change_between_captured_rounds("cuda")


def test_released_rounds_are_captured_anew() -> None:
    laws.released_rounds_are_captured_anew("cuda")


def test_masked_resets_follow_captured_steps() -> None:
    laws.masked_resets_follow_captured_steps("cuda", num_envs=64)


def test_members_learn_in_captured_rounds() -> None:
    laws.members_learn_in_captured_rounds("cuda")


def test_a_profile_with_warp_divides_captured_rounds() -> None:
    result = laws.profile_a_few_steps("cuda", "warp")
    assert {"sample", "critic update", "actor and temperature update"} <= {*result["phases"]}
    assert ROUND not in result["phases"]
    assert result["waits"] == [], "a vector step waits for the GPU"
    assert result["waits_of_metrics"]
    assert result["launches"]["nodes"] > 100
    assert result["launches"]["seconds"] > 0


def test_a_profile_with_cpu_physics_times_rounds_on_the_gpu() -> None:
    result = laws.profile_a_few_steps("cuda", "cpu")
    assert {ROUND, WAITING} <= {*result["phases"]}
    assert 0 < result["round_seconds"] < 1
    assert any(place.startswith("run.py:") for place in result["waits"])
    assert result["accounted"] == pytest.approx(1, abs=0.05)

"""`saltus profile` on CUDA, on the CPU: the parts of a captured round."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pipeline_helpers import filled_buffer, make_learner

from pipeline.profile import cuda


@pytest.mark.filterwarnings("ignore:No target network updater")
@pytest.mark.parametrize(
    ("delay", "updates"),
    [
        (1, {"critic, actor and temperature update": 1.0}),
        (4, {"critic update": 1.0, "actor and temperature update": 0.25}),
    ],
)
def test_a_part_of_a_round_counts_as_often_as_it_follows_a_critic_update(
    delay: int, updates: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call takes a second, and a round of 40 updates samples 32 batches, then 8."""
    learner, buffer = make_learner("sac", policy_delay=delay, utd_ratio=10.0, matmul_dtype="tf32"), filled_buffer()
    sampled, precisions, sample = [], set(), buffer.sample

    def replay(function: Callable[[], Any], run: Any) -> float:
        sampled.clear()
        function()
        precisions.add(torch.get_float32_matmul_precision())
        return float(len(sampled) or 1)

    monkeypatch.setattr(buffer, "sample", lambda size, count=1: sampled.append((size, count)) or sample(size, count))
    monkeypatch.setattr(cuda, "_replay_seconds", replay)
    run: Any = SimpleNamespace(config=learner.agent.config, learner=learner, buffer=buffer)
    assert cuda._part_seconds(run) == {"sample": 2 / 40, **updates}
    assert precisions == {"high"}, "products of another precision than the updates'"

"""`saltus profile` on CUDA, on the CPU: the parts of a captured round, and the rounds that capture every variant."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pipeline_helpers import filled_buffer, make_learner, small_config

from pipeline import learner as learner_module
from pipeline.learner import Learner
from pipeline.profile import cuda
from pipeline.profile.options import warmup_rounds
from pipeline.ranks import ALONE
from saltus.device.cuda_graph import WARMUP_CALLS


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


class Compiled:
    """An update that compiles at its first call."""

    compiled = pending = False

    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, batch: None) -> dict[str, torch.Tensor]:
        self.compiled = True
        return {}


class Counted:
    """A captured function that counts its calls, and makes them."""

    def __init__(self, function: Callable[[], Any], *_: Any) -> None:
        self._function, self.calls = function, 0

    def __call__(self) -> Any:
        self.calls += 1
        return self._function()


class Batches:
    """A buffer whose batches are empty."""

    generator = None

    def sample(self, _size: int, count: int) -> list[None]:
        return [None] * count


@pytest.mark.parametrize(("delay", "updates"), [(1, 40), (2, 3), (3, 1), (3, 33), (7, 5), (20, 1), (20, 8), (20, 40)])
def test_the_warmup_captures_every_variant_of_a_round(
    delay: int, updates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds before all updates are compiled capture nothing."""
    monkeypatch.setattr(learner_module, "CompiledUpdate", Compiled)
    monkeypatch.setattr(learner_module, "CapturedFunction", Counted)
    config = small_config(compile=True, policy_delay=delay, utd_ratio=updates / 4)
    agent: Any = SimpleNamespace(
        config=config, device=None, ranks=ALONE, tensors=None, update=None, update_critic=None, update_actor=None
    )
    buffer: Any = Batches()
    learner = Learner(agent, capture=True)
    for _ in range(warmup_rounds(config)):
        learner.round(buffer, config.updates_per_round)
    rounds: Any = learner._captured_rounds
    warm = {*rounds}
    assert min(one.calls for one in rounds.values()) > WARMUP_CALLS
    for _ in range(2 * delay):
        learner.round(buffer, config.updates_per_round)
    assert {*rounds} == warm

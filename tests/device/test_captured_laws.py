"""The laws that `test_gpu_learning.py` tests on CUDA, with CUDA graphs recorded and replayed on the CPU."""

from __future__ import annotations

import captured_laws as laws
import pytest
import torch
import torch._inductor
from graph_recorder import record_on_cpu

from pipeline.profile import roofs

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:No target network updater")]


@pytest.fixture(autouse=True)
def _cpu_recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._inductor, "standalone_compile", lambda traced, *_, **__: traced)
    monkeypatch.setattr(roofs, "TURN", 0.0)  # measures each as short as it can
    record_on_cpu(monkeypatch)


def test_learning_rate_and_discount_change_between_captured_rounds() -> None:
    laws.learning_rate_and_discount_change_between_captured_rounds("cpu")


def test_released_rounds_are_captured_anew() -> None:
    laws.released_rounds_are_captured_anew("cpu")


def test_masked_resets_follow_captured_steps() -> None:
    pytest.importorskip("mujoco_warp")
    laws.masked_resets_follow_captured_steps("cpu", num_envs=4, max_contacts=24, max_constraints=96)


def test_members_learn_in_captured_rounds() -> None:
    laws.members_learn_in_captured_rounds("cpu")


def test_a_profile_is_complete() -> None:
    laws.profile_a_few_steps("cpu", "cpu", compile=False)

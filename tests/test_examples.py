"""The tasks in examples/ work: steps, episodes that end, and exact continuation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import envs

WITHOUT_SALTUS = {"run_exported_policy"}  # see tests/pipeline/test_export.py
EXAMPLES = sorted(
    path for path in (Path(__file__).parent.parent / "examples").glob("*.py") if path.stem not in WITHOUT_SALTUS
)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_steps_and_continues(path: Path):
    task = f"{path}:{path.stem.title()}"
    env, other = (envs.make(task, 16, seed=seed, max_episode_steps=20) for seed in (0, 1))
    env.reset()
    generator = torch.Generator().manual_seed(0)
    actions = [2 * torch.rand(16, env.action_dim, generator=generator) - 1 for _ in range(30)]
    for action in actions[:10]:
        env.step(action)
    state = env.get_state()
    other.set_state(state)
    for action in actions[10:]:
        (one, obs), (two, other_obs) = env.step(action), other.step(action)
        assert torch.equal(obs, other_obs)
        assert torch.equal(one["next", "reward"], two["next", "reward"])
    totals = env.statistics()
    assert totals["episodes"] >= 16
    assert totals["unstable"] == totals["nonfinite"] == 0

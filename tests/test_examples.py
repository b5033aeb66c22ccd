"""The tasks in examples/ step, end their episodes and continue exactly; its training loops of other libraries learn."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import envs
from saltus import GymnasiumVectorEnv

FOLDER = Path(__file__).parent.parent / "examples"
NO_TASKS = ("cleanrl_loop", "run_exported_policy", "train_on_gymnasium", "train_with_sb3")
# The second: see tests/pipeline/test_export.py. The third: see tests/pipeline/test_external_run.py.
TASKS = [path for path in sorted(FOLDER.glob("*.py")) if path.stem not in NO_TASKS]


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
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


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let examples/ be imported from."""
    monkeypatch.syspath_prepend(FOLDER)


@pytest.mark.slow
@pytest.mark.usefixtures("examples")
def test_ppo_in_cleanrls_style_learns():
    loop: Any = importlib.import_module("cleanrl_loop")
    untrained = loop.train(loop.Args(total_timesteps=0, learning_rate=0.0))
    assert untrained < 20
    assert loop.train(loop.Args(total_timesteps=16_384)) > 2 * untrained


@pytest.fixture
def with_sb3(examples: None) -> Any:
    """The module train_with_sb3."""
    pytest.importorskip("stable_baselines3")
    return importlib.import_module("train_with_sb3")


@pytest.mark.slow
def test_stable_baselines_trains_on_the_true_successors(with_sb3: Any):
    model, mean_return = with_sb3.train("InvertedPendulum-v5", 800, num_envs=4, learning_starts=400)
    assert mean_return > 0
    assert model._n_updates == 2 * 100
    buffer = model.replay_buffer
    stored, done = slice(buffer.pos - 1), buffer.dones[: buffer.pos - 1].astype(bool)
    fallen = np.abs(buffer.next_observations[stored][..., 1]) > 0.2
    assert np.array_equal(fallen, done)
    assert done.sum() > 10
    following = buffer.observations[1 : buffer.pos]
    assert np.array_equal(buffer.next_observations[stored][~done], following[~done])
    assert (np.abs(following[done]) < 0.02).all()


def test_stable_baselines_is_told_of_time_limits_and_seeds(with_sb3: Any):
    env = with_sb3.SaltusVecEnv(GymnasiumVectorEnv("Hopper-v5", 3, max_episode_steps=2))
    assert env.render_mode is None
    env.seed(4)
    first = env.reset()
    assert np.array_equal(first, GymnasiumVectorEnv("Hopper-v5", 3).reset(seed=4)[0])
    action = np.zeros((3, 3), np.float32)
    assert env.step(action)[3] == [{}, {}, {}]
    observation, reward, done, infos = env.step(action)
    assert done.all()
    assert reward.dtype == np.float32
    assert [info["TimeLimit.truncated"] for info in infos] == [True] * 3
    assert all((info["terminal_observation"] != row).any() for info, row in zip(infos, observation, strict=True))

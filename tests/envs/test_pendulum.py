"""Pendulum-v1 equals Gymnasium's bit for bit, although MuJoCo simulates it."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from env_helpers import Actions, same_bits, spy

import envs
from envs import BatchEnv
from envs.tasks.numpy_math import square_float32
from envs.tasks.pendulum import Pendulum

WORLDS = 5


def make(num_envs: int = WORLDS, **options: float) -> BatchEnv:
    return envs.make("Pendulum-v1", num_envs, seed=3, normalized_actions=False, **options)


def references(env: BatchEnv, **options: float) -> list[gymnasium.Env]:
    """Gymnasium's environments in the states of the worlds."""
    made = [gymnasium.make("Pendulum-v1", disable_env_checker=True, **options).unwrapped for _ in range(env.num_envs)]
    for world, reference in enumerate(made):
        put(env, world, reference)
    return made


def put(env: BatchEnv, world: int, reference: gymnasium.Env) -> None:
    reference.state = np.array([float(env.state.qpos[world]), float(env.state.qvel[world])])


@pytest.mark.parametrize("g", [10.0, 9.81, 49.0])
def test_steps_equal_gymnasium(g: float):
    env = make(g=g)
    rewards, draw = spy(env.task, "reward"), Actions(env, seed=1, scale=1.5)
    obs = env.reset()
    theirs, limited = references(env, g=g), 0
    for step in range(400):
        # Half of the time with the rotation, which reaches the limit of the speed.
        action = torch.where(obs[:, 2:] > 0, 2.5, -2.5) if step % 50 < 25 else draw()
        transition, obs = env.step(action)
        for world, reference in enumerate(theirs):
            observation, reward, terminated, _, _ = reference.step(action[world].numpy())
            assert float(rewards[-1][1][world]) == float(reward)
            assert same_bits(transition["next", "observation"][world], observation)
            assert not terminated
            assert not transition["next", "terminated"][world]
            limited += abs(reference.state[1]) == 8
            if transition["next", "done"][world]:
                put(env, world, reference)
            assert same_bits(torch.cat([env.state.qpos[world], env.state.qvel[world]]), reference.state)
            assert same_bits(obs[world], reference._get_obs())
    assert limited > 50
    assert env.statistics()["episodes"] == 2 * WORLDS


def test_squares_of_torques_equal_those_of_scalars():
    torques = torch.empty(20_000, 1).uniform_(-2, 2, generator=torch.Generator().manual_seed(0))
    ours = square_float32(torques, torch.zeros(1, dtype=torch.float64))
    assert same_bits(ours, np.array([[row[0] ** 2] for row in torques.numpy()], dtype=np.float32))
    assert not torch.equal(ours, torques.square())


def test_initial_states_have_gymnasiums_distribution():
    env = make(4_000)
    env.reset()
    for values, bound in ((env.state.qpos, np.pi), (env.state.qvel, 1.0)):
        fractions = (values.flatten().sort().values / bound + 1) / 2
        uniform = torch.linspace(0, 1, len(fractions), dtype=torch.float64)
        assert float((fractions - uniform).abs().max()) < 1.95 / len(fractions) ** 0.5  # Kolmogorov-Smirnov, p = 0.001
    assert abs(float(torch.corrcoef(torch.stack([env.state.qpos[:, 0], env.state.qvel[:, 0]]))[0, 1])) < 0.06


def test_sizes_bounds_and_limit_equal_gymnasium():
    env, reference = make(), gymnasium.make("Pendulum-v1").unwrapped
    assert env.observation_dim == reference.observation_space.shape[0]
    assert same_bits(env.action_low, reference.action_space.low)
    assert same_bits(env.action_high, reference.action_space.high)
    assert Pendulum().max_episode_steps == gymnasium.spec("Pendulum-v1").max_episode_steps == 200
    assert Pendulum().g == reference.g
    assert env.task.dt == reference.dt


def test_model_shows_the_angle():
    """The rod points up at 0, and turns counter-clockwise in the picture, as Gymnasium draws it."""
    env = make(2)
    env.reset()
    env.set_qpos_qvel(torch.tensor([[0.0], [np.pi / 2]], dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64))
    up, left = (env.physics.mj_data(world) for world in range(2))
    camera = up.cam_xmat[0].reshape(3, 3)
    tip = {name: camera.T @ data.xmat[1].reshape(3, 3)[:, 2] for name, data in (("up", up), ("left", left))}
    np.testing.assert_allclose(tip["up"], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(tip["left"], [-1, 0, 0], atol=1e-12)

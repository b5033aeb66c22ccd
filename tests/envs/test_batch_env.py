"""BatchEnv: transitions, time limits, initial states, seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from env_helpers import NAMES, Actions, CartBall, equal, qpos_qvel, spy
from tensordict import TensorDict

import envs
from envs import BatchEnv, Task
from envs import transition as transitions
from saltus.errors import SaltusError

TASKS: list[Any] = [*NAMES, CartBall]


def make(task: str | type[Task], num_envs: int = 4, seed: int = 0, **options: Any) -> BatchEnv:
    return envs.make(task, num_envs, seed=seed, **options)


# The transition contract


def test_environments_work_in_inference_mode():
    with torch.inference_mode():
        env = make("Hopper-v5")
        env.reset()
        env.step(torch.zeros(4, env.action_dim))


@pytest.mark.parametrize("task", TASKS)
def test_transitions_satisfy_the_contract(task: Any):
    env = make(task, 5, max_episode_steps=9)
    draw = Actions(env, scale=1.2)
    obs = env.reset()
    for _ in range(40):
        assert obs.shape == (5, env.observation_dim)
        assert obs.dtype == torch.float32
        action = draw()
        transition, next_obs = env.step(action)
        transitions.check(transition, env.observation_dim, env.action_dim)
        assert transition.batch_size == (5,)
        assert torch.equal(transition["observation"], obs)
        assert torch.equal(transition["action"], action)
        end = transition["next"]
        assert torch.equal(end["done"], end["terminated"] | end["truncated"])
        alive = ~end["done"].squeeze(-1)
        assert torch.equal(end["observation"][alive], next_obs[alive])
        obs = next_obs


def test_zeros_make_a_transition_of_num_bytes():
    zeros = transitions.zeros(6, 11, 3)
    transitions.check(zeros, 11, 3)
    assert sum(value.numel() * value.element_size() for value in zeros.values(True, True)) == 6 * (
        transitions.num_bytes(11, 3)
    )
    assert all(not value.any() for value in zeros.values(True, True))


@pytest.mark.parametrize("key", transitions.layout(1, 1))
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda value: None, "no entry"),
        (lambda value: value.double(), "float64"),
        (lambda value: value.repeat(1, 2), r"expected .* of shape"),
        (lambda value: value.unsqueeze(-1), r"expected .* of shape"),
    ],
)
def test_check_names_the_wrong_entry(key: Any, spoil: Callable, message: str):
    transition = transitions.zeros(4, 2, 2)
    value = spoil(transition[key])
    if value is None:
        del transition[key]
    else:
        transition[key] = value
    with pytest.raises(SaltusError, match=message) as error:
        transitions.check(transition, 2, 2)
    assert repr(key) in str(error.value)


def test_check_refuses_two_batch_axes():
    transition = TensorDict({key: value[None] for key, value in transitions.zeros(4, 2, 2).items()}, batch_size=[1, 4])
    with pytest.raises(SaltusError, match="batch size"):
        transitions.check(transition, 2, 2)


# Ends of episodes


@pytest.mark.parametrize("task", TASKS)
def test_final_observations_are_true_successors(task: Any):
    env = make(task, 6, seed=2, max_episode_steps=11)
    observations = spy(env.task, "observation")
    draw = Actions(env)
    env.reset()
    ends = 0
    for _ in range(60):
        observations.clear()
        transition, obs = env.step(draw())
        done = transition["next", "done"].squeeze(-1)
        assert torch.equal(transition["next", "observation"], observations[0][1].float())
        if done.any():
            first = observations[-1][1].float()
            assert torch.equal(obs[done], first[done])
            assert (transition["next", "observation"][done] != obs[done]).any(dim=-1).all()
        ends += int(done.sum())
    assert ends >= 30


@pytest.mark.parametrize("task", TASKS)
def test_time_limit_changes_only_the_flag(task: Any):
    """The successor at the limit equals the one without a limit."""
    limited, free = (make(task, 3, seed=4, max_episode_steps=limit) for limit in (4, 1000))
    draw = Actions(free)
    limited.reset()
    free.reset()
    for step in range(1, 5):
        action = draw()
        (ours, _), (theirs, _) = limited.step(action), free.step(action)
        assert ours["next", "truncated"].all() == (step == 4)
        assert not theirs["next", "truncated"].any()
        for key in ("observation", "reward", "terminated"):
            assert torch.equal(ours["next", key], theirs["next", key])


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_time_limits_truncate_and_do_not_terminate(limit: int):
    env = make("HalfCheetah-v5", 3, max_episode_steps=limit)
    draw = Actions(env)
    env.reset()
    for step in range(1, 3 * limit + 1):
        transition, _ = env.step(draw())
        assert not transition["next", "terminated"].any()
        assert (transition["next", "truncated"] == (step % limit == 0)).all()


def test_each_world_counts_its_own_steps():
    limit = 12
    env = make("InvertedPendulum-v5", 8, seed=1, max_episode_steps=limit, reset_noise_scale=0.1)
    draw = Actions(env)
    env.reset()
    elapsed = torch.zeros(8, dtype=torch.int64)
    terminations = truncations = 0
    for _ in range(150):
        transition, _ = env.step(draw())
        end = transition["next"].squeeze(-1)
        elapsed += 1
        assert torch.equal(end["truncated"].squeeze(-1), elapsed == limit)
        elapsed[end["done"].squeeze(-1)] = 0
        terminations += int(end["terminated"].sum())
        truncations += int(end["truncated"].sum())
    assert terminations > 10
    assert truncations > 10


def test_termination_at_the_limit_sets_both_flags():
    env = make(CartBall, 2, max_episode_steps=1)
    env.task.reach = 0.0  # after the checks at construction
    env.reset()
    end = env.step(Actions(env)())[0]["next"]
    assert end["terminated"].all()
    assert end["truncated"].all()


def test_reset_starts_an_episode_in_every_world():
    env = make("HalfCheetah-v5", 3, max_episode_steps=10)
    draw = Actions(env)
    first = env.reset()
    for _ in range(6):
        env.step(draw())
    assert not torch.equal(env.reset(), first)
    assert env.statistics()["episodes"] == 0
    for step in range(1, 11):
        transition, _ = env.step(draw())
        assert (transition["next", "done"] == (step == 10)).all()


# Initial states


NOISY = [name for name in NAMES if hasattr(envs.find_task(name), "reset_noise_scale")]
NORMAL_VELOCITIES = {"Ant-v5", "HalfCheetah-v5", "InvertedDoublePendulum-v5"}


def our_noise(name: str, episodes: int) -> tuple[np.ndarray, np.ndarray]:
    starts = []
    for seed in range(episodes // 200):  # in batches, to limit memory
        env = make(name, 200, seed=seed)
        env.reset()
        qpos, qvel = qpos_qvel(env)
        starts.append(((qpos - env.task.qpos0).numpy(), qvel.numpy()))
    qpos_noise, qvel_noise = map(np.concatenate, zip(*starts, strict=True))
    return qpos_noise, qvel_noise


def gymnasium_noise(name: str, episodes: int) -> tuple[np.ndarray, np.ndarray]:
    env = gymnasium.make(name, disable_env_checker=True).unwrapped
    env.reset(seed=7)
    starts = []
    for _ in range(episodes):
        env.reset()
        starts.append((env.data.qpos - env.model.qpos0, env.data.qvel.copy()))
    return tuple(np.stack(part) for part in zip(*starts, strict=True))


def kolmogorov_smirnov(one: np.ndarray, other: np.ndarray) -> float:
    """The two-sample statistic, scaled: values above 2.7 have a probability of one in a million."""
    one, other = np.sort(one.ravel()), np.sort(other.ravel())
    points = np.concatenate([one, other])
    gap = np.searchsorted(one, points, side="right") / one.size - np.searchsorted(other, points, side="right") / (
        other.size
    )
    return float(np.abs(gap).max() * math.sqrt(one.size * other.size / (one.size + other.size)))


@pytest.mark.parametrize("name", NOISY)
def test_initial_states_have_gymnasium_distribution(name: str):
    scale = envs.find_task(name)().reset_noise_scale
    for ours, theirs, normal in zip(
        our_noise(name, 3000), gymnasium_noise(name, 600), (False, name in NORMAL_VELOCITIES), strict=True
    ):
        assert kolmogorov_smirnov(ours, theirs) < 2.7
        deviation = scale if normal else scale / math.sqrt(3)
        assert np.allclose(ours.std(axis=0), deviation, rtol=0.06)
        assert np.allclose(ours.mean(axis=0), 0, atol=5 * deviation / math.sqrt(len(ours)))
        if normal:
            assert np.abs(ours).max() > 3 * scale
        else:
            assert np.abs(ours).max() <= scale
            assert np.abs(ours).max(axis=0).min() > 0.99 * scale
        correlation = np.corrcoef(ours, rowvar=False) - np.eye(ours.shape[1])
        assert np.abs(correlation).max() < 5 / math.sqrt(len(ours))


def positions_and_velocities(noise: tuple[np.ndarray, np.ndarray], goal: slice) -> np.ndarray:
    """Coordinates of initial states, and the distance and direction of `goal`, the columns of an object in qpos."""
    qpos, qvel = noise
    x, y = qpos[:, goal].T
    return np.column_stack([qpos, qvel, np.hypot(x, y), np.arctan2(y, x)])


@pytest.mark.parametrize(("name", "default"), [("Reacher-v5", [0.1, -0.1]), ("Pusher-v5", [0.0, 0.0])])
def test_goals_and_objects_start_with_gymnasium_distribution(name: str, default: list[float]):
    """Gymnasium rejects points of a rectangle: goals lie within 0.2 of the centre, objects beyond 0.17."""
    moved = slice(-2, None) if name == "Reacher-v5" else slice(-4, -2)
    ours, theirs = our_noise(name, 5000), gymnasium_noise(name, 2000)
    for qpos, _ in (ours, theirs):
        qpos[:, moved] += default
    ours, theirs = (positions_and_velocities(noise, moved) for noise in (ours, theirs))
    statistics = [kolmogorov_smirnov(*columns) for columns in zip(ours.T, theirs.T, strict=True)]
    assert max(statistics) < 2.7, statistics
    distance = ours[:, -2]
    assert distance.max() < 0.2 if name == "Reacher-v5" else distance.min() > 0.17
    still = theirs.std(axis=0) == 0
    assert (ours.std(axis=0) == 0).tolist() == still.tolist()
    assert np.abs(np.corrcoef(ours[:, :-2][:, ~still[:-2]], rowvar=False) - np.eye((~still[:-2]).sum())).max() < 0.1


@pytest.mark.parametrize("name", NOISY)
def test_noise_scale_is_an_option(name: str):
    env = make(name, 500, reset_noise_scale=0.02)
    env.reset()
    noise = qpos_qvel(env)[0] - env.task.qpos0
    assert 0.019 < float(noise.abs().max()) <= 0.02
    env = make(name, 5, reset_noise_scale=0.0)
    env.reset()
    qpos, qvel = qpos_qvel(env)
    assert (qpos == env.task.qpos0).all()
    assert not qvel.any()


def starts(env: BatchEnv, steps: int) -> torch.Tensor:
    """First observations of all episodes that start within `steps` steps."""
    draw = Actions(env)
    found = [env.reset().clone()]
    for _ in range(steps):
        transition, obs = env.step(draw())
        found.append(obs[transition["next", "done"].squeeze(-1)].clone())
    return torch.cat(found)


@pytest.mark.parametrize("task", TASKS)
def test_every_episode_draws_its_own_initial_state(task: Any):
    drawn = starts(make(task, 8, max_episode_steps=3), 30)
    assert len(drawn) >= 88
    assert len(drawn.unique(dim=0)) == len(drawn)


@pytest.mark.parametrize("task", ["Hopper-v5", "HalfCheetah-v5", "Pusher-v5", CartBall])
def test_a_mask_begins_episodes_in_its_worlds_only(task: Any):
    env, reference = (make(task, 4, seed=2, max_episode_steps=9) for _ in range(2))
    draw, mask = Actions(env), torch.tensor([True, False, True, False])
    env.reset()
    reference.reset()
    for _ in range(3):
        action = draw()
        _, before = env.step(action)
        reference.step(action)
    after = env.reset(mask)
    assert torch.equal(after[~mask], before[~mask])
    assert (after[mask] != before[mask]).any(dim=1).all()
    ends = torch.zeros(4, dtype=torch.int64)
    for step in range(1, 7):
        action = draw()
        (ours, _), (theirs, _) = env.step(action), reference.step(action)
        assert torch.equal(ours["next", "observation"][~mask], theirs["next", "observation"][~mask])
        ends = torch.where((ends == 0) & ours["next", "truncated"].squeeze(-1), step, ends)
    assert not ends[mask].any()
    assert (ends[~mask] == 6).all()


# Seeds


@pytest.mark.parametrize("task", TASKS)
def test_seed_reproduces_everything_on_any_number_of_threads(task: Any):
    one, other = (make(task, 4, seed=11, max_episode_steps=13, num_threads=threads) for threads in (1, 3))
    draw = Actions(one)
    assert torch.equal(one.reset(), other.reset())
    for _ in range(40):
        action = draw()
        (ours, obs), (theirs, their_obs) = one.step(action), other.step(action)
        assert equal(ours, theirs)
        assert torch.equal(obs, their_obs)
    assert one.statistics() == other.statistics()


@pytest.mark.parametrize("task", TASKS)
def test_seed_after_some_steps_equals_that_of_a_new_environment(task: Any):
    one, other = (make(task, 4, seed=seed, max_episode_steps=5) for seed in (1, 2**40))
    draw = Actions(one)
    one.reset()
    one.step(draw())
    one.seed(2**40)
    assert torch.equal(one.reset(), other.reset())
    for _ in range(12):
        action = draw()
        assert torch.equal(one.step(action)[1], other.step(action)[1])


def test_seeds_share_no_initial_state():
    drawn = torch.cat([starts(make("Hopper-v5", 8, seed=seed, max_episode_steps=3), 30) for seed in range(12)])
    assert len(drawn.unique(dim=0)) == len(drawn) >= 12 * 88


@pytest.mark.parametrize("seed", [1 + 2**32, 1 + 2**40])
def test_seeds_that_differ_in_high_bits_share_no_initial_state(seed: int):
    """torch's CPU generator uses only the low 32 bits of its seed."""
    drawn = torch.cat([make("Hopper-v5", 8, seed=s).reset() for s in (1, seed)])
    assert len(drawn.unique(dim=0)) == len(drawn)


def test_global_random_state_is_not_used():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    env = make("Hopper-v5", 4, seed=1, max_episode_steps=3)
    draw = Actions(env)
    one = env.reset().clone()
    for _ in range(6):
        env.step(draw())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(make("Hopper-v5", 4, seed=1).reset(), one)

"""BatchEnv: transitions, time limits, initial states, seeds, saved states, ownership, totals."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from env_helpers import NAMES, WARP_MEMORY, Actions, CartBall, equal, qpos_qvel, spy
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

import envs
from envs import BatchEnv, Simulation, Task
from envs import transition as transitions

TASKS: list[Any] = [*NAMES, CartBall]


def make(task: str | type[Task], num_envs: int = 4, seed: int = 0, **options: Any) -> BatchEnv:
    return envs.make(task, num_envs, seed=seed, **options)


# The transition contract


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
    with pytest.raises(ValueError, match=message) as error:
        transitions.check(transition, 2, 2)
    assert repr(key) in str(error.value)


def test_check_refuses_two_batch_axes():
    transition = TensorDict({key: value[None] for key, value in transitions.zeros(4, 2, 2).items()}, batch_size=[1, 4])
    with pytest.raises(ValueError, match="batch size"):
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
    env = make(CartBall, 2, max_episode_steps=1, reach=0.0)
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
        starts.append((env.data.qpos - env.init_qpos, env.data.qvel - env.init_qvel))
    return tuple(np.stack(part) for part in zip(*starts, strict=True))


def kolmogorov_smirnov(one: np.ndarray, other: np.ndarray) -> float:
    """The two-sample statistic, scaled: values above 2.7 have a probability of one in a million."""
    one, other = np.sort(one.ravel()), np.sort(other.ravel())
    points = np.concatenate([one, other])
    gap = np.searchsorted(one, points, side="right") / one.size - np.searchsorted(other, points, side="right") / (
        other.size
    )
    return float(np.abs(gap).max() * math.sqrt(one.size * other.size / (one.size + other.size)))


@pytest.mark.parametrize("name", NAMES)
def test_initial_states_have_gymnasium_distribution(name: str):
    scale = envs.find_task(name)().reset_noise_scale
    for ours, theirs, normal in zip(
        our_noise(name, 3000), gymnasium_noise(name, 600), (False, name == "HalfCheetah-v5"), strict=True
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


@pytest.mark.parametrize("name", NAMES)
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


# Saved states


def advance(env: BatchEnv, actions: list[torch.Tensor]) -> list[tuple[TensorDictBase, torch.Tensor]]:
    return [env.step(action) for action in actions]


@pytest.mark.parametrize("through_a_file", [False, True], ids=["in memory", "through a file"])
@pytest.mark.parametrize("new_env", [False, True], ids=["same env", "new env"])
@pytest.mark.parametrize("task", TASKS)
def test_state_continues_bit_for_bit(task: Any, new_env: bool, through_a_file: bool, tmp_path: Path):
    env = make(task, 4, seed=6, max_episode_steps=25)
    draw = Actions(env, scale=1.2)
    env.reset()
    advance(env, [draw() for _ in range(40)])
    state = env.get_state()
    if through_a_file:
        torch.save(state.to_dict(), tmp_path / "state.pt")
        kept = torch.load(tmp_path / "state.pt", weights_only=True)
    else:
        kept = state.clone()
    actions = [draw() for _ in range(60)]
    expected = advance(env, actions)
    totals = env.statistics()
    assert sum(int(transition["next", "done"].sum()) for transition, _ in expected) >= 8

    assert equal(state, TensorDict(kept))  # later steps did not change it
    if new_env:
        env = make(task, 4, seed=1234, max_episode_steps=25)
    for _ in range(2):  # the second time after other steps
        env.set_state(kept)
        assert equal(env.get_state(), TensorDict(kept))
        for (ours, obs), (theirs, their_obs) in zip(advance(env, actions), expected, strict=True):
            assert equal(ours, theirs)
            assert torch.equal(obs, their_obs)
        assert env.statistics() == totals


def test_state_right_after_reset_continues():
    env = make("Humanoid-v5", 2, seed=3)
    env.reset()
    state = env.get_state()
    actions = [Actions(env)() for _ in range(5)]
    expected = advance(env, actions)
    env.set_state(state)
    assert all(equal(a[0], b[0]) for a, b in zip(advance(env, actions), expected, strict=True))


def test_steps_do_not_change_a_given_state():
    """set_state copies."""
    env = make("Hopper-v5", 3, seed=3, max_episode_steps=10)
    draw = Actions(env)
    env.reset()
    advance(env, [draw() for _ in range(5)])
    state = env.get_state()
    kept = state.clone()
    env.set_state(state)
    advance(env, [draw() for _ in range(20)])
    env.reset()
    assert equal(state, kept)


@pytest.mark.parametrize("task", ["Hopper-v5", "Humanoid-v5", CartBall])
def test_mutating_a_given_state_does_not_change_the_env(task: Any):
    """set_state copies."""
    env = make(task, 3, seed=3)
    draw = Actions(env)
    env.reset()
    advance(env, [draw() for _ in range(5)])
    state = env.get_state()
    actions = [draw() for _ in range(10)]
    expected = advance(env, actions)
    env.set_state(state)
    spoil(state)
    assert all(equal(ours[0], theirs[0]) for ours, theirs in zip(advance(env, actions), expected, strict=True))


@pytest.mark.parametrize("other", [{"num_envs": 3}, {"task": "InvertedPendulum-v5"}, {"task": "Humanoid-v5"}])
def test_state_of_another_env_is_refused_without_effect(other: dict[str, Any]):
    env = make("Hopper-v5", 4, seed=0)
    env.reset()
    before = env.get_state()
    other_env = make(**{"task": "Hopper-v5", "num_envs": 4} | other)
    other_env.reset()
    with pytest.raises(ValueError, match=r"worlds|state|fields|shape"):
        env.set_state(other_env.get_state())
    assert equal(env.get_state(), before)


def test_get_state_before_reset_is_refused():
    with pytest.raises(RuntimeError, match="reset"):
        make("Hopper-v5", 2).get_state()


@pytest.mark.parametrize("physics", ["cpu", "warp"])
def test_set_qpos_qvel_keeps_the_episode(physics: str):
    options = {"physics": physics, "max_episode_steps": 4} | (
        WARP_MEMORY["HalfCheetah-v5"] if physics == "warp" else {}
    )
    one, other = (make("HalfCheetah-v5", 3, seed=seed, **options) for seed in (1, 2))
    draw = Actions(one)
    for env in (one, other):
        env.reset()
    advance(one, [draw() for _ in range(2)])
    qpos, qvel = qpos_qvel(one)
    for env in (one, other):
        env.set_qpos_qvel(qpos, qvel)
    for done in (False, True):
        action = draw()
        (left, _), (right, _) = one.step(action), other.step(action)
        for key in ("observation", ("next", "observation"), ("next", "reward")):
            assert torch.equal(left[key], right[key])
        assert (left["next", "truncated"] == done).all(), "the step count changed"
        assert not right["next", "truncated"].any()


def test_set_qpos_qvel_before_reset_is_refused():
    env = make("Hopper-v5", 2)
    with pytest.raises(RuntimeError, match=r"call reset\(\) before set_qpos_qvel\(\)"):
        env.set_qpos_qvel(torch.zeros(2, 6), torch.zeros(2, 6))


@pytest.mark.parametrize("shapes", [((2, 5), (2, 6)), ((1, 6), (2, 6)), ((2, 6), (2, 7))])
def test_qpos_qvel_of_wrong_shape_are_refused(shapes: tuple[tuple[int, int], tuple[int, int]]):
    env = make("Hopper-v5", 2)
    env.reset()
    with pytest.raises(
        ValueError, match=r"qpos and qvel are \(\d, \d\) and \(\d, \d\); expected \(\(2, 6\), \(2, 6\)\)"
    ):
        env.set_qpos_qvel(*(torch.zeros(shape) for shape in shapes))


# Ownership


@pytest.mark.parametrize("task", TASKS)
def test_returned_tensors_are_never_overwritten(task: Any):
    env = make(task, 4, max_episode_steps=7)
    draw = Actions(env)
    returned = [TensorDict({"obs": env.reset()})]
    kept = [returned[0].clone()]
    for _ in range(25):
        transition, obs = env.step(draw())
        returned.append(TensorDict({"transition": transition, "obs": obs, "terms": dict(env.reward_terms)}))
        kept.append(returned[-1].clone())
    assert all(equal(one, other) for one, other in zip(returned, kept, strict=True))


def test_transition_keeps_its_action_when_the_caller_reuses_the_tensor():
    env = make("Hopper-v5", 4)
    draw = Actions(env)
    env.reset()
    buffer, first = torch.empty(4, 3), draw()
    buffer.copy_(first)
    transition, _ = env.step(buffer)
    buffer.copy_(draw())
    assert torch.equal(transition["action"], first)


@pytest.mark.parametrize("execution", ["host", "device"])
@pytest.mark.parametrize(("task", "physics"), [("Hopper-v5", "cpu"), (CartBall, "cpu"), ("Hopper-v5", "warp")])
def test_state_keeps_its_addresses(task: Any, physics: str, execution: Any):
    """CUDA graphs read and write persistent state at fixed addresses."""
    env = BatchEnv(
        envs.find_task(task)(max_episode_steps=3) if isinstance(task, str) else task(max_episode_steps=3),
        3,
        simulation=Simulation(physics=physics, **WARP_MEMORY[task] if physics == "warp" else {}),
        execution=execution,
    )
    draw = Actions(env)

    def addresses() -> list[int]:
        tensors = [*env.state.values().values(), *(value for value in vars(env).values() if isinstance(value, Tensor))]
        handed_out = (env.failed,)  # replaced at every step
        totals = env._statistics.totals.values()
        return [one.data_ptr() for one in [*tensors, *totals] if all(one is not other for other in handed_out)]

    before = addresses()
    assert len(before) >= 2 + 3 + 8
    env.reset()
    state = env.get_state()
    for _ in range(4):
        env.step(draw())
    env.set_qpos_qvel(*qpos_qvel(env))
    env.set_state(state)
    env.step(draw())
    env.reset()
    assert addresses() == before


def spoil(value: Any) -> None:
    for part in value.values(True, True) if isinstance(value, TensorDictBase) else [value]:
        part.fill_(True if part.dtype == torch.bool else 77)


@pytest.mark.parametrize("what", ["reset observation", "observation", "transition", "state", "bounds", "reward terms"])
@pytest.mark.parametrize("task", ["Humanoid-v5", CartBall])
def test_mutating_returned_tensors_does_not_change_the_env(task: Any, what: str):
    env, untouched = (make(task, 3, seed=8, max_episode_steps=9) for _ in range(2))
    draw = Actions(untouched)
    obs, their_obs = env.reset(), untouched.reset()
    if what == "reset observation":
        spoil(obs)
    for _ in range(25):
        action = draw()
        (ours, obs), (theirs, their_obs) = env.step(action.clone()), untouched.step(action)
        assert equal(ours, theirs)
        assert torch.equal(obs, their_obs)
        if what == "observation":
            spoil(obs)
        elif what == "transition":
            spoil(ours)
            assert torch.equal(obs, their_obs)
        elif what == "state":
            spoil(env.get_state())
        elif what == "reward terms":
            for term in env.reward_terms.values():
                spoil(term)
        elif what == "bounds":
            spoil(env.action_low)
            spoil(env.action_high)
    assert env.statistics() == untouched.statistics()


def test_mutating_a_transition_does_not_change_others():
    env = make("HalfCheetah-v5", 3, max_episode_steps=5)
    draw = Actions(env)
    env.reset()
    returned = [env.step(draw())[0] for _ in range(12)]
    kept = [transition.clone() for transition in returned]
    for i in range(1, 12, 2):
        spoil(returned[i])
    assert all(equal(one, other) for one, other in zip(returned[::2], kept[::2], strict=True))


# Totals


@pytest.mark.parametrize("task", ["Hopper-v5", "Humanoid-v5", CartBall])
def test_statistics_equal_a_manual_count(task: Any):
    env = make(task, 5, seed=9, max_episode_steps=30)
    draw = Actions(env)
    env.reset()
    returns, lengths = torch.zeros(5, dtype=torch.float64), torch.zeros(5)
    total: dict[str, float] = dict.fromkeys(["reward", "episodes", "episode_return", "episode_length"], 0.0)
    terms: dict[str, float] = {}
    for _ in range(90):
        transition, _ = env.step(draw())
        reward, done = transition["next", "reward"].squeeze(-1), transition["next", "done"].squeeze(-1)
        returns, lengths = returns + reward, lengths + 1
        total["reward"] += float(reward.double().sum())
        total["episodes"] += int(done.sum())
        total["episode_return"] += float(returns[done].sum())
        total["episode_length"] += float(lengths[done].sum())
        for name, term in env.reward_terms.items():
            terms[f"reward_terms/{name}"] = terms.get(f"reward_terms/{name}", 0.0) + float(term.double().sum())
        returns[done], lengths[done] = 0.0, 0.0
    assert total["episodes"] >= 10
    expected = total | terms | {"steps": 450, "unstable": 0, "nonfinite": 0, "overflowed": 0}
    assert env.statistics() == pytest.approx(expected, rel=1e-12, abs=1e-9)
    assert math.isclose(total["reward"], sum(terms.values()), rel_tol=1e-5)


def test_reading_statistics_has_no_effect():
    env, unread = (make("Hopper-v5", 3, max_episode_steps=5) for _ in range(2))
    draw = Actions(env)
    env.reset()
    unread.reset()
    for _ in range(12):
        action = draw()
        env.statistics()
        assert equal(env.step(action)[0], unread.step(action)[0])
    assert env.statistics() == env.statistics() == unread.statistics()


def test_episode_interrupted_by_reset_is_not_counted():
    env = make("HalfCheetah-v5", 2, max_episode_steps=10)
    draw = Actions(env)
    env.reset()
    advance(env, [draw() for _ in range(8)])
    env.reset()
    rewards = [
        transition["next", "reward"].double().sum() for transition, _ in advance(env, [draw() for _ in range(10)])
    ]
    totals = env.statistics()
    assert (totals["steps"], totals["episodes"], totals["episode_length"]) == (36, 2, 20)
    assert totals["episode_return"] == pytest.approx(float(sum(rewards)))

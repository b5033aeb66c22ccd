"""BatchEnv: saved states, ownership of tensors, fixed addresses, totals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from env_helpers import NAMES, WARP_MEMORY, Actions, CartBall, equal, qpos_qvel
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

import envs
from envs import BatchEnv, Simulation, State, Task
from envs.validation import check_state
from saltus.errors import SaltusError

TASKS: list[Any] = [*NAMES, CartBall]


def make(task: str | type[Task], num_envs: int = 4, seed: int = 0, **options: Any) -> BatchEnv:
    return envs.make(task, num_envs, seed=seed, **options)


# Saved states


def advance(env: BatchEnv, actions: list[torch.Tensor]) -> list[tuple[TensorDictBase, torch.Tensor]]:
    return [env.step(action) for action in actions]


@pytest.mark.parametrize("task", TASKS)
def test_state_continues_bit_for_bit(task: Any, tmp_path: Path):
    """In memory and through a file, in the same environment and in a new one."""
    env, new_env = (make(task, 4, seed=seed, max_episode_steps=15) for seed in (6, 1234))
    draw = Actions(env, scale=1.2)
    env.reset()
    advance(env, [draw() for _ in range(24)])
    state = env.get_state()
    torch.save(state.to_dict(), tmp_path / "state.pt")
    kept, loaded = state.clone(), torch.load(tmp_path / "state.pt", weights_only=True)
    actions = [draw() for _ in range(40)]
    expected = advance(env, actions)
    totals = env.statistics()
    assert sum(int(transition["next", "done"].sum()) for transition, _ in expected) >= 8

    assert equal(state, kept)  # later steps did not change it
    for restored, one in ((kept, env), (loaded, env), (kept, new_env), (loaded, new_env)):  # also after other steps
        one.set_state(restored)
        assert equal(one.get_state(), TensorDict(restored))
        for (ours, obs), (theirs, their_obs) in zip(advance(one, actions), expected, strict=True):
            assert equal(ours, theirs)
            assert torch.equal(obs, their_obs)
        assert one.statistics() == totals


def test_state_right_after_reset_continues():
    env = make("Humanoid-v5", 2, seed=3)
    env.reset()
    state = env.get_state()
    actions = [Actions(env)() for _ in range(5)]
    expected = advance(env, actions)
    env.set_state(state)
    assert all(equal(a[0], b[0]) for a, b in zip(advance(env, actions), expected, strict=True))


@pytest.mark.parametrize("physics", ["cpu", "warp"])
def test_reset_of_some_worlds_keeps_the_restored_fields_of_the_others(physics: str):
    memory = WARP_MEMORY[CartBall] if physics == "warp" else {}
    env, other = (make(CartBall, 3, seed=seed, physics=physics, **memory) for seed in (1, 2))
    draw = Actions(env)
    for one in (env, other):
        one.reset()
    advance(env, [draw() for _ in range(3)])
    other.set_state(env.get_state())
    mask = torch.tensor([True, False, False])
    assert torch.equal(other.reset(mask), env.reset(mask))
    for name, values in env.state.values().items():
        assert torch.equal(other.state.values()[name], values), name
    action = draw()
    assert equal(other.step(action)[0], env.step(action)[0])


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


OTHER_ENVS: list[tuple[dict[str, Any], str]] = [
    ({"num_envs": 3}, r"state\['observation'\] has shape \(3, 11\); expected \(4, 11\)"),
    ({"task": "InvertedPendulum-v5"}, r"state\['observation'\] has shape \(4, 4\); expected \(4, 11\)"),
    ({"task": "Humanoid-v5"}, r"state\['observation'\] has shape \(4, 348\); expected \(4, 11\)"),
    ({"task": CartBall}, r"state\['observation'\] has shape"),
    (
        {"physics": "warp", **WARP_MEMORY["Hopper-v5"]},
        r"state\['fields'\]\['qpos'\] is torch.float32; expected torch.float64",
    ),
]


@pytest.mark.parametrize(("other", "message"), OTHER_ENVS, ids=["worlds", "task", "larger task", "file", "engine"])
def test_state_of_another_env_is_refused_without_effect(other: dict[str, Any], message: str):
    env = make("Hopper-v5", 4, seed=0)
    env.reset()
    before = env.get_state()
    other_env = make(**{"task": "Hopper-v5", "num_envs": 4} | other)
    other_env.reset()
    with pytest.raises(SaltusError, match=f"this state is of another environment: {message}"):
        env.set_state(other_env.get_state())
    assert equal(env.get_state(), before)


def test_only_known_entries_may_be_missing_in_a_state_and_none_may_be_added():
    zeros = torch.zeros(2)
    check_state({"physics": {}}, {"failed_starts": zeros, "physics": {"cvel": zeros, "cdof_dot": zeros}})
    fewer, more = {"fields": {"qpos": zeros}}, {"fields": {"qpos": zeros, "cvel": zeros}}
    for state, expected in ((fewer, more), (more, fewer)):
        with pytest.raises(SaltusError, match=r"of another environment: state\['fields'\] has \[.*\]; expected \["):
            check_state(state, expected)


@pytest.mark.parametrize("value", [{}, None, 3, np.zeros(2), torch.zeros(4, 11, dtype=torch.int32)])
def test_entries_of_other_types_are_refused_without_effect(value: Any):
    env = make("Hopper-v5", 4, seed=0)
    env.reset()
    before = env.get_state()
    message = r"state\['fields'\]\['qpos'\] is .*; expected .*torch.float64"
    with pytest.raises(SaltusError, match=message):
        env.set_state({**before, "fields": {**before["fields"], "qpos": value}})
    with pytest.raises(SaltusError, match=r"state\['fields'\] is .*; expected a mapping with \['"):
        env.set_state({**before, "fields": torch.zeros(4)})
    with pytest.raises(SaltusError, match="state is a NoneType; expected a mapping"):
        env.set_state(None)
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
        ValueError, match=r"set_qpos_qvel: qpos and qvel are \(\d, \d\) and \(\d, \d\); expected \(\(2, 6\), \(2, 6\)\)"
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
        attributes = (*vars(env).values(), *vars(env._episodes).values())
        tensors = [*env.state.values().values(), *(value for value in attributes if isinstance(value, Tensor))]
        handed_out = (env.failed,)  # replaced at every step
        totals = env._episodes.statistics.totals.values()
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


@pytest.mark.parametrize("later", [{}, {"height": "other"}], ids=["fewer", "others"])
def test_a_reward_whose_terms_change_is_refused(later: dict[str, str]):
    class Changing(CartBall):
        names: ClassVar[list[str]] = ["height"]

        def reward(self, state: State, action: Tensor, next_state: State) -> tuple[Tensor, dict[str, Tensor]]:
            value, names = next_state.qpos[:, 0], self.names
            return value, dict.fromkeys(names, value)

    env = envs.make(Changing, 2)
    env.reset()
    Changing.names = list(later.values())
    with pytest.raises(
        SaltusError, match=r"Changing\.reward returned the terms .*, and \['height'\] when .*: return the"
    ):
        env.step(torch.zeros(2, 2))

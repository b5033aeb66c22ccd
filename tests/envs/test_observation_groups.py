"""Observation groups and observation noise: the two groups are parts of one observation, drawn once for each state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from env_helpers import Actions, CartBall, Noisy, equal, overwrite
from torch import Tensor
from torchrl.envs.utils import check_env_specs

import envs
from envs import BatchEnv, State, transition
from envs.entry_names import observation_entries
from envs.gymnasium_env import GymnasiumVectorEnv
from envs.torchrl_env import TorchRLEnv
from saltus.errors import SaltusError

pytestmark = pytest.mark.filterwarnings("ignore:.* world-steps whose")
WORLDS, SPLIT = 4, 7  # the actor sees the first columns of CartBall's observation


class Grouped(CartBall):
    """CartBall, part of whose observation only the critics see."""

    def observation(self, state: State) -> Any:
        whole = super().observation(state)
        return {"critic": whole[:, SPLIT:], "policy": whole[:, :SPLIT]}


def make(task: type[CartBall], execution: Any = "host", seed: int = 0, **options: Any) -> BatchEnv:
    return BatchEnv(task(max_episode_steps=6, **options), WORLDS, seed=seed, execution=execution)


def whole(part: Any) -> Tensor:
    """Both groups of an observation, side by side."""
    return torch.cat([part["observation"], part["privileged"]], dim=1)


@pytest.mark.parametrize("execution", ["host", "device"])
def test_groups_are_the_parts_of_one_observation(execution: str):
    """Also at resets, and in worlds that fail: both groups keep their values."""
    grouped, plain = make(Grouped, execution), make(CartBall, execution)
    assert grouped.observation_dim + grouped.privileged_dim == plain.observation_dim
    assert grouped.observation_dim == SPLIT
    draw, obs, plain_obs = Actions(plain), grouped.reset(), plain.reset()
    for step in range(20):
        assert torch.equal(torch.cat([obs, grouped.privileged], dim=1), plain_obs)
        if step == 9:
            overwrite(grouped.physics, "qvel", torch.nan, 1)
            overwrite(plain.physics, "qvel", torch.nan, 1)
        action = draw()
        (ours, obs), (theirs, plain_obs) = grouped.step(action), plain.step(action)
        transition.check(ours, SPLIT, grouped.action_dim, grouped.privileged_dim)
        assert torch.equal(whole(ours), theirs["observation"])
        assert torch.equal(whole(ours["next"]), theirs["next", "observation"])
        for key in ("reward", "terminated", "truncated", "done"):
            assert torch.equal(ours["next", key], theirs["next", key])
        if step == 9:
            assert torch.equal(ours["next", "privileged"][1], ours["privileged"][1])
    assert grouped.statistics() == plain.statistics()
    assert grouped.statistics()["unstable"] == 1


@pytest.mark.parametrize("critic", [{}, {"critic": torch.empty(WORLDS, 0)}])
def test_without_columns_for_the_critics_a_dict_equals_a_tensor(critic: dict[str, Tensor]):
    class Alone(CartBall):
        def observation(self, state: State) -> Any:
            return {"policy": super().observation(state), **critic}

    dict_env, plain = make(Alone), make(CartBall)
    assert torch.equal(dict_env.reset(), plain.reset())
    assert dict_env.privileged.shape == (WORLDS, 0)
    draw = Actions(plain)
    for _ in range(8):
        action = draw()
        (ours, obs), (theirs, plain_obs) = dict_env.step(action), plain.step(action)
        assert equal(ours, theirs)
        assert torch.equal(obs, plain_obs)


def test_a_privileged_value_that_is_not_finite_fails_its_world():
    class Breaks(Grouped):
        def observation(self, state: State) -> Any:
            groups = super().observation(state)
            return groups | {"critic": torch.where(state.time[:, None] < 0.04, groups["critic"], torch.nan)}

        fields = (*CartBall.fields, "time")

    env = make(Breaks)
    env.reset()
    for _ in range(2):
        transition_, _ = env.step(torch.zeros(WORLDS, env.action_dim))
        assert not env.failed.any()
    transition_, _ = env.step(torch.zeros(WORLDS, env.action_dim))
    assert env.failed.all()
    assert torch.equal(whole(transition_["next"]), whole(transition_))
    assert env.statistics()["nonfinite"] == WORLDS


def test_a_transition_without_its_groups_is_refused():
    env = make(CartBall)
    env.reset()
    step, _ = env.step(torch.zeros(WORLDS, env.action_dim))
    assert transition.num_bytes(4, 1, 3) == transition.num_bytes(4, 1) + 2 * 3 * 4
    with pytest.raises(SaltusError, match="the transition has no entry 'privileged'"):
        transition.check(step, env.observation_dim, env.action_dim, 2)


def returning(groups: Any) -> type[CartBall]:
    """A task with these groups, each a function of the state's qpos."""

    class Returning(CartBall):
        def observation(self, state: State) -> Any:
            return {name: function(state.qpos) for name, function in groups.items()}

    return Returning


MISTAKES: list[tuple[Any, str]] = [
    ({"critic": torch.clone}, r"returned the groups \['critic'\]; expected 'policy', what the actor sees"),
    ({}, r"returned the groups \[\]; expected 'policy'"),
    ({"policy": torch.clone, "value": torch.clone}, r"the groups \['policy', 'value'\]; .* optionally 'critic'"),
    ({"policy": lambda q: q[:, 0]}, r"observation returned a torch.float64 tensor of shape \(4,\)"),
    (
        {"policy": lambda q: q[:, :0], "critic": torch.clone},
        r"observation \(group 'policy'\) is empty; expected .*\(\d+, obs_dim\)",
    ),
    ({"policy": torch.clone, "critic": lambda q: q[0]}, r"\(group 'critic'\) returned .* expected .* \(4, obs_dim\)"),
    ({"policy": torch.clone, "critic": lambda q: q / 0}, r"\(group 'critic'\) is not finite in float32"),
    ({"policy": torch.clone, "critic": lambda q: q - q.mean()}, r"observation mixes worlds"),
    ({"policy": torch.clone, "critic": lambda q: q.long()}, r"\(group 'critic'\) returned a torch.int64 tensor"),
]


@pytest.mark.parametrize(("groups", "message"), MISTAKES)
def test_mistakes_are_named(groups: Any, message: str):
    with pytest.raises(SaltusError, match=message):
        make(returning(groups))


def test_groups_that_change_are_refused():
    groups: dict[str, Any] = {"policy": torch.clone, "critic": torch.clone}
    env = make(returning(groups))
    env.reset()
    groups["critic"] = lambda qpos: qpos[:, :2]
    with pytest.raises(SaltusError, match=r"observation \(group 'critic'\) returned .* as when the environment was"):
        env.step(torch.zeros(WORLDS, env.action_dim))
    del groups["critic"]
    with pytest.raises(SaltusError, match=r"the groups \['policy'\], and \['critic', 'policy'\] when the environment"):
        env.step(torch.zeros(WORLDS, env.action_dim))


def test_entries_of_the_policy_are_named():
    assert [entry and entry["name"] for entry in observation_entries(make(Grouped))][:2] == [
        "joint slide qpos",
        "joint hinge qpos",
    ]


def test_torchrl_and_gymnasium_have_the_groups():
    options: dict[str, Any] = {"seed": 3, "max_episode_steps": 5, "normalized_actions": False}
    torchrl, gym = TorchRLEnv(Grouped, WORLDS, **options), GymnasiumVectorEnv(Grouped, WORLDS, **options)
    check_env_specs(torchrl, seed=0)
    torchrl, reference = TorchRLEnv(Grouped, WORLDS, **options), envs.make(Grouped, WORLDS, **options)
    steps = torchrl.rollout(12, break_when_any_done=False).unbind(-1)
    obs, (gym_obs, infos) = reference.reset(), gym.reset()
    for step in steps:
        expected = torch.cat([obs, reference.privileged], dim=1)
        assert torch.equal(whole(step), expected)
        assert torch.equal(torch.cat([torch.tensor(gym_obs), torch.tensor(infos["privileged"])], dim=1), expected)
        assert infos["_privileged"].all()
        transition_, obs = reference.step(step["action"])
        gym_obs, _, _, _, infos = gym.step(step["action"].numpy())
        assert torch.equal(whole(step["next"]), whole(transition_["next"]))
        if transition_["next", "done"].any():
            final = infos["final_info"]
            assert final["_privileged"].all()
            assert torch.equal(torch.tensor(final["privileged"]), transition_["next", "privileged"])
    assert sum(step["next", "done"].sum() for step in steps) == 2 * WORLDS


def test_noise_is_drawn_once_for_each_state():
    """The successor of a step is the observation acted on next; the critics' group has no noise."""
    env, twin, other = make(Noisy), make(Noisy), make(Noisy, seed=1)
    obs, draw = env.reset(), Actions(env)
    other.reset()
    assert torch.equal(obs, twin.reset())
    errors = []
    for step in range(14):
        action = draw()
        transition_, next_obs = env.step(action)
        assert equal(transition_, twin.step(action)[0]), "equal seeds, equal noise"
        assert torch.equal(transition_["observation"], obs)
        going_on = ~transition_["next", "done"].squeeze(-1)
        assert torch.equal(transition_["next", "observation"][going_on], next_obs[going_on])
        assert torch.equal(transition_["next", "privileged"][going_on], env.privileged[going_on])
        assert torch.equal(env.privileged, env.state.qpos.float())
        errors.append(next_obs - env.privileged)
        obs = next_obs
        if step == 6:
            other.set_state(env.get_state())
        elif step > 6:
            assert equal(transition_, other.step(action)[0]), "a restored state continues with the same noise"
    noise = torch.stack(errors)
    assert 0.07 < float(noise.std()) < 0.13
    assert float((noise[1:] - noise[:-1]).abs().min()) > 0

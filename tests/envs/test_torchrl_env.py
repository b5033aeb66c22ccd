"""TorchRLEnv: BatchEnv's transitions in TorchRL's form, resets with masks, TorchRL's checks and transforms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from env_helpers import WARP_MEMORY, CartBall
from tensordict import TensorDict, TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs import Compose, ObservationNorm, RewardSum, SerialEnv, StepCounter, TransformedEnv
from torchrl.envs.utils import check_env_specs, step_mdp

import envs
from envs.torchrl_env import TorchRLEnv
from saltus.errors import SaltusError

WORLDS = 5


def make(task: Any = "Hopper-v5", num_envs: int = WORLDS, **options: Any) -> TorchRLEnv:
    return TorchRLEnv(task, num_envs, **options)


def mask_of(*worlds: int) -> torch.Tensor:
    mask = torch.zeros(WORLDS, 1, dtype=torch.bool)
    mask[list(worlds)] = True
    return mask


@pytest.mark.parametrize("task", ["Hopper-v5", "Humanoid-v5", CartBall])
@pytest.mark.parametrize("options", [{}, {"normalized_actions": True, "max_episode_steps": 2}])
def test_specs_agree_with_data(task: Any, options: dict[str, Any]):
    env = make(task, **options)
    check_env_specs(env, seed=0)
    check_env_specs(env, break_when_any_done="both")
    assert env.batch_size == (WORLDS,)
    limit = torch.ones(env.batch_env.action_dim) if options else env.batch_env.control_high
    assert torch.equal(env.action_spec.space.high, limit.expand(WORLDS, -1))
    assert torch.equal(env.action_spec.space.low, env.batch_env.action_low.expand(WORLDS, -1))


@pytest.mark.parametrize("task", ["Hopper-v5", "Humanoid-v5", CartBall])
def test_a_rollout_has_the_transitions_of_batch_env(task: Any):
    options: dict[str, Any] = {"seed": 3, "max_episode_steps": 7, "normalized_actions": False}
    env, reference = make(task, **options), envs.make(task, WORLDS, **options)
    torch.manual_seed(0)
    steps = env.rollout(30, break_when_any_done=False).unbind(-1)
    obs = reference.reset()
    for step in steps:
        assert torch.equal(step["observation"], obs)
        assert not step["done"].any()
        transition, obs = reference.step(step["action"])
        for key in ("observation", "reward", "done", "terminated", "truncated"):
            assert torch.equal(step["next", key], transition["next", key])
            assert step["next", key].dtype == transition["next", key].dtype
    assert sum(step["next", "done"].sum() for step in steps) >= 4 * WORLDS


def test_a_batch_env_is_stepped_itself():
    inner = envs.make("Hopper-v5", 3)
    env = TorchRLEnv(inner)
    assert env.batch_env is inner
    assert env.batch_size == (3,)


# Resets with masks


def act(env: TorchRLEnv, start: TensorDictBase) -> TensorDictBase:
    """The state after a step with zero actions."""
    return step_mdp(env.step(start.set("action", torch.zeros(WORLDS, env.batch_env.action_dim))))


def lengths(env: TorchRLEnv) -> list[int]:
    return env.batch_env._episodes._elapsed.tolist()


@pytest.mark.parametrize("physics", ["cpu", "warp"])
def test_a_mask_begins_episodes_also_before_their_end(physics: str):
    memory = WARP_MEMORY["Hopper-v5"] if physics == "warp" else {}
    env = make(max_episode_steps=10, physics=physics, **memory)
    before = act(env, act(env, env.reset()))
    kept = before.clone()
    after = env.reset(before.set("_reset", mask_of(0, 3)))
    changed = (after["observation"] != kept["observation"]).any(dim=-1)
    assert changed.tolist() == [True, False, False, True, False]
    assert "_reset" not in after
    assert lengths(env) == [0, 2, 2, 0, 2]


def test_worlds_that_ended_get_the_episode_that_batch_env_has_begun():
    env = make(max_episode_steps=3)
    state = act(env, act(env, act(env, env.reset())))
    assert state["done"].all()
    begun, before = env.batch_env.get_state()["observation"].clone(), env.batch_env.get_state()
    after = env.reset(state.clone().set("_reset", mask_of(1, 2)))
    assert torch.equal(after["observation"][[1, 2]], begun[[1, 2]])
    assert torch.equal(after["observation"][[0, 3, 4]], state["observation"][[0, 3, 4]])
    assert after["done"].squeeze(-1).tolist() == [True, False, False, True, True]
    assert torch.equal(env.batch_env.get_state()["generator"], before["generator"])
    again = env.reset(after.clone().set("_reset", mask_of(1, 4)))
    assert not torch.equal(again["observation"][1], begun[1]), "a second reset begins another episode"
    assert torch.equal(again["observation"][4], begun[4])
    assert torch.equal(again["observation"][2], begun[2])


def test_a_reset_without_a_mask_begins_all_episodes():
    env = make(max_episode_steps=3)
    state = act(env, act(env, act(env, env.reset())))
    begun = env.batch_env.get_state()["observation"].clone()
    for start in (None, state):
        fresh = env.reset(start)
        assert (fresh["observation"] != begun).any(dim=-1).all()
        assert not fresh["done"].any()


def test_the_first_reset_may_have_a_mask_of_all_worlds():
    first = make().reset(TensorDict({"_reset": ~mask_of()}, [WORLDS]))
    assert torch.equal(first["observation"], make().reset()["observation"])
    with pytest.raises(RuntimeError, match=r"call reset\(\) before reset\(mask\)$"):
        make().reset(TensorDict({"_reset": mask_of(1)}, [WORLDS]))


def test_what_reset_returns_is_the_callers():
    env = make(max_episode_steps=3)
    first = env.reset()
    first["observation"].zero_()
    after = env.reset(act(env, first).set("_reset", mask_of(0)))
    after["observation"].zero_()
    assert env.reset(act(env, after).set("_reset", mask_of(1)))["observation"].any(dim=-1).all()


# Steps of some worlds


def test_a_rollout_to_the_end_of_all_episodes():
    options = {"seed": 5, "reset_noise_scale": 0.15}
    env, reference = make(**options), envs.make("Hopper-v5", WORLDS, **options)
    torch.manual_seed(0)
    data = env.rollout(300, break_when_any_done=False, break_when_all_done=True)
    done = data["next", "done"].squeeze(-1)
    ends = done.int().argmax(dim=1)
    assert done[:, -1].all()
    assert len(set(ends.tolist())) > 1
    reference.reset()
    for time in range(data.shape[1]):
        transition, _ = reference.step(data["action"][:, time])
        alive = ends >= time
        for key in ("observation", "reward", "done"):
            assert torch.equal(data["next", key][alive, time], transition["next", key][alive])
    fresh = env.reset()
    assert not fresh["done"].any()


def test_a_world_that_was_skipped_begins_an_episode_at_its_reset():
    env = make(max_episode_steps=3)
    state = act(env, act(env, env.reset()))
    env.reset(state.clone().set("_reset", mask_of(0)))
    state = act(env, state)
    assert state["done"].squeeze(-1).tolist() == [False, True, True, True, True]
    skipped = state.clone().set("_step", mask_of(0)).set("action", torch.zeros(WORLDS, 3))
    after = step_mdp(env.step(skipped))
    assert torch.equal(after["observation"][1:], state["observation"][1:])
    assert not torch.equal(after["observation"][0], state["observation"][0])
    assert after["done"].squeeze(-1).tolist() == [False, True, True, True, True]
    env.reset(after.set("_reset", ~mask_of(0)))
    assert lengths(env) == [2, 0, 0, 0, 0]


def test_skipping_a_world_within_its_episode_is_refused():
    env = make()
    state = env.reset().set("_step", ~mask_of(2)).set("action", torch.zeros(WORLDS, 3))
    with pytest.raises(SaltusError, match="'_step' skips world 2 in the middle of its episode: worlds step together"):
        env.step(state)


# Seeds


def test_seed_decides_the_trajectory():
    env = make(max_episode_steps=4)
    env.set_seed(5)
    found = env.reset()["observation"]
    assert torch.equal(found, make(seed=5).reset()["observation"])
    assert env.set_seed(5) == make().set_seed(5)
    assert torch.equal(env.reset()["observation"], found)
    env.set_seed(None)
    assert not torch.equal(env.reset()["observation"], found)


# TorchRL's own parts


def test_transforms_and_collector_see_whole_episodes():
    transforms = Compose(StepCounter(), RewardSum(), ObservationNorm(in_keys=["observation"]))
    env = TransformedEnv(make(max_episode_steps=6, seed=1), transforms)
    env.transform[2].init_stats(20, reduce_dim=[0, 1], cat_dim=1)
    check_env_specs(env)
    frames = 30 * WORLDS
    collector = Collector(env, None, frames_per_batch=frames, total_frames=2 * frames)
    data = torch.cat(list(collector), dim=1)
    collector.shutdown()
    assert data.shape == (WORLDS, 60)
    done = data["next", "done"].squeeze(-1)
    assert torch.equal(data["next", "step_count"].squeeze(-1) == 6, data["next", "truncated"].squeeze(-1))
    alive = ~done[:, :-1]
    assert torch.equal(data["next", "observation"][:, :-1][alive], data["observation"][:, 1:][alive])
    returns = torch.zeros(WORLDS, 1)
    for step in data.unbind(1):
        returns = returns + step["next", "reward"]
        assert torch.allclose(step["next", "episode_reward"], returns)
        returns = torch.where(step["next", "done"], 0.0, returns)
    ends = done.clone()
    ends[:, -1] = True
    assert data["next", "step_count"].squeeze(-1)[ends].sum() == 60 * WORLDS


def test_environments_stack():
    env = SerialEnv(2, lambda: make(num_envs=3, max_episode_steps=5))
    check_env_specs(env)
    done = env.rollout(20, break_when_any_done=False)["next", "done"].squeeze(-1)
    assert done.shape == (2, 3, 20)
    assert done[..., 4::5].all()
    assert done.sum() == 24


def test_wrong_actions_are_refused():
    env = make()
    state = env.reset()
    with pytest.raises(SaltusError, match=r"the action is torch.float64 of shape \(5, 3\); expected torch.float32"):
        env.step(state.clone().set("action", torch.zeros(WORLDS, 3).double()))
    with pytest.raises(RuntimeError, match=r"call reset\(\) before step\(\)"):
        make().step(TensorDict({"action": torch.zeros(WORLDS, 3)}, [WORLDS]))


def test_impossible_arguments_are_refused():
    with pytest.raises(SaltusError, match="num_envs is missing: pass the number of worlds after the task, or a Batch"):
        TorchRLEnv("Hopper-v5")
    with pytest.raises(SaltusError, match=r"pass \['seed'\] to the BatchEnv itself, or a task in its place"):
        TorchRLEnv(envs.make("Hopper-v5", 2), seed=3)
    with pytest.raises(TypeError, match="healthy"):
        make().reset(healthy=True)

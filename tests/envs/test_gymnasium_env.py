"""GymnasiumVectorEnv: BatchEnv's numbers in Gymnasium's form, its checks and its wrappers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from env_helpers import CartBall, qpos_qvel, same_bits
from gymnasium.utils import env_checker
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import vector as wrappers

import envs
from envs.gymnasium_env import GymnasiumVectorEnv
from envs.render import RenderError
from saltus.errors import SaltusError

WORLDS = 5


def make(task: Any = "Hopper-v5", num_envs: int = WORLDS, **options: Any) -> GymnasiumVectorEnv:
    return GymnasiumVectorEnv(task, num_envs, **options)


def actions(env: VectorEnv, steps: int) -> list[np.ndarray]:
    env.action_space.seed(0)
    return [env.action_space.sample() for _ in range(steps)]


@pytest.mark.parametrize("task", ["Hopper-v5", "Humanoid-v5", CartBall])
@pytest.mark.parametrize("normalized", [False, True])
def test_steps_are_those_of_batch_env(task: Any, normalized: bool):
    options: dict[str, Any] = {"seed": 3, "max_episode_steps": 7, "normalized_actions": normalized}
    env, reference = make(task, **options), envs.make(task, WORLDS, **options)
    observation, infos = env.reset()
    assert infos == {}
    assert same_bits(observation, reference.reset())
    for action in actions(env, 20):
        observation, reward, terminated, truncated, infos = env.step(action)
        transition, next_obs = reference.step(torch.from_numpy(action))
        successor = transition["next"]
        assert same_bits(observation, next_obs)
        assert same_bits(reward, successor["reward"].double().squeeze(-1))
        assert same_bits(terminated, successor["terminated"].squeeze(-1))
        assert same_bits(truncated, successor["truncated"].squeeze(-1))
        done = successor["done"].squeeze(-1).numpy()
        assert ("final_obs" in infos) == done.any()
        for world in range(WORLDS):
            last = infos["final_obs"][world] if done.any() else None
            assert same_bits(last, successor["observation"][world]) if done[world] else last is None
        for name, term in reference.reward_terms.items():
            for part, worlds in ((infos, ~done), (infos.get("final_info", {}), done)):
                assert (name in part) == (f"_{name}" in part) == worlds.any()
                if worlds.any():
                    assert same_bits(part[f"_{name}"], worlds)
                    assert same_bits(part[name], np.where(worlds, term, 0.0))


def put(reference: gymnasium.Env, env: GymnasiumVectorEnv, world: int) -> None:
    """Start an episode of a Gymnasium environment in the state of a world."""
    inner: Any = reference.unwrapped
    mujoco.mj_resetData(inner.model, inner.data)
    inner.set_state(*(part[world].numpy() for part in qpos_qvel(env.batch_env)))


@pytest.mark.parametrize("task", ["Hopper-v5", "InvertedPendulum-v5", "Humanoid-v5"])
def test_steps_equal_those_of_gymnasium_from_the_same_states(task: str):
    env = make(task, seed=1, max_episode_steps=30)
    members = [lambda: gymnasium.make(task, disable_env_checker=True, max_episode_steps=30)] * WORLDS
    reference = SyncVectorEnv(members, autoreset_mode=AutoresetMode.SAME_STEP)
    assert env.metadata["autoreset_mode"] is reference.metadata["autoreset_mode"]
    assert env.metadata["render_fps"] == reference.metadata["render_fps"]
    for space in ("action_space", "single_action_space"):
        assert getattr(env, space) == getattr(reference, space)
    env.reset()
    reference.reset(seed=0)
    for world, member in enumerate(reference.envs):
        put(member, env, world)
    ended = 0
    for action in actions(env, 80):
        ours, theirs = env.step(action), reference.step(action)
        done = theirs[2] | theirs[3]
        ended += done.sum()
        assert same_bits(ours[0][~done], theirs[0].astype(np.float32)[~done])
        assert same_bits(ours[1], theirs[1].astype(np.float32).astype(np.float64))
        assert same_bits(ours[2], theirs[2])
        assert same_bits(ours[3], theirs[3])
        assert_infos_equal(ours[4], theirs[4])
        for world in np.flatnonzero(done):
            put(reference.envs[world], env, world)
    assert ended >= WORLDS


def assert_infos_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Ours have the rewards' terms and the final entries of theirs, with equal values and masks."""
    shared = {key for key in theirs if "reward" in key or "final" in key}
    assert set(ours) == shared
    for key in shared:
        if key == "final_info":
            assert_infos_equal(ours[key], theirs[key])
        elif key == "final_obs":
            assert ours[key].dtype == theirs[key].dtype
            for one, other in zip(ours[key], theirs[key], strict=True):
                assert one is other is None or same_bits(one, other.astype(np.float32))
        else:
            assert ours[key].shape == theirs[key].shape
            assert (ours[key] == theirs[key]).all()


def test_spaces_state_bounds_and_float32():
    env = make("Humanoid-v5", 3)
    assert env.num_envs == 3
    assert env.single_observation_space == gymnasium.spaces.Box(-np.inf, np.inf, (348,), np.float32)
    assert env.observation_space.shape == (3, 348)
    assert env.single_action_space == gymnasium.spaces.Box(-0.4, 0.4, (17,), np.float32)
    assert env.action_space.shape == (3, 17)
    assert make("Humanoid-v5", 3, normalized_actions=True).single_action_space.high.tolist() == [1.0] * 17
    observation, _ = env.reset()
    assert observation in env.observation_space
    assert env.step(env.action_space.sample())[0] in env.observation_space


def test_a_batch_env_is_stepped_itself():
    inner = envs.make("Hopper-v5", 3)
    env = GymnasiumVectorEnv(inner)
    assert env.batch_env is inner
    assert env.num_envs == 3


# Seeds and masks


def test_seed_at_reset_is_that_of_a_new_environment():
    env = make(max_episode_steps=4)
    env.reset()
    for seed in (5, np.int64(5)):
        other = make(max_episode_steps=4, seed=5)
        assert same_bits(env.reset(seed=seed)[0], other.reset()[0])
        for action in actions(env, 9):
            assert same_bits(env.step(action)[0], other.step(action)[0])
    assert env.np_random_seed == 5
    assert not same_bits(env.reset()[0], env.reset()[0])


def test_reset_mask_begins_episodes_in_its_worlds_only():
    env = make(max_episode_steps=10)
    before, _ = env.reset()
    for action in actions(env, 3):
        before = env.step(action)[0]
    mask = np.array([True, False, False, True, False])
    after, _ = env.reset(options={"reset_mask": mask})
    assert same_bits(after[~mask], before[~mask])
    assert (after[mask] != before[mask]).any(axis=1).all()
    truncated = np.array([env.step(action)[3] for action in [np.zeros((WORLDS, 3))] * 10])
    assert truncated.argmax(axis=0).tolist() == [9, 6, 6, 9, 6]


# Gymnasium's checks and wrappers


class OneWorld(gymnasium.Env):
    """The only world of a GymnasiumVectorEnv, without its reset within the step."""

    def __init__(self) -> None:
        self.worlds = make(num_envs=1)
        self.observation_space, self.action_space = (
            self.worlds.single_observation_space, self.worlds.single_action_space,
        )  # fmt: skip

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        observation, infos = self.worlds.reset(seed=seed, options=options)
        return observation[0], infos

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        observation, reward, terminated, truncated, infos = self.worlds.step(action[None])
        last = infos.get("final_obs", observation)
        return last[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), infos


@pytest.fixture
def registered() -> Iterator[str]:
    gymnasium.register("OneWorld-v0", entry_point=OneWorld)
    yield "OneWorld-v0"
    del gymnasium.registry["OneWorld-v0"]


@pytest.mark.filterwarnings("ignore:.*Box observation space m.* value is.*infinity")
@pytest.mark.filterwarnings("error")
def test_one_world_passes_check_env(registered: str):
    env_checker.check_env(gymnasium.make(registered, disable_env_checker=True).unwrapped)


@pytest.mark.parametrize(
    "check",
    [
        env_checker.check_reset_seed_determinism, env_checker.check_reset_options, env_checker.check_reset_return_type,
        env_checker.check_reset_return_info_deprecation, env_checker.check_seed_deprecation,
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_all_worlds_pass_the_checks_that_know_no_single_world(check: Any):
    check(make(max_episode_steps=2))


def test_wrappers_record_the_statistics_of_batch_env():
    inner = make(max_episode_steps=15, seed=2)
    env: VectorEnv = wrappers.RecordEpisodeStatistics(inner)
    env.reset()
    returns, lengths = [], []
    for action in actions(env, 60):
        *_, terminated, truncated, infos = env.step(action)
        done = terminated | truncated
        assert ("episode" in infos) == done.any()
        if done.any():
            returns += infos["episode"]["r"][done].tolist()
            lengths += infos["episode"]["l"][done].tolist()
    totals = inner.batch_env.statistics()
    assert len(returns) == totals["episodes"] >= 4 * WORLDS
    assert sum(lengths) == totals["episode_length"]
    assert sum(returns) == pytest.approx(totals["episode_return"])


def test_wrappers_change_actions_and_rewards():
    plain, inner = (make("Humanoid-v5", seed=4, max_episode_steps=3) for _ in range(2))
    env: VectorEnv = wrappers.ClipAction(wrappers.RescaleAction(wrappers.ClipReward(inner, 4.0, 5.0), -1.0, 1.0))
    assert env.single_action_space.shape == (17,)
    plain.reset()
    env.reset()
    for action in actions(plain, 4):
        ours, theirs = plain.step(action), env.step(action / np.float32(0.4))
        np.testing.assert_allclose(theirs[0], ours[0], rtol=1e-2, atol=1e-2)
        np.testing.assert_allclose(theirs[1], ours[1].clip(4, 5), rtol=1e-3)
    assert wrappers.NormalizeReward(plain).step(actions(plain, 1)[0])[1].shape == (WORLDS,)


@pytest.mark.parametrize("wrapper", [wrappers.NormalizeObservation, wrappers.FlattenObservation])
def test_gymnasium_itself_refuses_wrappers_that_would_miss_last_observations(wrapper: Any):
    with pytest.raises(ValueError, match="SAME_STEP"):
        wrapper(make())


def test_a_wrapper_lists_infos_by_world():
    listed = wrappers.DictInfoToList(make(max_episode_steps=1))
    listed.reset()
    infos = listed.step(np.zeros((WORLDS, 3)))[4]
    assert [set(info) for info in infos] == [{"final_obs", "final_info"}] * WORLDS
    assert set(infos[0]["final_info"]) == {"reward_forward", "reward_ctrl", "reward_survive"}


def test_frames_of_every_world():
    env = make(num_envs=2, render_mode="rgb_array")
    env.reset()
    try:
        frames = env.render()
    except RenderError as error:
        pytest.skip(str(error))
    assert [(frame.shape, frame.dtype) for frame in frames] == [((480, 640, 3), np.uint8)] * 2
    assert frames[0].any()
    env.close()
    env.close()


# Errors


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("Hopper-v5",), {}, "num_envs is missing: pass the number of worlds after the task, or a BatchEnv"),
        (("Hopper-v5", 0), {}, "num_envs is 0; it must be a whole number, 1 or more"),
        (("Hopper-v5", 2), {"render_mode": "human"}, "render_mode is 'human'; it must be None or 'rgb_array'"),
        (("Hoper-v5", 2), {}, "Hopper-v5"),
    ],
)
def test_impossible_arguments_are_refused(arguments: tuple, options: dict[str, Any], message: str):
    with pytest.raises(SaltusError, match=message):
        GymnasiumVectorEnv(*arguments, **options)


def test_options_for_a_batch_env_are_refused():
    with pytest.raises(SaltusError, match=r"pass \['num_envs', 'seed'\] to the BatchEnv itself, or a task in its plac"):
        GymnasiumVectorEnv(envs.make("Hopper-v5", 2), 2, seed=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed is -1; it must be a whole number, 0 or more"),
        ({"seed": [1, 2, 3, 4, 5]}, r"seed is \[1, 2, 3, 4, 5\]; it must be a whole number"),
        ({"options": {"xml_file": 1}}, r"options has \['xml_file'\]; expected 'reset_mask' or nothing"),
        ({"options": 3}, "options is 3; it must be a dictionary with 'reset_mask', or None"),
        ({"options": {"reset_mask": [True] * 5}}, r"the mask is a list; expected a torch.bool tensor of shape \(5,\)"),
        ({"options": {"reset_mask": np.ones(4, bool)}}, r"the mask is torch.bool of shape \(4,\); expected torch.bool"),
        ({"options": {"reset_mask": np.ones(5)}}, r"the mask is torch.float64 of shape \(5,\); expected torch.bool"),
    ],
)
def test_impossible_resets_are_refused(arguments: dict[str, Any], message: str):
    env, untouched = make(), make()
    for one in (env, untouched):
        one.reset()
    with pytest.raises(SaltusError, match=message):
        env.reset(**{"seed": 7, **arguments})
    assert np.array_equal(env.reset()[0], untouched.reset()[0]), "a refused reset has seeded the environment"


def test_wrong_order_and_actions_are_refused():
    env = make()
    with pytest.raises(RuntimeError, match=r"call reset\(\) before step\(\)"):
        env.step(np.zeros((WORLDS, 3)))
    with pytest.raises(RuntimeError, match=r"call reset\(\) before reset\(mask\)$"):
        env.reset(options={"reset_mask": np.ones(WORLDS, bool)})
    env.reset()
    with pytest.raises(SaltusError, match=r"the action is torch.float32 of shape \(4, 3\); expected .* \(5, 3\)"):
        env.step(np.zeros((4, 3)))
    with pytest.raises(SaltusError, match="the action of world 1 is not finite"):
        env.step(np.array([[0.0] * 3, [np.nan] * 3, *[[0.0] * 3] * 3]))
    with pytest.raises(SaltusError, match="make the environment with render_mode='rgb_array' to render it"):
        env.render()

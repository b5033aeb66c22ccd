"""The built-in MuJoCo tasks equal Gymnasium's v5 environments bit for bit. (Pendulum-v1: test_pendulum.py.)"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections import Counter
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from env_helpers import NAMES as BUILT_IN
from env_helpers import Actions, qpos_qvel, same_bits, spy

import envs
from envs import BatchEnv
from saltus.errors import SaltusError

WORLDS = 5
NAMES = [name for name in BUILT_IN if name != "Pendulum-v1"]


def gymnasium_env(name: str, **options: Any) -> gymnasium.Env:
    return gymnasium.make(name, disable_env_checker=True, **options).unwrapped


def make(name: str, num_envs: int, **options: Any) -> BatchEnv:
    """An environment whose actions are controls, as Gymnasium's are."""
    return envs.make(name, num_envs, normalized_actions=False, **options)


def put(reference: gymnasium.Env, qpos: torch.Tensor, qvel: torch.Tensor) -> None:
    """Start an episode of the reference at a given state, as its `reset` does at a random one."""
    mujoco.mj_resetData(reference.model, reference.data)
    reference.set_state(qpos.numpy().copy(), qvel.numpy().copy())


def assert_parity(env: BatchEnv, references: list[gymnasium.Env], steps: int, scale: float = 1.2) -> Counter[str]:
    """Step both from the same states with the same actions and compare everything; return counts of events."""
    happened: Counter[str] = Counter()
    observations, rewards = spy(env.task, "observation"), spy(env.task, "reward")
    draw = Actions(env, seed=1, scale=scale)
    obs = env.reset()
    for world, reference in enumerate(references):
        put(reference, *(part[world] for part in qpos_qvel(env)))
        assert same_bits(observations[-1][1][world], reference._get_obs())
    for step in range(steps):
        before, action = obs, draw()
        observations.clear()
        transition, obs = env.step(action)
        (state,), observation = observations[0]
        reward, terms = rewards[-1][1]
        qpos, qvel = qpos_qvel(env)
        for world, reference in enumerate(references):
            where = f"world {world}, step {step}"
            theirs, their_reward, their_terminated, _, info = reference.step(action[world].numpy())
            successor = transition["next"][world]
            assert same_bits(state.qpos[world], reference.data.qpos), where
            assert same_bits(state.qvel[world], reference.data.qvel), where
            assert same_bits(observation[world], theirs), where
            assert same_bits(successor["observation"], theirs.astype(np.float32)), where
            assert same_bits(transition["observation"][world], before[world]), where
            assert float(reward[world]) == float(their_reward), where
            assert successor["reward"].item() == float(np.float32(their_reward)), where
            assert {key for key in info if key.startswith("reward") or key.endswith("penalty")} == set(terms), where
            for key, term in terms.items():
                assert float(term[world]) == float(info[key]), (where, key)
            assert successor["terminated"].item() == their_terminated, where
            happened["contacts"] += reference.data.ncon > 0
            happened["constraints"] += reference.data.nefc > 0
            happened["terminated"] += bool(their_terminated)
            happened["truncated"] += bool(successor["truncated"])
            happened["unhealthy"] += info.get("reward_survive", 1) == 0
            if successor["done"]:
                put(reference, qpos[world], qvel[world])
                assert same_bits(observations[-1][1][world], reference._get_obs()), where
                assert same_bits(obs[world], reference._get_obs().astype(np.float32)), where
    return happened


@pytest.mark.parametrize(
    ("name", "limit", "must_happen"),
    [
        ("Ant-v5", 1000, {"contacts", "terminated"}),
        ("HalfCheetah-v5", 130, {"contacts", "truncated"}),
        ("Hopper-v5", 1000, {"contacts", "terminated"}),
        ("Humanoid-v5", 1000, {"contacts", "terminated"}),
        ("HumanoidStandup-v5", 130, {"contacts", "truncated"}),
        ("InvertedDoublePendulum-v5", 1000, {"terminated"}),
        ("InvertedPendulum-v5", 1000, {"terminated"}),
        ("Pusher-v5", 100, {"contacts", "truncated"}),
        ("Reacher-v5", 50, {"constraints", "truncated"}),
        ("Swimmer-v5", 130, {"constraints", "truncated"}),
        ("Walker2d-v5", 1000, {"contacts", "terminated"}),
    ],
)
def test_steps_equal_gymnasium(name: str, limit: int, must_happen: set[str]):
    env = make(name, WORLDS, seed=3, max_episode_steps=limit)
    happened = assert_parity(env, [gymnasium_env(name) for _ in range(WORLDS)], steps=200)
    assert not {event for event in must_happen if happened[event] < 2}, happened
    assert env.statistics()["unstable"] == 0


OPTIONS: list[tuple[str, dict[str, Any], str]] = [
    (
        "Ant-v5",
        {
            "exclude_current_positions_from_observation": False,
            "contact_force_range": (-0.3, 40.0),
            "contact_cost_weight": 1e-2,
            "healthy_z_range": (0.4, 0.9),
            "main_body": "aux_2",
        },
        "terminated",
    ),
    (
        "Ant-v5",
        {
            "include_cfrc_ext_in_observation": False,
            "terminate_when_unhealthy": False,
            "healthy_reward": 2.5,
            "healthy_z_range": (0.5, 0.7),
            "forward_reward_weight": 0.3,
            "ctrl_cost_weight": 0.7,
            "reset_noise_scale": 0.3,
            "main_body": 4,
            "frame_skip": 3,
        },
        "unhealthy",
    ),
    ("HalfCheetah-v5", {"exclude_current_positions_from_observation": False, "reset_noise_scale": 0.3}, "contacts"),
    ("HalfCheetah-v5", {"forward_reward_weight": 0.3, "ctrl_cost_weight": 0.7, "frame_skip": 2}, "contacts"),
    (
        "Hopper-v5",
        {
            "exclude_current_positions_from_observation": False,
            "terminate_when_unhealthy": False,
            "reset_noise_scale": 0.2,
        },
        "unhealthy",
    ),
    (
        "Hopper-v5",
        {"forward_reward_weight": 0.7, "ctrl_cost_weight": 0.3, "healthy_reward": 2.5, "frame_skip": 7},
        "terminated",
    ),
    ("Hopper-v5", {"healthy_z_range": (1.2, 1.3), "healthy_angle_range": (-math.inf, math.inf)}, "terminated"),
    ("Hopper-v5", {"healthy_state_range": (-3.0, 3.0), "healthy_angle_range": (-1.0, 1.0)}, "terminated"),
    (
        "Humanoid-v5",
        {
            "include_cfrc_ext_in_observation": False,
            "exclude_current_positions_from_observation": False,
            "reset_noise_scale": 0.1,
            "healthy_z_range": (1.2, 1.5),
        },
        "terminated",
    ),
    (
        "Humanoid-v5",
        {"terminate_when_unhealthy": False, "contact_cost_weight": 1e-3, "contact_cost_range": (0.25, 1.5)},
        "unhealthy",
    ),
    (
        "Humanoid-v5",
        {
            "include_cinert_in_observation": False,
            "include_cvel_in_observation": False,
            "include_qfrc_actuator_in_observation": False,
            "forward_reward_weight": 0.3,
            "ctrl_cost_weight": 0.7,
            "healthy_reward": 2.5,
            "frame_skip": 3,
        },
        "contacts",
    ),
    (
        "HumanoidStandup-v5",
        {
            "exclude_current_positions_from_observation": False,
            "include_cinert_in_observation": False,
            "include_cfrc_ext_in_observation": False,
            "uph_cost_weight": 3.0,
            "impact_cost_weight": 1e-3,
            "impact_cost_range": (0.25, 1.5),
            "frame_skip": 3,
        },
        "contacts",
    ),
    (
        "HumanoidStandup-v5",
        {
            "include_cvel_in_observation": False,
            "include_qfrc_actuator_in_observation": False,
            "ctrl_cost_weight": 0.7,
            "reset_noise_scale": 0.1,
        },
        "contacts",
    ),
    ("InvertedDoublePendulum-v5", {"healthy_reward": 2.5, "reset_noise_scale": 0.9, "frame_skip": 3}, "constraints"),
    ("InvertedPendulum-v5", {"reset_noise_scale": 0.15, "frame_skip": 3}, "terminated"),
    (
        "Pusher-v5",
        {"reward_near_weight": 0.3, "reward_dist_weight": 0.7, "reward_control_weight": 0.9, "frame_skip": 3},
        "contacts",
    ),
    ("Reacher-v5", {"reward_dist_weight": 0.7, "reward_control_weight": 0.3, "frame_skip": 3}, "constraints"),
    (
        "Swimmer-v5",
        {
            "exclude_current_positions_from_observation": False,
            "forward_reward_weight": 0.7,
            "ctrl_cost_weight": 0.3,
            "reset_noise_scale": 0.3,
            "frame_skip": 3,
        },
        "constraints",
    ),
    (
        "Walker2d-v5",
        {
            "exclude_current_positions_from_observation": False,
            "terminate_when_unhealthy": False,
            "healthy_angle_range": (-0.3, 0.4),
            "reset_noise_scale": 0.1,
            "frame_skip": 3,
        },
        "unhealthy",
    ),
    (
        "Walker2d-v5",
        {
            "forward_reward_weight": 0.7,
            "ctrl_cost_weight": 0.3,
            "healthy_reward": 2.5,
            "healthy_z_range": (1.1, 1.3),
            "xml_file": "walker2d.xml",
        },
        "terminated",
    ),
]


@pytest.mark.parametrize(("name", "options", "must_happen"), OPTIONS)
def test_steps_equal_gymnasium_with_other_options(name: str, options: dict[str, Any], must_happen: str):
    steps = 160 if must_happen == "constraints" else 110  # joints reach their limits late
    env = make(name, 2, seed=5, max_episode_steps=steps - 10, **options)
    happened = assert_parity(env, [gymnasium_env(name, **options) for _ in range(2)], steps)
    assert happened[must_happen] > 0, happened


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_compared_with_gymnasium(name: str):
    compared = {option for task, options, _ in OPTIONS if task == name for option in options}
    options = {field.name for field in dataclasses.fields(envs.find_task(name))}
    assert options - compared - {"xml_file", "max_episode_steps"} == set()


@pytest.mark.parametrize("name", NAMES)
def test_steps_equal_gymnasium_with_another_model(name: str, tmp_path: Path):
    text = Path(gymnasium_env(name).fullpath).read_text()
    assert "<worldbody>" in text
    path = tmp_path / "heavier.xml"
    path.write_text(text.replace("<worldbody>", '<option gravity="0.5 0 -20" timestep="0.004"/><worldbody>'))
    options = {"xml_file": str(path)}
    assert_parity(make(name, 2, seed=5, **options), [gymnasium_env(name, **options) for _ in range(2)], steps=30)


@pytest.mark.parametrize("body", ["tail", 99, -1])
def test_main_body_of_ant_is_one_of_the_models(body: int | str):
    with pytest.raises(SaltusError, match=rf"main_body is {body!r}; expected the name or the number of a body.*Valid"):
        envs.make("Ant-v5", 1, main_body=body)


@pytest.mark.parametrize("name", ["Hopper-v5", "Walker2d-v5"])
def test_velocities_of_walkers_are_clamped(name: str):
    env = envs.make(name, 2, seed=0, terminate_when_unhealthy=False)
    observations = spy(env.task, "observation")
    env.reset()
    draw = Actions(env)
    fastest = 0.0
    for _ in range(100):
        env.step(draw())
        (state,), observation = observations[-1]
        fastest = max(fastest, float(state.qvel.abs().max()))
        assert float(observation[:, -state.qvel.shape[1] :].abs().max()) <= 10
    assert fastest > 10


@pytest.mark.parametrize("name", NAMES)
def test_options_and_defaults_equal_gymnasium(name: str):
    ours = {field.name: field.default for field in dataclasses.fields(envs.find_task(name))}
    signature = inspect.signature(type(gymnasium_env(name)).__init__).parameters.values()
    theirs = {
        parameter.name: parameter.default
        for parameter in signature
        if parameter.default is not parameter.empty and parameter.name != "default_camera_config"
    }
    assert ours == theirs | {"max_episode_steps": gymnasium.spec(name).max_episode_steps}


@pytest.mark.parametrize("name", NAMES)
def test_sizes_and_action_bounds_equal_gymnasium(name: str):
    env, reference = make(name, 1), gymnasium_env(name)
    assert env.observation_dim == reference.observation_space.shape[0]
    assert env.action_dim == reference.action_space.shape[0]
    assert same_bits(env.action_low, reference.action_space.low)
    assert same_bits(env.action_high, reference.action_space.high)

"""Small environments with known dynamics, in the forms of Gymnasium and TorchRL, and their steps by hand."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from envs.external.external_env import ExternalEnv
from envs.external.factory import _worlds

LOW, HIGH = -2.0, 1.0
LIMIT = 6
FAR = 1.0


def external(env: Any, num_envs: int = 3, seed: int = 0) -> ExternalEnv:
    return ExternalEnv(_worlds("mine", env, num_envs), "mine", seed=seed)


def actions(count: int, num_envs: int = 3, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.rand(num_envs, 1, generator=generator) - 1 for _ in range(count)]


def walk(x: Any, elapsed: Any, action: Any) -> tuple[Any, Any, Any, Any, Any]:
    """A step by hand, of numbers or arrays: x, elapsed, reward, terminated, truncated."""
    after = x + 0.3 * action
    return after, elapsed + 1, after - action, abs(after) > FAR, elapsed + 1 >= LIMIT


class Walk(gymnasium.Env[Any, Any]):
    """A point on a line, which starts at a random place; the observation is [x, elapsed] in float64."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
    observation_space: Any = Box(-np.inf, np.inf, (2,), np.float64)
    action_space = Box(LOW, HIGH, (1,), np.float32)

    def __init__(self, render_mode: str | None = None, broken_at: int | None = None):
        self.render_mode, self.broken_at, self.x, self.elapsed = render_mode, broken_at, 0.0, 0

    def observe(self) -> Any:
        return np.array([np.nan if self.elapsed == self.broken_at else self.x, self.elapsed])

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.elapsed = self.np_random.uniform(-0.5, 0.5), 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.x, self.elapsed, reward, terminated, truncated = walk(self.x, self.elapsed, float(action[0]))
        return self.observe(), reward, terminated, truncated, {}

    def render(self) -> Any:
        return np.full((32, 64, 3), 40 * self.elapsed, np.uint8)


class Paid(Walk):
    """A Walk whose infos have numbers of every kind; that of the reset is no reward."""

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        return super().reset(**options)[0], {"reward_x": 100.0}

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, _ = super().step(action)
        rare = {"reward_rare": 1.0} if self.elapsed == 1 else {}
        others = {"reward_name": "good", "reward_parts": np.ones(2), "distance": 1.0, "reward_is_high": True}
        return observation, reward, terminated, truncated, {"reward_x": self.x, **rare, **others}


class GoalWalk(Walk):
    """Walk with the observation of a goal environment."""

    observation_space = Dict(
        {
            "observation": Box(-np.inf, np.inf, (2,), np.float64),
            "desired_goal": Box(-1, 1, (1,), np.float32),
            "achieved_goal": Box(-1, 1, (1,), np.float32),
        }
    )

    def observe(self) -> Any:
        goals = {"desired_goal": np.full(1, 0.25, np.float32), "achieved_goal": np.full(1, self.x, np.float32)}
        return {"observation": super().observe(), **goals}


def sync(mode: AutoresetMode, num_envs: int = 3, cls: type[Walk] = Walk, **options: Any) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: cls(**options) for _ in range(num_envs)], autoreset_mode=mode, copy=False)


class TensorWalks(VectorEnv[Any, Any, Any]):
    """Walks of torch tensors, which reuses the memory that it returns. `key`: that of final observations."""

    single_observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    single_action_space = Box(LOW, HIGH, (1,), np.float32)

    def __init__(
        self, num_envs: int = 3, mode: Any = AutoresetMode.SAME_STEP, key: str = "final_obs", mask: bool = True
    ):
        self.num_envs, self.key, self.mask = num_envs, key, mask
        self.metadata = {"autoreset_mode": mode}
        self.step_dt, self.max_episode_length = 0.1, LIMIT
        self.obs = torch.zeros(num_envs, 2)
        self.final, self.flags = self.obs.clone(), torch.zeros(2, num_envs, dtype=torch.bool)

    def begin(self, mask: Tensor) -> None:
        start = torch.stack([torch.rand(self.num_envs) - 0.5, torch.zeros(self.num_envs)], dim=1)
        self.obs.copy_(torch.where(mask[:, None], start, self.obs))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            torch.manual_seed(seed)
        self.begin((options or {}).get("reset_mask", torch.ones(self.num_envs, dtype=torch.bool)))
        return self.obs, {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        x, elapsed, reward, terminated, truncated = walk(self.obs[:, 0], self.obs[:, 1], actions[:, 0])
        self.obs.copy_(torch.stack([x, elapsed], dim=1))
        self.flags.copy_(torch.stack([terminated, truncated]))
        done = self.flags.any(0)
        if self.metadata["autoreset_mode"] != AutoresetMode.SAME_STEP:
            return self.obs, reward, *self.flags, {}
        self.final.copy_(self.obs)
        self.begin(done)
        return self.obs, reward, *self.flags, {self.key: self.final} | ({f"_{self.key}": done} if self.mask else {})


class Forgetful(TensorWalks):
    """Has no final observations."""

    def step(self, actions: Any) -> Any:
        return *super().step(actions)[:4], {}


class TorchWalks(EnvBase):
    """Walks as an environment of TorchRL, with two entries of the observation."""

    def __init__(self, num_envs: int = 3):
        super().__init__(batch_size=[num_envs])
        self.observation_spec = Composite(
            {"x": Unbounded((num_envs, 1)), "elapsed": Unbounded((num_envs, 1))}, shape=[num_envs]
        )
        self.action_spec = Bounded(LOW, HIGH, (num_envs, 1))
        self.reward_spec = Unbounded((num_envs, 1))
        flags = {name: Binary(1, (num_envs, 1), dtype=torch.bool) for name in ("done", "terminated", "truncated")}
        self.done_spec = Composite(flags, shape=[num_envs])
        self.dt, self.max_episode_steps = 0.1, LIMIT
        self.x = self.elapsed = torch.zeros(num_envs, 1)

    def _reset(self, tensordict: TensorDictBase | None = None) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        mask = torch.ones_like(self.x, dtype=torch.bool) if mask is None else mask
        self.x = torch.where(mask, torch.rand_like(self.x) - 0.5, self.x)
        self.elapsed = torch.where(mask, 0.0, self.elapsed)
        return TensorDict({"x": self.x, "elapsed": self.elapsed}, batch_size=self.batch_size)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.x, self.elapsed, reward, terminated, truncated = walk(self.x, self.elapsed, tensordict["action"])
        flags = {"terminated": terminated, "truncated": truncated, "done": terminated | truncated}
        return TensorDict({"x": self.x, "elapsed": self.elapsed, "reward": reward, **flags}, batch_size=self.batch_size)

    def _set_seed(self, seed: int | None) -> None:
        torch.manual_seed(seed or 0)

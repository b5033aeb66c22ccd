"""An environment of Gymnasium in place of a task: `saltus train examples/train_on_gymnasium.py:make_env`."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv


class Smooth(gymnasium.Wrapper):
    """Observes the last action, too, and subtracts the change of the action from the reward."""

    def __init__(self, env: gymnasium.Env, cost: float):
        super().__init__(env)
        seen, acts = env.observation_space, env.action_space
        low, high = np.append(seen.low, acts.low), np.append(seen.high, acts.high)
        self.observation_space = gymnasium.spaces.Box(low, high, dtype=seen.dtype)
        self.cost = cost

    def reset(self, **options):
        observation, info = self.env.reset(**options)
        self.last = np.zeros(self.action_space.shape, np.float32)
        return np.append(observation, self.last), info

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        reward -= self.cost * np.square(action - self.last).sum()
        self.last = action.copy()
        return np.append(observation, action), reward, terminated, truncated, info


def make_env(num_envs: int, render_mode: str | None = None, cost: float = 0.1) -> VectorEnv:
    """`num_envs` worlds; --task.cost sets `cost`."""
    wrappers = [lambda env: Smooth(env, cost)]
    modes = {"autoreset_mode": AutoresetMode.SAME_STEP}
    return gymnasium.make_vec("Pusher-v5", num_envs, vector_kwargs=modes, wrappers=wrappers, render_mode=render_mode)

"""Stable-Baselines3 trains SAC on saltus's worlds: ``python examples/train_with_sb3.py InvertedPendulum-v5``."""

import sys

import numpy as np
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from saltus import GymnasiumVectorEnv


class SaltusVecEnv(VecEnv):
    """A GymnasiumVectorEnv as Stable-Baselines3's VecEnv."""

    def __init__(self, env):
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self):
        """Start an episode in every world, with the seed that `seed` gave, if any."""
        observation, _ = self.env.reset(seed=self._seeds[0])
        self._reset_seeds()
        return observation

    def step_async(self, actions):
        """Keep the actions for `step_wait`."""
        self.actions = actions

    def step_wait(self):
        """Step; the infos of worlds whose episode ended have its last observation."""
        observation, reward, terminated, truncated, infos = self.env.step(self.actions)
        done = terminated | truncated
        records = [{} for _ in range(self.num_envs)]
        for world in np.flatnonzero(done):
            records[world]["terminal_observation"] = infos["final_obs"][world]
            records[world]["TimeLimit.truncated"] = bool(truncated[world] and not terminated[world])
        return observation, reward.astype(np.float32), done, records

    def close(self):
        """Release the renderer."""
        self.env.close()

    def get_attr(self, attr_name, indices=None):
        """An attribute of the environment, which is the same for all worlds."""
        return [getattr(self.env, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name, value, indices=None):
        """Set an attribute of the environment."""
        setattr(self.env, attr_name, value)

    def env_method(self, method_name, *method_args, indices=None, **method_kwargs):
        """Call a method of the environment, once for all worlds."""
        result = getattr(self.env, method_name)(*method_args, **method_kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class, indices=None):
        """No world has a wrapper of its own."""
        return [False for _ in self._get_indices(indices)]


def train(task="InvertedPendulum-v5", steps=20_000, num_envs=16, **options):
    """Train SAC with half an update per env step; return the model and the mean return of the last episodes."""
    env = VecMonitor(SaltusVecEnv(GymnasiumVectorEnv(task, num_envs)))
    model = SAC("MlpPolicy", env, gradient_steps=num_envs // 2, seed=0, device="cpu", **options)
    model.learn(steps)
    return model, float(np.mean([episode["r"] for episode in model.ep_info_buffer]))


if __name__ == "__main__":
    _, mean_return = train(*sys.argv[1:2], verbose=1)
    print(f"mean return of the last episodes: {mean_return:.0f}")

"""PPO in one file, in the style of CleanRL: ``python examples/cleanrl_loop.py InvertedPendulum-v5``."""

import sys
from dataclasses import dataclass

import numpy as np
import torch
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from torch import nn
from torch.distributions import Normal

from saltus import GymnasiumVectorEnv


@dataclass
class Args:
    """Settings of a run."""

    task: str = "InvertedPendulum-v5"
    seed: int = 1
    total_timesteps: int = 100_000
    num_envs: int = 32
    num_steps: int = 64
    minibatches: int = 8
    epochs: int = 10
    learning_rate: float = 1e-3
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.2


def mlp(inputs, outputs, scale):
    """A network with two hidden layers, and a last layer with small weights if `scale` is small."""
    layers = nn.Linear(inputs, 64), nn.Linear(64, 64), nn.Linear(64, outputs)
    for layer, gain in zip(layers, (2**0.5, 2**0.5, scale), strict=True):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


class Agent(nn.Module):
    """A Gaussian policy and a value function."""

    def __init__(self, envs):
        super().__init__()
        observations, actions = envs.single_observation_space.shape[0], envs.single_action_space.shape[0]
        self.mean, self.critic = mlp(observations, actions, 0.01), mlp(observations, 1, 1.0)
        self.log_std = nn.Parameter(torch.zeros(actions))

    def value(self, obs):
        """Values of observations, (..., obs_dim) -> (...)."""
        return self.critic(obs).squeeze(-1)

    def policy(self, obs):
        """The distribution of actions."""
        return Normal(self.mean(obs), self.log_std.exp())


def train(args):
    """Train; return the mean return of the last 20 episodes."""
    torch.manual_seed(args.seed)
    envs = RecordEpisodeStatistics(GymnasiumVectorEnv(args.task, args.num_envs), buffer_length=20)
    agent = Agent(envs)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    low, high = envs.action_space.low, envs.action_space.high

    next_obs = torch.from_numpy(envs.reset(seed=args.seed)[0])
    for _ in range(max(1, args.total_timesteps // (args.num_envs * args.num_steps))):
        obs, actions, logprobs, rewards, dones, values = [], [], [], [], [], []
        with torch.no_grad():
            for _ in range(args.num_steps):
                policy = agent.policy(next_obs)
                action = policy.sample()
                obs.append(next_obs)
                actions.append(action)
                logprobs.append(policy.log_prob(action).sum(-1))
                values.append(agent.value(next_obs))
                next_obs, reward, terminated, truncated, infos = envs.step(np.clip(action.numpy(), low, high))
                next_obs, reward = torch.from_numpy(next_obs), torch.from_numpy(reward).float()
                for world in np.flatnonzero(truncated & ~terminated):  # the value beyond a time limit
                    reward[world] += args.gamma * agent.value(torch.from_numpy(infos["final_obs"][world]))
                rewards.append(reward)
                dones.append(torch.from_numpy(terminated | truncated).float())
            following, advantage, advantages = agent.value(next_obs), torch.zeros(args.num_envs), []
            for step in reversed(range(args.num_steps)):
                alive = 1 - dones[step]
                delta = rewards[step] + args.gamma * alive * following - values[step]
                advantage = delta + args.gamma * args.gae_lambda * alive * advantage
                advantages.insert(0, advantage)
                following = values[step]

        b_obs, b_actions, b_logprobs = torch.cat(obs), torch.cat(actions), torch.cat(logprobs)
        b_advantages, b_returns = torch.cat(advantages), torch.cat(advantages) + torch.cat(values)
        for _ in range(args.epochs):
            for batch in torch.randperm(len(b_obs)).chunk(args.minibatches):
                ratio = (agent.policy(b_obs[batch]).log_prob(b_actions[batch]).sum(-1) - b_logprobs[batch]).exp()
                advantage = (b_advantages[batch] - b_advantages[batch].mean()) / (b_advantages[batch].std() + 1e-8)
                clipped = ratio.clamp(1 - args.clip, 1 + args.clip)
                policy_loss = -torch.min(ratio * advantage, clipped * advantage).mean()
                value_loss = 0.5 * (agent.value(b_obs[batch]) - b_returns[batch]).square().mean()
                optimizer.zero_grad()
                (policy_loss + 0.5 * value_loss).backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
    envs.close()
    return float(np.mean(envs.return_queue))


if __name__ == "__main__":
    print(f"mean return of the last episodes: {train(Args(*sys.argv[1:2])):.0f}")

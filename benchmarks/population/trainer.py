"""Trainer: worlds, replay, agents and counters of all members."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

import envs
from benchmarks.population.replay import MemberReplay
from benchmarks.population.stacked_agents import StackedAgents
from envs.task_options import decode_options
from pipeline.config import Config
from pipeline.exploration import RepeatedNoise
from pipeline.learner import Learner
from pipeline.seeding import derive_seed
from saltus.device import resolve_device
from saltus.errors import SaltusError


class Trainer:
    """Trains all members at once, each as `pipeline.run.Run` trains one.

    Args:
        configs: the members' configurations, which may differ in `MEMBER_SETTINGS` and `seed`. The first seed also
            seeds the random numbers that all members share.

    Attributes:
        env: the worlds of all members: those of the first member, then those of the second, and so on.
        agents: the members' agents.
        env_steps: env steps of each member so far.

    Raises:
        SaltusError: a setting that does not work on this machine.
        MemoryError: worlds or replay buffer do not fit.
    """

    def __init__(self, configs: Sequence[Config]):
        self._config, self._members = configs[0], len(configs)
        config, device = self._config, resolve_device(self._config.device)
        if config.matmul_dtype == "tf32" and device.type != "cuda":
            raise SaltusError(f"--matmul-dtype tf32 needs CUDA, and this is {device}: use float32 or bfloat16")
        task = envs.find_task(config.task)
        self.env = envs.make(
            task,
            len(configs) * config.num_envs,
            device=device,
            seed=derive_seed(config.seed, "environment"),
            **dataclasses.asdict(config.simulation),
            **decode_options(task, config.task_options),
        )
        dimensions = self.env.observation_dim, self.env.action_dim
        n_step = config.rewards_per_target(self.env.action_dim)
        configs = [dataclasses.replace(one, n_step=n_step) for one in configs]
        self._buffer = MemberReplay(configs, *dimensions, device)
        self.agents = StackedAgents(configs, *dimensions, device)
        self._learner = Learner(self.agents)
        self._noises = [
            RepeatedNoise(config.num_envs, self.env.action_dim, one.longest_repeat(self.env.task.dt), device)
            for one in configs
        ]
        self._observation = self.env.reset()
        self.env_steps = self._vector_steps = 0

    @property
    def total_env_steps(self) -> int:
        """Env steps that each member does."""
        return self._config.total_env_steps

    @property
    def finished(self) -> bool:
        """Whether each member has done its env steps."""
        return self.env_steps >= self._config.total_env_steps

    @property
    def evaluation_due(self) -> bool:
        """Whether the last vector step passed a multiple of `eval_every` env steps, or was the last."""
        every = self._config.eval_every
        return self.finished or self.env_steps // every > (self.env_steps - self._config.num_envs) // every

    def step(self) -> None:
        """Act, do a round of updates if one is due, and step the worlds."""
        config = self._config
        action = self._act().to(self.env.physics.device)
        if self.env_steps > config.learning_starts and self._vector_steps % config.steps_per_round == 0:
            self.agents.progress.fill_(min(1.0, self.env_steps / config.total_env_steps))
            self._learner.round(self._buffer, config.updates_per_round)
        transition, self._observation = self.env.step(action)
        self._buffer.extend(transition)
        self.agents.observe(transition.reshape(self._members, config.num_envs))
        self.env_steps += config.num_envs
        self._vector_steps += 1

    def _act(self) -> Tensor:
        """Actions of all worlds: uniform before `learning_starts`, then the policies'."""
        worlds, action_dim = self.env.num_envs, self.env.action_dim
        if self.env_steps < self._config.learning_starts:
            return 2 * torch.rand(worlds, action_dim, device=self.agents.device) - 1
        observation = self._observation.view(self._members, self._config.num_envs, -1)
        noise = torch.stack([noise() for noise in self._noises])
        return self._learner.act(observation, noise).view(worlds, action_dim)

"""Trainer: worlds, replay, agents and counters of all members."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import envs
from benchmarks.population.replay import MemberReplay
from benchmarks.population.stacked_agents import StackedAgents
from envs.task_options import decode_options
from pipeline.config import Config
from pipeline.dimensions import Dimensions
from pipeline.exploration import RepeatedNoise
from pipeline.learner import Learner
from pipeline.seeding import derive_seed
from saltus.device import resolve_device
from saltus.errors import SaltusError


class Trainer:
    """Trains all members at once, each as `pipeline.run.Run` trains one.

    A member that diverges acts with zeros from then on, and changes nothing in the others.

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
        if self.env.privileged_dim:
            raise SaltusError(
                "population shows critics what the policy sees, and this task has observations for critics alone: "
                "train its seeds with `python -m benchmarks training`"
            )
        dimensions = Dimensions.of(self.env)
        n_step = config.rewards_per_target(self.env.action_dim)
        configs = [dataclasses.replace(one, n_step=n_step) for one in configs]
        self.agents = StackedAgents(configs, dimensions, device)
        self._buffer = MemberReplay(configs, dimensions, device, self.agents.gammas)
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
    def gradient_steps(self) -> int:
        """Gradient steps of each member so far."""
        return self._learner.gradient_steps

    @property
    def finished(self) -> bool:
        """Whether each member has done its env steps."""
        return self.env_steps >= self._config.total_env_steps

    @property
    def evaluation_due(self) -> bool:
        """Whether the last vector step passed a multiple of `eval_every` env steps, or was the last."""
        return self.finished or self._passed(self._config.eval_every)

    @property
    def checkpoint_due(self) -> bool:
        """Whether the last vector step passed a multiple of `checkpoint_every` env steps, and was not the last."""
        return not self.finished and self._passed(self._config.checkpoint_every)

    def _passed(self, interval: int) -> bool:
        return self.env_steps // interval > (self.env_steps - self._config.num_envs) // interval

    def step(self) -> None:
        """Act, do a round of updates if one is due, and step the worlds."""
        config = self._config
        action = self._act().to(self.env.physics.device)
        if config.learning(self._vector_steps) and self._vector_steps % config.steps_per_round == 0:
            self.agents.apply_schedules(config.progress(self.env_steps, 0.0), self.env_steps, self.env.task.dt)
            self._learner.round(self._buffer, config.updates_per_round)
        transition, self._observation = self.env.step(action)
        self._buffer.extend(transition)
        self.agents.observe(transition.reshape(self._members, config.num_envs))
        self.env_steps += config.num_envs
        self._vector_steps += 1

    def _act(self) -> Tensor:
        """Actions of all worlds: uniform until the first update is due, then the policies'; 0 instead of NaN."""
        worlds, action_dim = self.env.num_envs, self.env.action_dim
        if not self._config.learning(self._vector_steps):
            return 2 * torch.rand(worlds, action_dim, device=self.agents.device) - 1
        observation = self._observation.view(self._members, self._config.num_envs, -1)
        noise = torch.stack([noise() for noise in self._noises])
        # A member that diverged has no other actions, and the worlds of all are stepped at once.
        return self._learner.act(observation, noise).view(worlds, action_dim).nan_to_num()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on; not copies."""
        device = self.agents.device
        return {
            "env_steps": self.env_steps,
            "vector_steps": self._vector_steps,
            "observation": self._observation,
            "environment": self.env.get_state().to_dict(),
            "buffer": self._buffer.state_dict(),
            "agents": self.agents.state_dict(),
            "gradient_steps": self._learner.gradient_steps,
            "noises": [noise.state_dict() for noise in self._noises],
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict` of a trainer with the same configurations."""
        self.env_steps, self._vector_steps = state["env_steps"], state["vector_steps"]
        self._observation = state["observation"].to(self.agents.device, copy=True)
        self.env.set_state(state["environment"])
        self._buffer.load_state_dict(state["buffer"])
        self.agents.load_state_dict(state["agents"])
        self._learner.gradient_steps = state["gradient_steps"]
        for noise, saved in zip(self._noises, state["noises"], strict=True):
            noise.load_state_dict(saved)
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], self.agents.device)

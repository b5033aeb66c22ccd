"""The configuration of a run: one frozen dataclass, and the checks that span its fields."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import tyro


@dataclass(frozen=True)
class Config:
    """Everything that decides what a run computes. The string below a field is its help on the command line."""

    task: tyro.conf.Positional[str]
    """A registered task (Hopper-v5, Humanoid-v5, HalfCheetah-v5, InvertedPendulum-v5) or path/to/file.py:ClassName."""
    task_options: tyro.conf.Suppress[dict[str, Any]] = field(default_factory=dict)
    """The task's own options, by name."""
    seed: int = 0
    """Seeds everything. Runs with different seeds share no random stream."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the replay buffer lives and the learner runs; auto takes cuda where there is one."""
    compile: bool = True
    """Compile the updates with torch.compile (up to a minute at first use, then cached)."""

    num_envs: int = 16
    """Worlds that are simulated side by side."""
    num_threads: int = 0
    """CPU threads for the simulation; 0 takes every core."""
    total_env_steps: int = 200_000
    """Control steps, summed over worlds, after which the run ends."""
    learning_starts: int = 5_000
    """Env steps with uniformly random actions, before the first update."""
    utd_ratio: float = 0.5
    """Update-to-data ratio: gradient steps per env step; below 1 with many worlds, above 1 for sample efficiency."""
    steps_per_round: int = 1
    """Vector steps between rounds of updates."""

    buffer_size: int = 1_000_000
    """Transitions the replay buffer holds (no more than total_env_steps are ever allocated)."""
    batch_size: int = 256
    """Transitions of one update."""

    algorithm: Literal["sac", "crossq"] = "crossq"
    """sac: target networks (Haarnoja et al. 2018). crossq: batch-normalised critics, no target (Bhatt et al. 2024).
    Settings that suit sac come with --preset sac."""
    gamma: float = 0.99
    """Discount per control step."""
    tau: float = 0.005
    """Share of the critics that a target update takes over (sac)."""
    num_critics: int = 2
    """Critics; the smallest value counts."""
    policy_delay: int = 3
    """Critic updates per actor and temperature update."""
    actor_hidden: tuple[int, ...] = (256, 256)
    """Widths of the actor's hidden layers."""
    critic_hidden: tuple[int, ...] = (256, 256)
    """Widths of each critic's hidden layers."""
    actor_lr: float = 1e-3
    """Adam's learning rate for the actor."""
    critic_lr: float = 1e-3
    """Adam's learning rate for the critics."""
    alpha_lr: float = 1e-3
    """Adam's learning rate for the temperature."""
    lr_final: float = 0.1
    """Share of the learning rates that is left at the end; they fall linearly over the run."""
    adam_beta1: float = 0.5
    """Adam's decay of the mean gradient, for actor and critics."""
    alpha_init: float = 1.0
    """First temperature."""
    target_entropy: float | Literal["auto"] = "auto"
    """Entropy that the temperature aims at; auto is minus the action dimension."""

    log_every: int = 1_000
    """Env steps between rows of metrics."""
    eval_every: int = 10_000
    """Env steps between evaluations."""
    eval_episodes: int = 10
    """Whole episodes of one evaluation, played side by side."""
    checkpoint_every: int = 25_000
    """Env steps between checkpoints."""
    wandb: bool = False
    """Also log to Weights & Biases (pip install 'saltus[wandb]')."""

    def __post_init__(self) -> None:
        for name in (
            "num_envs", "total_env_steps", "learning_starts", "steps_per_round", "buffer_size", "batch_size",
            "num_critics", "policy_delay", "log_every", "eval_every", "eval_episodes", "checkpoint_every",
        ):  # fmt: skip
            value = getattr(self, name)
            _require(isinstance(value, int) and value >= 1, name, value, "a whole number, at least 1")
        for name in ("seed", "num_threads"):
            value = getattr(self, name)
            _require(isinstance(value, int) and value >= 0, name, value, "a whole number, 0 or more")
        for name in ("utd_ratio", "actor_lr", "critic_lr", "alpha_lr", "alpha_init"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value > 0, name, value, "a finite number above 0")
        _require(0 <= self.gamma < 1, "gamma", self.gamma, "in [0, 1)")
        _require(0 < self.tau <= 1, "tau", self.tau, "in (0, 1]")
        _require(0 < self.lr_final <= 1, "lr_final", self.lr_final, "in (0, 1]")
        _require(0 <= self.adam_beta1 < 1, "adam_beta1", self.adam_beta1, "in [0, 1)")
        for name in ("actor_hidden", "critic_hidden"):
            widths = getattr(self, name)
            _require(len(widths) > 0 and min(widths) >= 1, name, widths, "one or more widths, each at least 1")
        if self.target_entropy != "auto":
            _require(math.isfinite(self.target_entropy), "target_entropy", self.target_entropy, "finite, or auto")
        self._check_buffer()
        self._check_round()

    def _check_buffer(self) -> None:
        if self.capacity < self.num_envs:
            raise ValueError(
                f"the replay buffer holds {self.capacity} transitions and {self.num_envs} worlds add more at a "
                "step: raise buffer_size and total_env_steps, or lower num_envs"
            )
        if self.learning_starts >= self.total_env_steps:
            raise ValueError(
                f"learning_starts is {self.learning_starts} and the run ends after total_env_steps = "
                f"{self.total_env_steps}: nothing would be learned. Raise total_env_steps or lower learning_starts"
            )
        if min(self.learning_starts, self.capacity) < self.batch_size:
            raise ValueError(
                f"the first update draws batch_size = {self.batch_size} transitions, and only "
                f"{min(self.learning_starts, self.capacity)} are stored by then: raise learning_starts "
                f"({self.learning_starts}) and buffer_size ({self.buffer_size}), or lower batch_size"
            )

    def _check_round(self) -> None:
        steps = self.num_envs * self.steps_per_round
        updates = self.utd_ratio * steps
        if abs(updates - round(updates)) > 1e-6 * max(1.0, updates) or round(updates) < 1:
            near = sorted({max(1, math.floor(updates)), max(1, math.ceil(updates))})
            ratios = " or ".join(f"{count / steps:.12g}" for count in near)
            raise ValueError(
                f"utd_ratio {self.utd_ratio:g} gives {updates:g} updates a round of {self.steps_per_round} vector "
                f"steps of {self.num_envs} worlds; it must be a whole number of at least 1. The nearest ratios that "
                f"work are {ratios}; or change num_envs or steps_per_round"
            )

    @property
    def capacity(self) -> int:
        """Transitions that the buffer allocates."""
        return min(self.buffer_size, self.total_env_steps)

    @property
    def updates_per_round(self) -> int:
        """Critic updates of one round."""
        return round(self.utd_ratio * self.num_envs * self.steps_per_round)

    @property
    def total_gradient_steps(self) -> int:
        """Critic updates of the whole run, over which the learning rates fall."""
        rounds = (self.total_env_steps - self.learning_starts) // (self.num_envs * self.steps_per_round)
        return max(1, rounds * self.updates_per_round)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them (tuples as lists)."""
        return json.loads(json.dumps(vars(self), default=str))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """The inverse of `to_dict`.

        Raises:
            ValueError: names that are no fields, or that are missing: the configuration of another version.
        """
        names = {item.name for item in dataclasses.fields(cls)}
        if names != set(values):
            unknown, missing = sorted(set(values) - names), sorted(names - set(values))
            raise ValueError(
                f"this configuration was written by another version of saltus (unknown: {unknown}, missing: {missing})"
            )
        options = {name: _tuples(value) for name, value in values["task_options"].items()}
        fields: dict[str, Any] = {name: _tuples(value) for name, value in values.items()}
        return cls(**{**fields, "task_options": options})


def _tuples(value: Any) -> Any:
    """Lists, at any depth, as the tuples that they were before JSON."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _require(holds: bool, name: str, value: object, accepted: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value}; it must be {accepted}")

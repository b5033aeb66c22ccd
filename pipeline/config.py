"""The configuration of a run: one frozen dataclass, checked when it is created."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import tyro

from envs.simulation import Simulation
from pipeline import config_checks
from saltus.device import multiplies_bfloat16
from saltus.errors import SaltusError

GROWTH = (250_000, 750_000)
"""Env steps between which the automatic discount grows."""
LONGEST_HORIZON = 1.6
"""Seconds of simulated time to which the horizon of the automatic discount grows, within 100 and 200 control steps."""
LATER_SETTINGS: dict[str, Any] = {"alpha_loss": "log"}
"""Settings that runs of earlier versions may lack, with the values that these versions had."""


@dataclass(frozen=True)
class Config(Simulation):
    """Every setting of a run. The string below a field is its help on the command line."""

    task: tyro.conf.Suppress[str]
    """A registered task, path/to/file.py:ClassName, gym:ID, or path/to/file.py:make_env."""
    task_options: tyro.conf.Suppress[dict[str, Any]] = field(default_factory=dict)
    """The task's own options, by name."""
    seed: int = 0
    """Seed of every random number. Runs with different seeds share no random stream."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the replay buffer and the updates. auto: cuda if there is one."""
    compile: bool = True
    """Compile the updates (up to a minute the first time, then cached)."""
    matmul_dtype: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    """Precision of matrix products. tf32: all in updates (CUDA only). bfloat16: in hidden layers, also when acting.
    auto: bfloat16 with --compile on a CPU with instructions for it, else float32."""

    num_envs: int = 128
    """Number of parallel worlds."""
    total_env_steps: int = 2_000_000
    """Length of the run in control steps, summed over worlds."""
    minutes: float | None = None
    """Length of the run in minutes instead of total_env_steps. The last evaluation comes after it."""
    learning_starts: int = 5_000
    """Actions are uniformly random until more env steps than this are done; then comes the first update."""
    utd_ratio: float = 1 / 16
    """Update-to-data ratio: gradient steps per env step."""
    steps_per_round: int = 1
    """Vector steps between rounds of updates."""

    buffer_size: int | Literal["auto"] = "auto"
    """Capacity of the replay buffer in transitions. auto: 250,000, or 1,000 for each world if that is more. Without
    --minutes at most total_env_steps are allocated."""
    batch_size: int = 256
    """Transitions per update."""

    n_step: int | Literal["auto"] = "auto"
    """Number of rewards before a target bootstraps; fewer at the end of an episode and at the newest transition.
    auto: 3, or 1 with more than 8 action dimensions."""
    gamma: float | Literal["auto"] = "auto"
    """Discount per control step. auto: a horizon, 1 / (1 - gamma), of 100 control steps until 250,000 env steps, then
    linearly to 1.6 s of simulated time at 750,000, but not below 100 steps or above 200."""
    critic_loss: Literal["mse", "categorical"] = "categorical"
    """mse: squared Bellman error. categorical: cross-entropy of a distribution over num_atoms values."""
    num_atoms: int = 101
    """Number of atoms of a categorical critic's distribution."""
    value_range: float = 5.0
    """A categorical critic's atoms are evenly spaced in [-value_range, value_range], which must hold the returns."""
    target_network: bool = False
    """Bootstrap from slowly updated copies of the critics. Otherwise, without value_network: from the critics."""
    value_network: bool = False
    """Bootstrap from a slowly updated copy of a state-value network, as in the first form of SAC."""
    tau: float = 0.005
    """Rate of the target networks: target <- (1 - tau) target + tau network."""
    num_critics: int = 2
    """Number of critics."""
    target_subset: int = 0
    """Number of random critics per update whose minimum makes the target (REDQ); 0: all critics."""
    actor_value: Literal["min", "mean"] = "min"
    """Value that the actor maximises: the minimum over the critics, or their mean."""
    policy_delay: int = 3
    """Critic updates per actor and temperature update."""

    policy: Literal["gaussian", "joint", "factored"] = "gaussian"
    """gaussian: continuous. joint: one categorical distribution over all combinations of the actuators' levels.
    factored: one for each actuator, with critics that are sums over actuators."""
    action_levels: int | Literal["auto"] = 0
    """Levels per actuator of a joint or factored policy, evenly spaced over its range. auto: 5, or the choices of an
    environment with discrete actions; 0: those choices only."""
    discrete_update: Literal["exact", "score", "soft-q"] = "exact"
    """exact: sums over all actions. score: sampled actions, critics that take the action as input, score-function
    gradient. soft-q: no actor, actions with probability proportional to exp(Q / alpha)."""
    network: Literal["mlp", "residual"] = "mlp"
    """mlp: linear layers and ReLU. residual: residual blocks with a fourfold wider hidden layer (FlashSAC)."""
    actor_hidden: tuple[int, ...] = (256, 256)
    """Widths of the actor's hidden layers. residual: one width per block, all equal."""
    critic_hidden: tuple[int, ...] = (256, 256)
    """Widths of each critic's hidden layers. residual: one width per block, all equal."""
    actor_norm: Literal["none", "batch"] = "none"
    """Normalisation layers of the actor."""
    critic_norm: Literal["none", "batch", "layer"] = "batch"
    """Normalisation layers of the critics. batch: over (s, a) and (s', a') in one pass, as in CrossQ."""
    norm_order: Literal["after", "before"] = "after"
    """Whether batch norm comes after each ReLU (CrossQ) or before it (XQC)."""
    dropout: float = 0.0
    """Dropout probability of the critics' hidden units."""
    weight_normalization: Literal["none", "linear", "all"] = "none"
    """Rescale after every step. linear: each unit's weights to norm 1. all: also the scales of batch norm."""

    normalize_observations: bool = False
    """Normalise observations by their running mean and standard deviation."""
    reward_scaling: Literal["none", "std", "bounded"] = "bounded"
    """std: divide rewards by the running std of returns. bounded: also keep returns roughly within value_range,
    without the entropy bonus."""

    actor_lr: float = 1e-3
    """Adam's learning rate for the actor."""
    critic_lr: float = 1e-3
    """Adam's learning rate for the critics and the state-value network."""
    alpha_lr: float = 1e-3
    """Adam's learning rate for the temperature; 0: the temperature stays at alpha_init."""
    alpha_loss: Literal["log", "exp"] = "log"
    """Loss of the temperature: log(alpha) or, as in CrossQ, XQC and FlashSAC, alpha times the entropy's excess over its
    target. Both are minimised over log(alpha)."""
    lr_schedule: Literal["linear", "cosine"] = "linear"
    """Decay of the learning rates over the run."""
    lr_final_fraction: float = 0.1
    """Final learning rates as a fraction of the initial ones; 1: constant."""
    adam_beta1: float = 0.5
    """Adam's beta1 for actor and critics."""
    alpha_init: float | Literal["auto"] = "auto"
    """Initial temperature. auto: 0.2 divided by the number of action dimensions."""
    target_entropy: float | Literal["auto"] = "auto"
    """Target entropy of the policy. auto: minus the action dimension times target_entropy_scale; of a discrete policy,
    the logarithm of the number of joint actions times target_entropy_scale."""
    target_entropy_scale: float = 1.0
    """Factor of the automatic target entropy."""
    eval_policy_averaging: float = 0.05
    """Evaluate an average of the actor over roughly this fraction of its recent updates; 0: the actor itself."""
    noise_repeat: int | Literal["auto"] = "auto"
    """Longest repeat of the exploration noise, in steps. Above 1: k steps with probability proportional to 1/k^2.
    auto: 128 ms of simulated time, between 1 and 16 steps."""

    log_every: int = 10_000
    """Env steps between rows of metrics."""
    eval_every: int = 50_000
    """Env steps between evaluations."""
    eval_episodes: int = 10
    """Episodes per evaluation, played in parallel."""
    checkpoint_every: int = 500_000
    """Env steps between checkpoints."""
    wandb: bool = False
    """Also log to Weights & Biases (pip install -c constraints.txt -e '.[wandb]')."""

    def __post_init__(self) -> None:
        super().__post_init__()
        config_checks.check(self)

    def unused_settings(self) -> dict[str, str]:
        """Settings that have no effect in this configuration, each with the options that it needs."""
        categorical, batch = self.critic_loss == "categorical", "batch" in (self.actor_norm, self.critic_norm)
        discrete = (self.policy != "gaussian", "--policy joint or factored")
        needs = {
            "total_env_steps": (self.minutes is None, "a run without --minutes"),
            "action_levels": discrete,
            "discrete_update": discrete,
            "actor_hidden": (not self.without_actor, "--discrete-update other than soft-q"),
            "actor_lr": (not self.without_actor, "--discrete-update other than soft-q"),
            "policy_delay": (
                not self.without_actor or self.learns_temperature,
                "--discrete-update other than soft-q, or --alpha-lr above 0",
            ),
            # Values that mean the same as the defaults.
            "target_subset": (self.target_subset < self.num_critics, "--num-critics above it"),
            "actor_value": (self.actor_value == "min" or self.num_critics > 1, "--num-critics above 1"),
            "tau": (self.target_network or self.value_network, "--target-network or --value-network"),
            "num_atoms": (categorical, "--critic-loss categorical"),
            "value_range": (
                categorical or self.reward_scaling == "bounded",
                "--critic-loss categorical or --reward-scaling bounded",
            ),
            "norm_order": (batch and self.network == "mlp", "--critic-norm batch and --network mlp"),
            "alpha_loss": (self.learns_temperature, "--alpha-lr above 0"),
            "target_entropy": (self.learns_temperature, "--alpha-lr above 0"),
            "target_entropy_scale": (
                self.learns_temperature and self.target_entropy == "auto",
                "--target-entropy auto and --alpha-lr above 0",
            ),
            "lr_schedule": (self.lr_final_fraction < 1, "--lr-final-fraction below 1"),
        }
        return {name: options for name, (used, options) in needs.items() if not used}

    @property
    def learns_temperature(self) -> bool:
        """Whether the temperature is learned, instead of fixed at its initial value."""
        return self.alpha_lr > 0

    @property
    def clipped_double_q(self) -> bool:
        """Whether the minimum over all critics makes the target and guides the actor."""
        return self.target_subset in (0, self.num_critics) and self.actor_value == "min"

    @property
    def without_actor(self) -> bool:
        """Whether the critics alone define the policy."""
        return self.policy != "gaussian" and self.discrete_update == "soft-q"

    def for_device(self, device: torch.device) -> Config:
        """This configuration, with `matmul_dtype` chosen for a device if it is ``"auto"``."""
        if self.matmul_dtype != "auto":
            return self
        rounds = self.compile and device.type == "cpu" and multiplies_bfloat16()
        return dataclasses.replace(self, matmul_dtype="bfloat16" if rounds else "float32")

    @property
    def task_name(self) -> str:
        """The task's name, without the path of its file."""
        return self.task.rpartition(":")[2]

    @property
    def simulation(self) -> Simulation:
        """Settings of the training worlds."""
        return Simulation(**{item.name: getattr(self, item.name) for item in dataclasses.fields(Simulation)})

    @property
    def capacity(self) -> int:
        """Transitions that the replay buffer allocates."""
        return self.max_transitions if self.minutes is not None else min(self.max_transitions, self.total_env_steps)

    @property
    def max_transitions(self) -> int:
        """`buffer_size`; ``"auto"`` grows with the number of worlds.

        A thousand control steps are an episode of most tasks. Worlds that start together reach the same part of their
        episodes at the same time, so that a shorter memory would hold nothing of the other parts.
        """
        if self.buffer_size == "auto":
            return max(250_000, 1_000 * self.num_envs)
        return self.buffer_size

    def progress(self, env_steps: float, seconds: float) -> float:
        """Share of the run's length that is done, in [0, 1]: of its minutes, or of its env steps."""
        if self.minutes is not None:
            return min(1.0, seconds / (60 * self.minutes))
        return min(1.0, env_steps / self.total_env_steps)

    @property
    def initial_discount(self) -> float:
        """`gamma` at first."""
        return 0.99 if self.gamma == "auto" else self.gamma

    def discount(self, env_steps: float, control_step: float) -> float:
        """`gamma` after a number of env steps; ``"auto"`` grows where control steps are short.

        A long horizon prevents falls; from the start it delays learning (see docs/search.md).

        Args:
            env_steps: env steps done.
            control_step: length of a control step, in seconds of simulated time.
        """
        if self.gamma != "auto":
            return self.gamma
        longest = min(max(LONGEST_HORIZON / control_step, 100), 200)
        first, last = GROWTH
        grown = min(max((env_steps - first) / (last - first), 0.0), 1.0)
        return 1 - 1 / (100 + grown * (longest - 100))

    def rewards_per_target(self, action_dim: int) -> int:
        """`n_step`; ``"auto"`` depends on the width of actions.

        Replayed actions differ from the policy's, and differ more the more dimensions they have.
        """
        if self.n_step == "auto":
            return 3 if action_dim <= 8 else 1
        return self.n_step

    def longest_repeat(self, control_step: float) -> int:
        """`noise_repeat`, in control steps; ``"auto"`` depends on their length, in seconds of simulated time."""
        if self.noise_repeat == "auto":
            return max(1, min(16, int(0.128 / control_step + 1e-6)))
        return self.noise_repeat

    def initial_temperature(self, action_dim: int) -> float:
        """`alpha_init`; ``"auto"`` depends on the width of actions.

        The entropy's share of the returns is then about the same at first, whatever the width.
        """
        if self.alpha_init == "auto":
            return 0.2 / action_dim
        return self.alpha_init

    @property
    def updates_per_round(self) -> int:
        """Critic updates per round."""
        return round(self.utd_ratio * self.num_envs * self.steps_per_round)

    @property
    def rounds(self) -> int:
        """Rounds in `total_env_steps`: one before every `steps_per_round`-th vector step after `learning_starts`."""
        first, last = self.learning_starts // self.num_envs, (self.total_env_steps - 1) // self.num_envs
        return last // self.steps_per_round - first // self.steps_per_round

    def learning(self, vector_steps: int) -> bool:
        """Whether the first round of updates is due, or past, after a number of vector steps."""
        return vector_steps // self.steps_per_round > self.learning_starts // (self.num_envs * self.steps_per_round)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them (tuples as lists)."""
        return json.loads(json.dumps(vars(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """Inverse of `to_dict`; `LATER_SETTINGS` may be missing.

        Raises:
            SaltusError: unknown or missing fields (written by another version), or invalid values.
        """
        values = {**LATER_SETTINGS, **values}
        names = {item.name for item in dataclasses.fields(cls)}
        if names != set(values):
            unknown, missing = sorted(set(values) - names), sorted(names - set(values))
            raise SaltusError(
                "the configuration has the settings of another version of saltus (unknown: "
                f"{', '.join(unknown) or 'none'}; missing: {', '.join(missing) or 'none'})"
            )
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**{**fields, "task_options": {**values["task_options"]}})

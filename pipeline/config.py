"""The configuration of a run: one frozen dataclass, and the checks that span its fields."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro

from envs.simulation import Simulation
from saltus.errors import SaltusError


@dataclass(frozen=True)
class Config(Simulation):
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
    matmul_dtype: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Precision of matrix products' factors: tf32 (CUDA only) in all of an update's, bfloat16 in hidden layers'."""

    num_envs: int = 128
    """Worlds that are simulated side by side."""
    total_env_steps: int = 2_000_000
    """Control steps, summed over worlds, after which the run ends."""
    learning_starts: int = 5_000
    """Env steps with uniformly random actions, before the first update."""
    utd_ratio: float = 1 / 16
    """Update-to-data ratio: gradient steps per env step; below 1 with many worlds, above 1 for sample efficiency."""
    steps_per_round: int = 1
    """Vector steps between rounds of updates."""

    buffer_size: int = 1_000_000
    """Transitions the replay buffer holds (no more than total_env_steps are ever allocated)."""
    batch_size: int = 256
    """Transitions of one update."""

    n_step: int = 3
    """Rewards that a target sums before it bootstraps; fewer where the episode or what is stored ends."""
    gamma: float = 0.99
    """Discount per control step."""
    critic_loss: Literal["mse", "categorical"] = "mse"
    """squared: of the Bellman error. categorical: cross-entropy of a distribution over num_atoms values."""
    num_atoms: int = 101
    """Values of a categorical critic's distribution."""
    value_range: float = 5.0
    """The atoms lie evenly in [-value_range, value_range], where (scaled) returns should fit."""
    target_network: bool = False
    """Bootstrap from slowly following copies of the critics; otherwise from the critics themselves."""
    tau: float = 0.005
    """Share of the critics that the target networks take over at an update."""
    num_critics: int = 2
    """Critics."""
    target_subset: int = 0
    """Critics, drawn anew for each update, whose smallest value makes the target; 0: all of them."""
    actor_value: Literal["min", "mean"] = "min"
    """What the actor maximises: the smallest of the critics' values, or their mean."""
    policy_delay: int = 3
    """Critic updates per actor and temperature update."""

    network: Literal["mlp", "residual"] = "mlp"
    """mlp: linear layers and ReLU. residual: blocks around skip connections, widened fourfold inside (FlashSAC)."""
    actor_hidden: tuple[int, ...] = (256, 256)
    """Widths of the actor's hidden layers, or of its residual blocks, which are all alike."""
    critic_hidden: tuple[int, ...] = (256, 256)
    """Widths of each critic's hidden layers, or of its residual blocks."""
    actor_norm: Literal["none", "batch"] = "none"
    """Normalisation within the actor."""
    critic_norm: Literal["none", "batch", "layer"] = "batch"
    """Normalisation within the critics. batch: of the pairs (s, a) and (s', a') in one pass."""
    norm_order: Literal["after", "before"] = "after"
    """Whether batch norm follows each ReLU (CrossQ) or comes before it (XQC)."""
    dropout: float = 0.0
    """Share of the critics' hidden units that an update drops."""
    weight_normalization: Literal["none", "linear", "all"] = "none"
    """Rescale after every step. linear: each unit's weights to norm 1. all: the normalisations' scales, too."""

    normalize_observations: bool = False
    """Subtract the running mean of observations and divide by their running standard deviation."""
    reward_scaling: Literal["none", "std", "bounded"] = "none"
    """deviation: divide rewards by the standard deviation of returns. bounded: and so that none exceeds value_range."""

    actor_lr: float = 1e-3
    """Adam's learning rate for the actor."""
    critic_lr: float = 1e-3
    """Adam's learning rate for the critics."""
    alpha_lr: float = 1e-3
    """Adam's learning rate for the temperature."""
    lr_schedule: Literal["linear", "cosine"] = "linear"
    """How the learning rates fall over the run."""
    lr_final_fraction: float = 0.1
    """Share of the learning rates that is left at the end."""
    adam_beta1: float = 0.5
    """Adam's decay of the mean gradient, for actor and critics."""
    alpha_init: float = 1.0
    """Initial temperature."""
    target_entropy: float | Literal["auto"] = "auto"
    """Entropy that the temperature aims at; auto is minus the action dimension times target_entropy_scale."""
    target_entropy_scale: float = 1.0
    """Factor of the automatic target entropy."""
    eval_policy_averaging: float = 0.05
    """The policy to be evaluated is the actor's average over about the last such share of its updates; 0: the actor."""
    noise_repeat: int = 1
    """Most steps for which all worlds' noise is held; above 1, for k steps with a probability falling as 1/k^2."""

    log_every: int = 10_000
    """Env steps between rows of metrics."""
    eval_every: int = 50_000
    """Env steps between evaluations."""
    eval_episodes: int = 10
    """Whole episodes of one evaluation, played side by side."""
    checkpoint_every: int = 500_000
    """Env steps between checkpoints."""
    wandb: bool = False
    """Also log to Weights & Biases (pip install 'saltus[wandb]')."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, hint in get_type_hints(type(self)).items():
            choices = get_args(hint)
            if get_origin(hint) is Literal and getattr(self, name) not in choices:
                _require(False, name, repr(getattr(self, name)), f"one of {', '.join(choices)}")
        for name in (
            "num_envs", "total_env_steps", "learning_starts", "steps_per_round", "buffer_size", "batch_size",
            "n_step", "num_atoms", "num_critics", "policy_delay", "noise_repeat",
            "log_every", "eval_every", "eval_episodes", "checkpoint_every",
        ):  # fmt: skip
            value = getattr(self, name)
            _require(isinstance(value, int) and value >= 1, name, value, "a whole number, at least 1")
        for name in ("seed", "target_subset"):
            value = getattr(self, name)
            _require(isinstance(value, int) and value >= 0, name, value, "a whole number, 0 or more")
        for name in ("utd_ratio", "actor_lr", "critic_lr", "alpha_lr", "alpha_init", "value_range"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value > 0, name, value, "a finite number above 0")
        _require(0 <= self.gamma < 1, "gamma", self.gamma, "in [0, 1)")
        _require(0 < self.tau <= 1, "tau", self.tau, "in (0, 1]")
        _require(0 < self.lr_final_fraction <= 1, "lr_final_fraction", self.lr_final_fraction, "in (0, 1]")
        _require(0 <= self.eval_policy_averaging <= 1, "eval_policy_averaging", self.eval_policy_averaging, "in [0, 1]")
        _require(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        _require(0 <= self.adam_beta1 < 1, "adam_beta1", self.adam_beta1, "in [0, 1)")
        for name in ("actor_hidden", "critic_hidden"):
            widths = getattr(self, name)
            _require(len(widths) > 0 and min(widths) >= 1, name, widths, "one or more widths, each at least 1")
        if self.target_entropy != "auto":
            _require(math.isfinite(self.target_entropy), "target_entropy", self.target_entropy, "finite, or auto")
        scale = self.target_entropy_scale
        _require(math.isfinite(scale), "target_entropy_scale", scale, "finite")
        self._check_buffer()
        self._check_round()
        self._check_recipe()

    def _check_buffer(self) -> None:
        if self.capacity < self.num_envs:
            raise SaltusError(
                f"the replay buffer holds {self.capacity} transitions and {self.num_envs} worlds add more at a "
                "step: raise buffer_size and total_env_steps, or lower num_envs"
            )
        if self.rounds < 1:
            raise SaltusError(
                f"learning_starts is {self.learning_starts} and the run ends after total_env_steps = "
                f"{self.total_env_steps}, with no round of updates between: nothing would be learned. Raise "
                "total_env_steps, or lower learning_starts, num_envs or steps_per_round"
            )
        if min(self.learning_starts, self.capacity) < self.batch_size:
            raise SaltusError(
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
            raise SaltusError(
                f"utd_ratio {self.utd_ratio:g} gives {updates:g} updates a round of {self.steps_per_round} vector "
                f"steps of {self.num_envs} worlds; it must be a whole number of at least 1. The nearest ratios that "
                f"work are {ratios}; or change num_envs or steps_per_round"
            )

    def _check_recipe(self) -> None:
        """Refuse what cannot be combined, and say what can."""
        for holds, reason in (
            (
                self.num_critics >= self.target_subset,
                f"a target_subset of {self.target_subset} cannot be drawn from num_critics = {self.num_critics}: raise "
                "num_critics or lower target_subset",
            ),
            (
                self.target_network or self.critic_norm == "batch",
                "without target networks critics are stable only with batch norm: set target_network or "
                "--critic-norm batch",
            ),
            (
                not (self.critic_loss == "mse" and self.target_network and self.critic_norm == "batch"),
                "batch-normalised critics with target networks need --critic-loss categorical (as in XQC); with "
                "--critic-loss mse, leave target_network out (CrossQ) or take another critic_norm",
            ),
            (
                self.clipped_double_q or (self.critic_loss == "mse" and self.target_network),
                "target_subset and --actor-value mean go with --critic-loss mse and target networks",
            ),
            (
                self.dropout == 0 or (self.critic_loss == "mse" and self.critic_norm != "batch"),
                "dropout goes with --critic-loss mse and --critic-norm layer or none",
            ),
            (
                self.actor_norm == "none" or self.critic_loss == "categorical",
                "--actor-norm batch goes with --critic-loss categorical (XQC, FlashSAC)",
            ),
            (
                self.network == "mlp" or (self.actor_norm == self.critic_norm == "batch"),
                "--network residual needs --actor-norm batch and --critic-norm batch",
            ),
            (
                self.network == "mlp" or len({*self.actor_hidden}) == len({*self.critic_hidden}) == 1,
                "--network residual has blocks of one width: give actor_hidden and critic_hidden equal numbers",
            ),
            (
                self.weight_normalization == "none" or self.critic_norm == "batch",
                "--weight-normalization needs --critic-norm batch: without it, critics could not represent large values",
            ),
            (
                self.weight_normalization != "all" or self.critic_loss == "categorical",
                "--weight-normalization all keeps what critics give small: it goes with --critic-loss categorical",
            ),
            (
                "batch" not in (self.actor_norm, self.critic_norm) or self.batch_size >= 2,
                "batch norm needs a batch_size of 2 at least",
            ),
            (
                self.critic_loss == "mse" or self.num_atoms >= 2,
                f"a categorical critic needs num_atoms of 2 at least, not {self.num_atoms}",
            ),
            (
                self.critic_loss == "mse" or self.reward_scaling != "none" or self.value_range != Config.value_range,
                f"a categorical critic's values lie within {self.value_range:g} of 0, where returns seldom do: set "
                "--reward-scaling bounded or std, or another --value-range: what the task's returns can be",
            ),
        ):
            if not holds:
                raise SaltusError(reason)

    def unused_settings(self) -> dict[str, str]:
        """The settings that decide nothing here, each with what it goes with."""
        categorical, batch = self.critic_loss == "categorical", "batch" in (self.actor_norm, self.critic_norm)
        needs = {
            "tau": (self.target_network, "--target-network"),
            "num_atoms": (categorical, "--critic-loss categorical"),
            "value_range": (
                categorical or self.reward_scaling == "bounded",
                "--critic-loss categorical or --reward-scaling bounded",
            ),
            "norm_order": (batch and self.network == "mlp", "--critic-norm batch and --network mlp"),
            "target_entropy_scale": (self.target_entropy == "auto", "--target-entropy auto"),
            "lr_schedule": (self.lr_final_fraction < 1, "an --lr-final-fraction below 1"),
        }
        return {name: what for name, (holds, what) in needs.items() if not holds}

    @property
    def clipped_double_q(self) -> bool:
        """Whether all critics make the target, and the smallest value guides the actor."""
        return self.target_subset in (0, self.num_critics) and self.actor_value == "min"

    @property
    def simulation(self) -> Simulation:
        """The settings of the training worlds."""
        return Simulation(**{item.name: getattr(self, item.name) for item in dataclasses.fields(Simulation)})

    @property
    def capacity(self) -> int:
        """Transitions that the buffer allocates."""
        return min(self.buffer_size, self.total_env_steps)

    @property
    def updates_per_round(self) -> int:
        """Critic updates of one round."""
        return round(self.utd_ratio * self.num_envs * self.steps_per_round)

    @property
    def rounds(self) -> int:
        """Rounds of the whole run: one before every `steps_per_round`-th vector step after `learning_starts`."""
        first, last = self.learning_starts // self.num_envs, (self.total_env_steps - 1) // self.num_envs
        return last // self.steps_per_round - first // self.steps_per_round

    @property
    def total_gradient_steps(self) -> int:
        """Critic updates of the whole run, over which the learning rates fall."""
        return self.rounds * self.updates_per_round

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them (tuples as lists)."""
        return json.loads(json.dumps(vars(self), default=str))

    @classmethod
    def from_dict(cls, values: dict[str, Any], written_by: str = "an unknown version") -> Config:
        """The inverse of `to_dict`.

        Args:
            values: the fields by name.
            written_by: the version of saltus that wrote them.

        Raises:
            SaltusError: fields are unknown or missing: the configuration of another version.
        """
        names = {item.name for item in dataclasses.fields(cls)}
        if names != set(values):
            unknown, missing = sorted(set(values) - names), sorted(names - set(values))
            raise SaltusError(
                f"this configuration was written by saltus {written_by} and has other settings (unknown: "
                f"{', '.join(unknown) or 'none'}; missing: {', '.join(missing) or 'none'}): read it with that version"
            )
        options = {name: _tuples(value) for name, value in values["task_options"].items()}
        fields: dict[str, Any] = {name: _tuples(value) for name, value in values.items()}
        return cls(**{**fields, "task_options": options})


def _tuples(value: Any) -> Any:
    """Lists, at any depth, as the tuples that they were before JSON."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _require(holds: bool, name: str, value: object, accepted: str) -> None:
    if not holds:
        raise SaltusError(f"{name} is {value}; it must be {accepted}")

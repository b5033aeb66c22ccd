"""The loss module of a configuration: a variant of TorchRL's SACLoss or CrossQLoss.

`pipeline.discrete_losses` has the variants of DiscreteSACLoss, `pipeline.state_value` the one with a state value.

`pipeline.torchrl_adapter` evaluates it. Actions are in [-1, 1], so log-probabilities and the target entropy do not
depend on the task's action bounds.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.modules import ProbabilisticActor

from pipeline.config import Config
from pipeline.dimensions import Dimensions
from pipeline.discrete import CategoricalActor, describe_choices
from pipeline.discrete_losses import make_discrete_loss
from pipeline.networks import Actor, Critic, WeightNormalization, initialize_units, mlp, residual, set_matmul_dtype
from pipeline.state_value import StateValueLoss
from pipeline.target_entropy import continuous_target
from pipeline.torchrl_adapter import (
    ActionDistribution,
    CrossQVariant,
    Loss,
    SACVariant,
    actor_parameters,
    critic_parameters,
    describe_targets,
    prepare,
    squared_errors,
)
from saltus.errors import SaltusError


class EnsembleLoss(SACVariant):
    """SAC with an ensemble of critics (REDQ; Chen et al. 2021, algorithm 1); without a subset, as TorchRL's SACLoss.

    TorchRL's REDQLoss has the same critic loss, but computes all three losses at every update, which wastes 19 of 20
    actor losses at `policy_delay` 20, and clips alpha to [0.1, 10].

    Args:
        target_subset: number of critics, sampled without replacement at each update, whose minimum is the target.
        actor_value: ``"mean"`` or ``"min"``: how the actor's loss reduces the critics' values.
    """

    def __init__(self, *args: Any, target_subset: int, actor_value: str, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.target_subset, self.actor_value = target_subset, actor_value

    def critic_loss(self, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        next_batch = batch["next"]
        next_action, log_prob = self.sample_action(next_batch, differentiable=False)
        with torch.no_grad():
            targets = self.target_qvalue_network_params
            if self.target_subset < self.num_qvalue_nets:
                subset = draw_subset(self.num_qvalue_nets, self.target_subset, after=log_prob)
                targets = targets.apply(lambda value: value.index_select(0, subset), batch_size=[self.target_subset])
            next_value = self._values(next_batch, next_action, targets).amin(0) - self.alpha * log_prob
            target = self.value_estimator.value_estimate(batch, next_value=next_value.unsqueeze(-1)).squeeze(-1)
        return squared_errors(self._values(batch, batch["action"], self.qvalue_network_params), target)

    def actor_loss(self, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        action, log_prob = self.sample_action(batch, differentiable=True)
        value = self.action_value(batch, action)
        return (self.alpha * log_prob - value).mean(), {"log_prob": log_prob.detach()}

    def action_value(self, batch: TensorDictBase, action: Tensor) -> Tensor:
        values = self._values(batch, action, self.frozen_critic_params)
        return values.mean(0) if self.actor_value == "mean" else values.amin(0)

    def _values(self, batch: TensorDictBase, action: Tensor, params: TensorDictBase) -> Tensor:
        """The critics' values, (critics, B)."""
        return self.critics(batch, action, params, "state_action_value").squeeze(-1)


def draw_subset(count: int, size: int, after: Tensor) -> Tensor:
    """Draw `size` different indices below `count`.

    The draw reads `after`, a result of the draw before it: compiled code then keeps the order of the two.
    """
    return after.sum().expand(count).clone().uniform_().argsort()[:size]


class JointLoss(CrossQVariant):
    """CrossQ: TorchRL's CrossQLoss, with the metrics of the critics' loss (Bhatt et al. 2024)."""

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        both, actions, log_prob = self.joint_batch(tensordict)
        outputs = self.critics(both, actions, self.qvalue_network_params, "state_action_value")
        values, next_values = outputs.squeeze(-1).chunk(2, dim=1)
        with torch.no_grad():
            next_value = (next_values.amin(0) - self.alpha * log_prob).unsqueeze(-1)
            target = self.value_estimator.value_estimate(tensordict, next_value=next_value).squeeze(-1)
        return squared_errors(values, target)


class CategoricalLoss(SACVariant):
    """SAC with categorical critics and the cross-entropy (XQC, FlashSAC; Bellemare et al. 2017).

    Critics and target networks see current and next pairs as one batch, as batch norm requires (Bhatt et al. 2024).
    Reads ``"observation"``, ``"action"``, ``("next", "observation" | "reward" | "terminated")`` and, if present,
    ``"steps_to_next_obs"`` (see `ReplayBuffer.sample`).

    Args:
        atoms: support of the distributions, (atoms,), evenly spaced; critics return ``"logits"`` (B, atoms).
    """

    atoms: Tensor

    def __init__(self, *args: Any, atoms: Tensor, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.register_buffer("atoms", atoms)

    def critic_loss(self, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        next_batch = batch["next"]
        both, actions, log_prob = self.joint_batch(batch)
        logits, next_logits = self._logits(both, actions, self.qvalue_network_params).chunk(2, dim=1)
        with torch.no_grad():
            if self.delay_qvalue:
                next_logits = self._logits(both, actions, self.target_qvalue_network_params).chunk(2, dim=1)[1]
            smallest = self._mean(next_logits).argmin(0)[None, :, None]
            probabilities = next_logits.softmax(-1).take_along_dim(smallest, 0).squeeze(0)
            steps = batch.get("steps_to_next_obs", torch.ones_like(next_batch["reward"]))
            discount = self.value_estimator.gamma**steps * ~next_batch["terminated"]
            values = next_batch["reward"] + discount * (self.atoms - self.alpha * log_prob.unsqueeze(-1))
            target = project(probabilities, values, self.atoms)
            clipped = clipped_share(probabilities, values, self.atoms)
        loss = -(target * logits.log_softmax(-1)).sum(-1).sum(0).mean()
        return loss, {**describe_targets(self._mean(logits), target @ self.atoms), "clipped_targets": clipped}

    def actor_loss(self, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        # The actor's batch norms normalise by the batch, the critics' by their running statistics.
        self.actor_network.train()
        action, log_prob = self.sample_action(batch, differentiable=True)
        self.actor_network.eval()
        value = self.action_value(batch, action)
        return (self.alpha * log_prob - value).mean(), {"log_prob": log_prob.detach()}

    def action_value(self, batch: TensorDictBase, action: Tensor) -> Tensor:
        self.qvalue_network.eval()
        logits = self._logits(batch, action, self.frozen_critic_params)
        self.qvalue_network.train()
        return self._mean(logits).amin(0)

    def _logits(self, batch: TensorDictBase, action: Tensor, params: TensorDictBase) -> Tensor:
        """The critics' logits, (critics, B, atoms)."""
        return self.critics(batch, action, params, "logits")

    def _mean(self, logits: Tensor) -> Tensor:
        """The means of distributions, (critics, B)."""
        return logits.softmax(-1) @ self.atoms


def project(probabilities: Tensor, values: Tensor, atoms: Tensor) -> Tensor:
    """Project a distribution over `values` onto `atoms` (Bellemare et al. 2017, eq. 7).

    Each value's probability is split linearly between the two nearest atoms. Values beyond the outermost atoms count
    as those.

    Args:
        probabilities: probability of each value, (B, atoms).
        values: (B, atoms).
        atoms: (atoms,), evenly spaced.

    Returns:
        The probability of each atom, (B, atoms).
    """
    last = len(atoms) - 1
    position = (values - atoms[0]) * (last / (atoms[-1] - atoms[0]))
    position = position.clamp(0, last)  # last, because rounding could otherwise leave a negative fraction
    below = position.floor().clamp(max=last - 1)
    fraction = position - below
    index = below.nan_to_num(0).long()  # NaN makes the result NaN, not an index out of bounds
    result = torch.zeros_like(probabilities)
    result = result.scatter_add(-1, index, probabilities * (1 - fraction))
    return result.scatter_add(-1, index + 1, probabilities * fraction)


def clipped_share(probabilities: Tensor, values: Tensor, atoms: Tensor) -> Tensor:
    """The share of a batch's probability that `project`, with these arguments, moves to the outermost atoms."""
    outside = (values < atoms[0]) | (values > atoms[-1])
    return (probabilities * outside).sum(-1).mean()


def make_loss(
    config: Config, dimensions: Dimensions, device: torch.device, batched_critics: bool | None = None
) -> tuple[Loss, Actor | CategoricalActor]:
    """The loss module of a configuration, and the actor whose parameters it trains.

    Args:
        config: the configuration of the run.
        dimensions: widths of observations and actions. The critics see a batch's ``"privileged"``, if it has a width,
            and the actor does not.
        device: where the networks live.
        batched_critics: compute all critics' matrix products as one batched product; None: on CUDA. On the CPU one
            product for each critic is faster.

    Raises:
        SaltusError: a continuous policy for discrete actions, a target entropy that no policy has; see
            `make_discrete_loss`.
    """
    if batched_critics is None:
        batched_critics = device.type != "cpu"
    if config.policy != "gaussian":
        return make_discrete_loss(config, dimensions, device, batched_critics)
    if choices := dimensions.action_choices:
        raise SaltusError(
            f"the environment's actions are discrete ({describe_choices(choices)}), and the recipe's policy is "
            "continuous (--policy gaussian): use --preset sac-discrete"
        )
    observation_dim, action_dim, privileged_dim = dimensions.widths
    actor = _make_actor(config, observation_dim, action_dim).to(device)
    policy = ProbabilisticActor(
        TensorDictModule(actor, ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        out_keys=["action"],
        distribution_class=ActionDistribution,
        # Numbers, not tensors: tracing makes them constants. (Eager updates on CUDA synchronise to copy them.)
        distribution_kwargs={"low": -1.0, "high": 1.0, "tanh_loc": False, "safe_tanh": False},
        return_log_prob=True,
    )
    cls, output_key, options = loss_class(config)
    observed, inputs = ["observation", *(["privileged"] if privileged_dim else [])], observation_dim + privileged_dim
    critics = [
        TensorDictModule(_make_critic(config, inputs + action_dim).to(device), [*observed, "action"], [output_key])
        for _ in range(config.num_critics)
    ]
    if config.value_network:
        value_network = _make_value_network(config, inputs).to(device)
        options = {"value_network": TensorDictModule(value_network, observed, ["state_value"]), **options}
    loss = cls(
        policy,
        critics,
        num_qvalue_nets=config.num_critics,
        loss_function="l2",
        alpha_init=config.initial_temperature(action_dim),
        target_entropy=continuous_target(config, action_dim),
        deactivate_vmap=not batched_critics,
        **options,
    )
    prepare(loss, config.initial_discount, device)
    actor.eval()
    return loss, actor


def loss_class(config: Config) -> tuple[type[Loss], str, dict[str, Any]]:
    """The class of the loss module, the key of its critics' output, and its own arguments."""
    if config.critic_loss == "categorical":
        atoms = torch.linspace(-config.value_range, config.value_range, config.num_atoms)
        return CategoricalLoss, "logits", {"atoms": atoms, "delay_qvalue": config.target_network}
    if config.value_network:
        return StateValueLoss, "state_action_value", {"delay_qvalue": False}
    if not config.target_network:
        return JointLoss, "state_action_value", {}
    subset = config.target_subset or config.num_critics
    return EnsembleLoss, "state_action_value", {"target_subset": subset, "actor_value": config.actor_value}


def _make_actor(config: Config, observation_dim: int, action_dim: int) -> Actor:
    widths = [observation_dim, *config.actor_hidden, 2 * action_dim]
    body = residual(widths) if config.network == "residual" else mlp(widths, config.actor_norm, config.norm_order)
    return Actor(_configure(body, config), bounded=config.network == "residual")


def _make_critic(config: Config, inputs: int) -> Critic:
    widths = [inputs, *config.critic_hidden, config.num_atoms if config.critic_loss == "categorical" else 1]
    if config.network == "residual":
        body = residual(widths)
    else:
        body = mlp(widths, config.critic_norm, config.norm_order, config.dropout)
    return Critic(_configure(body, config))


def _make_value_network(config: Config, inputs: int) -> Critic:
    """A state-value network with the critics' hidden layers, whose inputs are observations."""
    body = mlp([inputs, *config.critic_hidden, 1], config.critic_norm, dropout=config.dropout)
    return Critic(_configure(body, config))


def _configure(body: nn.Module, config: Config) -> nn.Module:
    """Apply a configuration's weight initialisation and matrix product precision to a network."""
    if config.weight_normalization != "none":
        initialize_units(body)
    if config.matmul_dtype == "bfloat16":
        set_matmul_dtype(body, torch.bfloat16)
    return body


def weight_normalizations(config: Config, loss: Loss) -> dict[str, WeightNormalization]:
    """The weight normalisations after a step of ``"critic"`` and ``"actor"``; empty if not configured."""
    if config.weight_normalization == "none":
        return {}
    scales = config.weight_normalization == "all"
    return {
        "critic": WeightNormalization(loss.qvalue_network, critic_parameters(loss), scales),
        "actor": WeightNormalization(loss.actor_network, actor_parameters(loss), scales),
    }

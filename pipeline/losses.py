"""The loss of a configuration: TorchRL's SACLoss or CrossQLoss, or a LossModule of the same kind.

Actions are in [-1, 1] throughout: the losses, their log-probabilities and the target entropy know nothing of the
task's own bounds.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.modules import ProbabilisticActor, TanhNormal
from torchrl.modules.distributions.utils import rsample_and_log_prob
from torchrl.objectives import CrossQLoss, SACLoss
from torchrl.objectives.utils import distance_loss

from pipeline.config import Config
from pipeline.networks import Actor, Critic, UnitWeights, initialize_units, mlp, residual, set_matmul_dtype

Loss: TypeAlias = SACLoss | CrossQLoss


class ActionDistribution(TanhNormal):
    """TorchRL's, but for `sample_and_log_prob`, which draws as `rsample` does.

    TorchRL's calls torch.normal, which checks the deviations on the host: no CUDA graph can hold that. (So does
    `sample`, which nothing here calls.)
    """

    def sample_and_log_prob(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
        """The same draw, and its log probability, without gradients."""
        with torch.no_grad():
            return self.rsample_and_log_prob(sample_shape)


class EnsembleLoss(SACLoss):
    """SAC with many critics: a random few make the target, all guide the actor (Chen et al. 2021, REDQ, algorithm 1).

    TorchRL's REDQLoss computes critic, actor and alpha loss in one pass, twenty actor losses for each that is used at
    a UTD of 20, and clips alpha to [0.1, 10]; its critic loss is the same.

    Args:
        target_subset: critics, drawn without replacement for each update, whose smallest value makes the target.
        actor_value: ``"mean"`` or ``"min"``: of all critics' values, for the actor.
    """

    def __init__(self, *args: Any, target_subset: int, actor_value: str, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.target_subset, self.actor_value = target_subset, actor_value

    def qvalue_v2_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        following = tensordict["next"]
        action, log_prob = _draw(self, following, differentiable=False)
        with torch.no_grad():
            targets = self.target_qvalue_network_params
            if self.target_subset < self.num_qvalue_nets:
                drawn = torch.rand(self.num_qvalue_nets, device=log_prob.device).argsort()[: self.target_subset]
                targets = targets.apply(lambda value: value.index_select(0, drawn), batch_size=[self.target_subset])
            next_value = self._values(following["observation"], action, targets).amin(0) - self._alpha * log_prob
            target = self.value_estimator.value_estimate(tensordict, next_value=next_value.unsqueeze(-1)).squeeze(-1)
        value = self._values(tensordict["observation"], tensordict["action"], self.qvalue_network_params)
        loss = distance_loss(value, target.expand_as(value), self.loss_function).sum(0)
        return loss.mean(), {"td_error": (value - target).abs().detach().amax(0)}

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        action, log_prob = _draw(self, tensordict, differentiable=True)
        values = self._values(tensordict["observation"], action, self._cached_detached_qvalue_params)
        value = values.mean(0) if self.actor_value == "mean" else values.amin(0)
        return (self._alpha * log_prob - value).mean(), {"log_prob": log_prob.detach()}

    def _values(self, observation: Tensor, action: Tensor, params: TensorDictBase) -> Tensor:
        return _critics(self, observation, action, params, "state_action_value").squeeze(-1)


class CategoricalLoss(SACLoss):
    """SAC with critics that are distributions over atoms, and cross-entropy (XQC, FlashSAC; Bellemare et al. 2017).

    Critics, live and target, see current and next pairs as one batch, as batch norm needs it (Bhatt et al. 2024).
    Reads ``"observation"``, ``"action"``, ``("next", "observation" | "reward" | "terminated")`` and, where it is there,
    ``"steps_to_next_obs"`` (see `ReplayBuffer.sample`).

    Args:
        atoms: the values, (atoms,), evenly spaced; critics give ``"logits"`` (B, atoms).
    """

    atoms: Tensor

    def __init__(self, *args: Any, atoms: Tensor, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.register_buffer("atoms", atoms)

    def qvalue_v2_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        following = tensordict["next"]
        next_action, log_prob = _draw(self, following, differentiable=False)
        observations = torch.cat([tensordict["observation"], following["observation"]])
        actions = torch.cat([tensordict["action"], next_action])
        logits, next_logits = self._logits(observations, actions, self.qvalue_network_params).chunk(2, dim=1)
        with torch.no_grad():
            if self.delay_qvalue:
                next_logits = self._logits(observations, actions, self.target_qvalue_network_params).chunk(2, dim=1)[1]
            lowest = self._mean(next_logits).argmin(0)[None, :, None]
            probabilities = next_logits.softmax(-1).take_along_dim(lowest, 0).squeeze(0)
            steps = tensordict.get("steps_to_next_obs", torch.ones_like(following["reward"]))
            discount = self.value_estimator.gamma**steps * ~following["terminated"]
            values = following["reward"] + discount * (self.atoms - self._alpha * log_prob.unsqueeze(-1))
            target = project(probabilities, values, self.atoms)
        loss = -(target * logits.log_softmax(-1)).sum(-1).sum(0).mean()
        td_error = (self._mean(logits) - target @ self.atoms).detach().abs().amax(0)
        return loss, {"td_error": td_error}

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        self.actor_network.train()
        action, log_prob = _draw(self, tensordict, differentiable=True)
        self.actor_network.eval()
        self.qvalue_network.eval()
        logits = self._logits(tensordict["observation"], action, self._cached_detached_qvalue_params)
        self.qvalue_network.train()
        value = self._mean(logits).amin(0)
        return (self._alpha * log_prob - value).mean(), {"log_prob": log_prob.detach()}

    def _logits(self, observation: Tensor, action: Tensor, params: TensorDictBase) -> Tensor:
        return _critics(self, observation, action, params, "logits")

    def _mean(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1) @ self.atoms


def project(probabilities: Tensor, values: Tensor, atoms: Tensor) -> Tensor:
    """The distribution over `atoms` whose mass is that of `values`, each split linearly between the atoms around it.

    Values beyond the outermost atoms count as those (Bellemare et al. 2017, eq. 7).

    Args:
        probabilities: (B, atoms), of each value.
        values: (B, atoms).
        atoms: (atoms,), evenly spaced.
    """
    last = len(atoms) - 1
    position = (values - atoms[0]) * (last / (atoms[-1] - atoms[0]))
    position = position.clamp(0, last)  # after the rounding, which would else leave a share below 0
    below = position.floor().clamp(max=last - 1)
    share = position - below
    index = below.nan_to_num(0).long()  # what is not a number makes the result so, and not an index out of bounds
    result = torch.zeros_like(probabilities)
    result = result.scatter_add(-1, index, probabilities * (1 - share))
    return result.scatter_add(-1, index + 1, probabilities * share)


def _draw(loss: SACLoss, tensordict: TensorDictBase, differentiable: bool) -> tuple[Tensor, Tensor]:
    """Actions (B, action_dim) of the policy, and their log-probabilities (B,)."""
    with torch.set_grad_enabled(differentiable), loss.actor_network_params.to_module(loss.actor_network):
        return rsample_and_log_prob(loss.actor_network.get_dist(tensordict.select("observation")))


def _critics(loss: SACLoss, observation: Tensor, action: Tensor, params: TensorDictBase, key: str) -> Tensor:
    """What each critic gives, (critics, B, ...)."""
    pairs = TensorDict({"observation": observation, "action": action}, batch_size=observation.shape[:1])
    return loss._vmap_qnetworkN0(pairs, params)[key]


def make_loss(config: Config, observation_dim: int, action_dim: int, device: torch.device) -> tuple[Loss, Actor]:
    """The loss module, and the actor whose parameters it trains."""
    actor = _actor(config, observation_dim, action_dim).to(device)
    policy = ProbabilisticActor(
        TensorDictModule(actor, ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        out_keys=["action"],
        distribution_class=ActionDistribution,
        # Bounds of -1 and 1 as numbers, which tracing takes for constants. (Plain updates on CUDA wait for two copies.)
        distribution_kwargs={"low": -1.0, "high": 1.0, "tanh_loc": False, "safe_tanh": False},
        return_log_prob=True,
    )
    kind, key, options = _kind(config)
    critics = [
        TensorDictModule(_critic(config, observation_dim + action_dim).to(device), ["observation", "action"], [key])
        for _ in range(config.num_critics)
    ]
    target_entropy = config.target_entropy
    if target_entropy == "auto":
        target_entropy = -config.target_entropy_scale * action_dim
    loss = kind(
        policy,
        critics,
        num_qvalue_nets=config.num_critics,
        loss_function="l2",
        alpha_init=config.alpha_init,
        target_entropy=target_entropy,
        # On the CPU a matrix product for each critic is faster than one batched product.
        deactivate_vmap=device.type == "cpu",
        **options,
    )
    loss.make_value_estimator(gamma=config.gamma)
    loss.to(device)
    # Both are made at their first access, which must not be one on the fake tensors of `pipeline.graph`.
    _ = loss.target_entropy, loss._cached_detached_qvalue_params
    actor.eval()
    return loss, actor


def _kind(config: Config) -> tuple[type[Loss], str, dict[str, Any]]:
    """The class of the loss, the key of what its critics give, and the arguments of its own."""
    if config.critic_loss == "categorical":
        atoms = torch.linspace(-config.value_range, config.value_range, config.num_atoms)
        return CategoricalLoss, "logits", {"atoms": atoms, "delay_qvalue": config.target_network}
    if not config.target_network:
        return CrossQLoss, "state_action_value", {}
    if config.min_of_all:
        return SACLoss, "state_action_value", {}
    subset = config.target_subset or config.num_critics
    return EnsembleLoss, "state_action_value", {"target_subset": subset, "actor_value": config.actor_value}


def _actor(config: Config, observation_dim: int, action_dim: int) -> Actor:
    widths = [observation_dim, *config.actor_hidden, 2 * action_dim]
    body = residual(widths) if config.network == "residual" else mlp(widths, config.actor_norm, config.norm_order)
    return Actor(_configured(body, config), bounded=config.network == "residual")


def _critic(config: Config, inputs: int) -> Critic:
    widths = [inputs, *config.critic_hidden, config.num_atoms if config.critic_loss == "categorical" else 1]
    if config.network == "residual":
        body = residual(widths)
    else:
        body = mlp(widths, config.critic_norm, config.norm_order, config.dropout)
    return Critic(_configured(body, config))


def _configured(body: nn.Module, config: Config) -> nn.Module:
    """A network with the configuration's first weights and matrix products."""
    if config.unit_weights != "none":
        initialize_units(body)
    if config.matmul_dtype == "bfloat16":
        set_matmul_dtype(body, torch.bfloat16)
    return body


def critic_loss(loss: Loss, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
    """The critics' loss, averaged over the batch and summed over critics (Haarnoja et al. 2018, eq. 5)."""
    return loss.qvalue_loss(batch) if isinstance(loss, CrossQLoss) else loss.qvalue_v2_loss(batch)


def actor_loss(loss: Loss, batch: TensorDictBase) -> tuple[Tensor, Tensor]:
    """Mean of ``alpha * log pi(a|s) - Q(s, a)`` (eq. 7 and 9), and the log-probabilities of its actions."""
    value, metadata = loss.actor_loss(batch)
    return value, metadata["log_prob"]


def alpha_loss(loss: Loss, log_prob: Tensor) -> Tensor:
    """Mean of ``-log_alpha * (log pi(a|s) + target_entropy)`` (eq. 18, in log_alpha as is usual)."""
    return loss.alpha_loss(log_prob).mean()


def critic_parameters(loss: Loss) -> dict[str, Tensor]:
    """The critics' parameters by name, stacked over critics."""
    return _trainable(loss.qvalue_network_params)


def target_parameters(loss: Loss) -> dict[str, Tensor]:
    """The target critics' parameters by the names of `critic_parameters`; none where there is no target."""
    if isinstance(loss, CrossQLoss) or not loss.delay_qvalue:
        return {}
    names = critic_parameters(loss)
    targets = loss.target_qvalue_network_params.flatten_keys(".")
    return {name: targets[name] for name in names}


def actor_parameters(loss: Loss) -> dict[str, Tensor]:
    """The actor's parameters by name."""
    return _trainable(loss.actor_network_params)


def unit_weights(config: Config, loss: Loss) -> tuple[UnitWeights, UnitWeights] | None:
    """What rescales the critics' and the actor's parameters after a step, where the configuration asks for it."""
    if config.unit_weights == "none":
        return None
    scales = config.unit_weights == "all"
    return (
        UnitWeights(loss.qvalue_network, critic_parameters(loss), scales),
        UnitWeights(loss.actor_network, actor_parameters(loss), scales),
    )


def _trainable(params: TensorDictBase) -> dict[str, Tensor]:
    return {name: value for name, value in params.flatten_keys(".").items() if value.requires_grad}

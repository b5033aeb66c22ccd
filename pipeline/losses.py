"""The TorchRL loss of a configuration.

Actions are in [-1, 1] throughout: the losses, their log-probabilities and the target entropy know nothing of the
task's own bounds.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.modules import ProbabilisticActor, TanhNormal
from torchrl.objectives import CrossQLoss, SACLoss

from pipeline.config import Config
from pipeline.networks import Actor, Critic

Loss: TypeAlias = SACLoss | CrossQLoss


def make_loss(config: Config, observation_dim: int, action_dim: int, device: torch.device) -> tuple[Loss, Actor]:
    """The loss module, and the actor whose parameters it trains."""
    actor = Actor(observation_dim, action_dim, config.actor_hidden).to(device)
    policy = ProbabilisticActor(
        TensorDictModule(actor, ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        out_keys=["action"],
        distribution_class=TanhNormal,
        # Bounds of -1 and 1 as numbers: tensors would be compared, and so synchronised, at every construction.
        distribution_kwargs={"low": -1.0, "high": 1.0, "tanh_loc": False, "safe_tanh": False},
        return_log_prob=True,
    )
    critic = Critic(observation_dim, action_dim, config.critic_hidden, batch_norm=config.algorithm == "crossq")
    value = TensorDictModule(critic.to(device), ["observation", "action"], ["state_action_value"])
    target_entropy = -float(action_dim) if config.target_entropy == "auto" else config.target_entropy
    kind = {"sac": SACLoss, "crossq": CrossQLoss}[config.algorithm]
    loss = kind(
        policy,
        value,
        num_qvalue_nets=config.num_critics,
        loss_function="l2",
        alpha_init=config.alpha_init,
        target_entropy=target_entropy,
    )
    loss.make_value_estimator(gamma=config.gamma)
    assert float(loss.target_entropy) == target_entropy  # made a buffer here, at first access, not while compiling
    return loss, actor


def critic_loss(loss: Loss, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared Bellman error, averaged over the batch and summed over critics (Haarnoja et al. 2018, eq. 5)."""
    return loss.qvalue_loss(batch) if isinstance(loss, CrossQLoss) else loss.qvalue_v2_loss(batch)


def actor_loss(loss: Loss, batch: TensorDictBase) -> tuple[Tensor, Tensor]:
    """Mean of ``alpha * log pi(a|s) - min Q(s, a)`` (eq. 7 and 9), and the log-probabilities of its actions."""
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
    if isinstance(loss, CrossQLoss):
        return {}
    names = critic_parameters(loss)
    targets = loss.target_qvalue_network_params.flatten_keys(".")
    return {name: targets[name] for name in names}


def actor_parameters(loss: Loss) -> dict[str, Tensor]:
    """The actor's parameters by name."""
    return _trainable(loss.actor_network_params)


def _trainable(params: TensorDictBase) -> dict[str, Tensor]:
    return {name: value for name, value in params.flatten_keys(".").items() if value.requires_grad}

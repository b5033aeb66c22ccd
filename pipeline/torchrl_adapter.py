"""SAC's losses, computed by TorchRL's loss modules.

`critic_loss`, `actor_loss` and `alpha_loss` evaluate a loss module on a batch, and `value_loss` one with a state-value
network. Equation numbers are those of Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications" (arXiv
1812.05905). Actions are in [-1, 1].

This is the only module that uses undocumented attributes of TorchRL. `require_parts` checks that they exist.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import Any, Literal, TypeAlias

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.modules import TanhNormal
from torchrl.objectives import CrossQLoss, DiscreteSACLoss, SACLoss

from pipeline.discrete import ActionLevels
from saltus.errors import SaltusError

# The agent itself updates the target networks.
warnings.filterwarnings("ignore", "No target network updater has been associated", UserWarning)

Loss: TypeAlias = SACLoss | CrossQLoss | DiscreteSACLoss

_SHARED_PARTS = {
    "_alpha": "the temperature, detached",
    "_cached_detached_qvalue_params": "the critics' parameters without gradients, for the actor's loss",
    "_vmap_qnetworkN0": "applies all critics, given their stacked parameters",
    "target_entropy": "the entropy that the temperature aims at",
}
PARTS: dict[type, dict[str, str]] = {
    SACLoss: _SHARED_PARTS,
    CrossQLoss: _SHARED_PARTS,
    DiscreteSACLoss: _SHARED_PARTS,
}
"""Undocumented attributes of TorchRL's losses that saltus uses, and what for."""


class ActionDistribution(TanhNormal):
    """TanhNormal whose `sample_and_log_prob` samples like `rsample`.

    TorchRL's version calls torch.normal, which checks the scale on the host; a CUDA graph cannot contain that.
    """

    def sample_and_log_prob(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
        """A sample and its log-probability, without gradients."""
        with torch.no_grad():
            return self.rsample_and_log_prob(sample_shape)


class _Parts:
    """Public names of what the variants of both of TorchRL's losses have."""

    _alpha: Tensor
    _cached_detached_qvalue_params: TensorDictBase

    @property
    def alpha(self) -> Tensor:
        """The temperature, a scalar without gradient."""
        return self._alpha

    @property
    def frozen_critic_params(self) -> TensorDictBase:
        """The critics' stacked parameters without gradients."""
        return self._cached_detached_qvalue_params


class _ContinuousParts(_Parts):
    """Actions and critics of the variants with continuous actions."""

    actor_network: Any
    actor_network_params: TensorDictBase
    qvalue_network: Any

    def sample_action(self, batch: TensorDictBase, differentiable: bool) -> tuple[Tensor, Tensor]:
        """Reparameterised actions of the policy, (B, action_dim), and their log-probabilities, (B,)."""
        with torch.set_grad_enabled(differentiable), self.actor_network_params.to_module(self.actor_network):
            return self.actor_network.get_dist(batch.select("observation")).rsample_and_log_prob()

    def joint_batch(self, batch: TensorDictBase) -> tuple[TensorDictBase, Tensor, Tensor]:
        """The critics' observations of s and s', actions a and a' ~ pi(s'), 2B each, and log pi(a'|s'), (B,)."""
        next_batch = batch["next"]
        next_action, log_prob = self.sample_action(next_batch, differentiable=False)
        observed = [key for key in self.qvalue_network.in_keys if key != "action"]
        both = torch.cat([batch.select(*observed), next_batch.select(*observed)])
        return both, torch.cat([batch["action"], next_action]), log_prob

    def critics(self, batch: TensorDictBase, action: Tensor, params: TensorDictBase, key: str) -> Tensor:
        """The output `key` of every critic, (critics, B, ...), for the observations of `batch` and other actions."""
        return _critic_outputs(self, batch, action, params, key)


class CrossQVariant(_ContinuousParts, CrossQLoss):
    """Base class of a CrossQ loss with its own critic loss, `qvalue_loss`."""


class SACVariant(_ContinuousParts, SACLoss):
    """Base class of SAC losses with their own critic and actor losses.

    Subclasses define `critic_loss` and `actor_loss` with the public methods and properties below.
    """

    def critic_loss(self, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The critics' loss, a scalar, and the metrics of `torchrl_adapter.critic_loss`."""
        raise NotImplementedError

    def actor_loss(self, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The actor's loss, a scalar, and ``"log_prob"`` (B,)."""
        raise NotImplementedError

    def qvalue_v2_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """`critic_loss`, by TorchRL's name."""
        return self.critic_loss(tensordict)

    def action_value(self, batch: TensorDictBase, action: Tensor) -> Tensor:
        """The value that the actor's loss maximises, (B,): the minimum over the critics."""
        return _smallest_value(self, batch, action)


class DiscreteVariant(_Parts, DiscreteSACLoss):
    """Base class of discrete SAC losses, which compute expectations over actions in their own way.

    Subclasses define `next_value`, `chosen_values` and `actor_loss` with the public methods and properties below.

    Attributes:
        levels: the discrete actions.
    """

    levels: ActionLevels

    def next_value(self, next_batch: TensorDictBase) -> Tensor:
        """The soft value of the next states by the target networks, (B,); computed without gradients."""
        raise NotImplementedError

    def chosen_values(self, batch: TensorDictBase) -> Tensor:
        """The critics' values of the batch's actions, (critics, B)."""
        raise NotImplementedError

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The critics' loss, a scalar, and the metrics of `torchrl_adapter.critic_loss`, by TorchRL's name."""
        with torch.no_grad():
            next_value = self.next_value(tensordict["next"]).unsqueeze(-1)
            target = self.value_estimator.value_estimate(tensordict, next_value=next_value).squeeze(-1)
        return squared_errors(self.chosen_values(tensordict), target)

    def log_probs(self, batch: TensorDictBase, differentiable: bool) -> Tensor:
        """The policy's log-probabilities of all choices, (B, heads, choices)."""
        with torch.set_grad_enabled(differentiable), self.actor_network_params.to_module(self.actor_network):
            return self.actor_network.get_dist(batch.select("observation")).logits

    def critics(self, inputs: TensorDictBase, params: TensorDictBase) -> Tensor:
        """The output of every critic, (critics, B, ...)."""
        return self._vmap_qnetworkN0(inputs, params)["action_value"]


def squared_errors(values: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """J_Q of values (critics, B) and their target (B,): see `SACVariant.critic_loss`.

    The loss is averaged over the batch and summed over critics, without the factor 1/2 of the papers. The metrics are
    those of `critic_loss`.
    """
    errors = nn.functional.mse_loss(values, target.expand_as(values), reduction="none")
    return errors.sum(0).mean(), describe_targets(values, target)


def describe_targets(values: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The metrics of `critic_loss` for values (critics, B) and targets (B,)."""
    values = values.detach()
    return {"td_error": (values - target).abs().amax(0), "q_mean": values.mean(), "target_mean": target.mean()}


def prepare(loss: Loss, gamma: float, device: torch.device) -> None:
    """Set a new loss module's discount, a scalar that may change in place, and its device.

    Raises:
        SaltusError: see `require_parts`.
    """
    loss.make_value_estimator(gamma=gamma)
    loss.to(device)
    require_parts(loss)


def require_parts(loss: Loss) -> None:
    """Check that a loss module has the undocumented attributes used here.

    This also computes cached attributes, which must not first be computed from fake tensors, during tracing.

    Raises:
        SaltusError: an attribute is missing: the installed TorchRL is not supported.
    """
    missing = [
        f"{cls.__name__}.{name} ({purpose})"
        for cls, parts in PARTS.items()
        for name, purpose in parts.items()
        if isinstance(loss, cls) and not hasattr(loss, name)
    ]
    if missing:
        raise SaltusError(
            f"torchrl {version('torchrl')} has no {', no '.join(missing)}: install a version that pyproject.toml "
            "allows, or adapt pipeline/torchrl_adapter.py"
        )


def critic_loss(loss: Loss, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
    """J_Q, eq. 5: the soft Bellman error, averaged over the batch and summed over critics.

    Returns:
        The loss, a scalar without the equation's factor 1/2, and metrics without gradient. ``"td_error"``: the largest
        over critics, (B,). ``"q_mean"``: the mean of the critics' values of the batch. ``"target_mean"``: the mean
        target. ``"clipped_targets"``, of categorical critics only: see `pipeline.losses.clipped_share`.
    """
    evaluate = loss.qvalue_loss if isinstance(loss, CrossQLoss | DiscreteSACLoss) else loss.qvalue_v2_loss
    return evaluate(batch)


def actor_loss(loss: Loss, batch: TensorDictBase) -> tuple[Tensor, Tensor]:
    """J_pi, eq. 9: the mean of ``alpha log pi(a|s) - Q(s, a)`` over reparameterised actions.

    Returns:
        The loss, a scalar, and log pi(a|s), (B,), without gradient.
    """
    value, metadata = loss.actor_loss(batch)
    return value, metadata["log_prob"]


def action_value(loss: Loss, batch: TensorDictBase, action: Tensor) -> Tensor:
    """Q(s, a) as `actor_loss` has it: the minimum over the critics, or their mean, as configured.

    Args:
        loss: the loss module.
        batch: what the critics see of B states, normalised if the run normalises.
        action: (B, action_dim) in [-1, 1].

    Returns:
        The values, (B,), with gradients for the action and none for the critics.
    """
    if isinstance(loss, SACVariant):
        return loss.action_value(batch, action)
    if not isinstance(loss, CrossQLoss):
        return _smallest_value(loss, batch, action)
    loss.qvalue_network.eval()  # batch norms then normalise by their running statistics
    value = _smallest_value(loss, batch, action)
    loss.qvalue_network.train()
    return value


def _smallest_value(loss: Loss, batch: TensorDictBase, action: Tensor) -> Tensor:
    params = loss._cached_detached_qvalue_params
    return _critic_outputs(loss, batch, action, params, "state_action_value").squeeze(-1).amin(0)


def _critic_outputs(loss: Loss, batch: TensorDictBase, action: Tensor, params: TensorDictBase, key: str) -> Tensor:
    pairs = batch.select(*loss.qvalue_network.in_keys, strict=False).set("action", action)
    return loss._vmap_qnetworkN0(pairs, params)[key]


def alpha_loss(loss: Loss, log_prob: Tensor, form: Literal["log", "exp"] = "log") -> Tensor:
    """J(alpha), eq. 18, minimised over ``log_alpha``, which keeps alpha positive; a scalar.

    ``"log"`` is TorchRL's loss, the mean of ``-log_alpha (log pi(a|s) + target_entropy)``. Its gradient for log_alpha,
    ``-(log pi(a|s) + target_entropy)``, is that of eq. 18 for alpha. ``"exp"`` is eq. 18 as a function of log_alpha,
    the mean of ``-exp(log_alpha) (log pi(a|s) + target_entropy)``, whose gradient is alpha times as large (CrossQ,
    XQC, FlashSAC). Both have the same fixed point: an entropy of ``target_entropy``.
    """
    if form == "exp":
        return -(loss.log_alpha.exp() * (log_prob + loss.target_entropy)).mean()
    return loss.alpha_loss(log_prob).mean()


def value_loss(loss: Loss, batch: TensorDictBase) -> Tensor:
    """J_V: the mean of ``(V(s) - min Q(s, a) + alpha log pi(a|s))^2`` over actions of the policy, a scalar.

    Eq. 5 of Haarnoja et al. 2018, "Soft Actor-Critic: Off-Policy Maximum Entropy Deep Reinforcement Learning with a
    Stochastic Actor" (arXiv 1801.01290), without its factor 1/2.
    """
    return loss.value_loss(batch)[0]


def critic_parameters(loss: Loss) -> dict[str, Tensor]:
    """The critics' trainable parameters by name, stacked over critics."""
    return _trainable(loss.qvalue_network_params)


def value_parameters(loss: Loss) -> dict[str, Tensor]:
    """The state-value network's trainable parameters by name; empty without such a network."""
    if not isinstance(loss, SACLoss) or loss.value_network_params is None:
        return {}
    return _trainable(loss.value_network_params)


def target_parameters(loss: Loss) -> dict[str, Tensor]:
    """The target networks' parameters; empty without target networks.

    They have the names of `value_parameters`, or of `critic_parameters` if there is no state-value network.
    """
    if values := value_parameters(loss):
        targets = loss.target_value_network_params.flatten_keys(".")
        return {name: targets[name] for name in values}
    if isinstance(loss, CrossQLoss) or not loss.delay_qvalue:
        return {}
    targets = loss.target_qvalue_network_params.flatten_keys(".")
    return {name: targets[name] for name in critic_parameters(loss)}


def actor_parameters(loss: Loss) -> dict[str, Tensor]:
    """The actor's trainable parameters by name."""
    return _trainable(loss.actor_network_params)


def _trainable(params: TensorDictBase) -> dict[str, Tensor]:
    return {name: value for name, value in params.flatten_keys(".").items() if value.requires_grad}

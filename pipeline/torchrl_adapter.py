"""TorchRL's loss modules behind a small interface; the only file that touches their private parts.

A TorchRL that has renamed one of these parts fails in `require_private_parts`, with a message that lists them.

SAC's three losses are here by name: `critic_loss`, `actor_loss` and `alpha_loss`. Equation numbers are those of
Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications" (arXiv 1812.05905). Actions lie in [-1, 1].
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TypeAlias

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.modules import TanhNormal
from torchrl.objectives import CrossQLoss, SACLoss
from torchrl.objectives.utils import distance_loss

from saltus.errors import SaltusError

Loss: TypeAlias = SACLoss | CrossQLoss

PRIVATE_PARTS = {
    "_vmap_qnetworkN0": "applies all critics to a batch, given their stacked parameters",
    "_alpha": "the temperature, detached",
    "_cached_detached_qvalue_params": "the critics' parameters without gradients, for the actor's loss",
}
"""Private attributes of SACLoss and CrossQLoss that saltus uses, and what for."""


class ActionDistribution(TanhNormal):
    """TanhNormal whose `sample_and_log_prob` draws as `rsample` does.

    TorchRL's version calls torch.normal, which checks the scale on the host; a CUDA graph cannot contain that.
    """

    def sample_and_log_prob(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
        """A sample and its log-probability, without gradients."""
        with torch.no_grad():
            return self.rsample_and_log_prob(sample_shape)


class CustomLoss(SACLoss):
    """A SACLoss with critic and actor losses of our own, and public names for the parts that they use.

    Subclasses define `critic_loss` and `actor_loss`.
    """

    def critic_loss(self, batch: TensorDictBase) -> tuple[Tensor, Tensor]:
        """The critics' loss, a scalar, and the TD error of each transition, (B,)."""
        raise NotImplementedError

    @property
    def alpha(self) -> Tensor:
        """The temperature, a scalar without gradient."""
        return self._alpha

    @property
    def frozen_critic_params(self) -> TensorDictBase:
        """The critics' stacked parameters without gradients."""
        return self._cached_detached_qvalue_params

    def sample_action(self, batch: TensorDictBase, differentiable: bool) -> tuple[Tensor, Tensor]:
        """Reparameterised actions of the policy, (B, action_dim), and their log-probabilities, (B,)."""
        with torch.set_grad_enabled(differentiable), self.actor_network_params.to_module(self.actor_network):
            return self.actor_network.get_dist(batch.select("observation")).rsample_and_log_prob()

    def critics(self, observation: Tensor, action: Tensor, params: TensorDictBase, key: str) -> Tensor:
        """The output `key` of every critic, (critics, B, ...)."""
        pairs = TensorDict({"observation": observation, "action": action}, batch_size=observation.shape[:1])
        return self._vmap_qnetworkN0(pairs, params)[key]

    def distance(self, value: Tensor, target: Tensor) -> Tensor:
        """The loss function of TorchRL's losses, elementwise."""
        return distance_loss(value, target, self.loss_function)


def require_private_parts(loss: Loss) -> None:
    """Check that a loss has every private part that is used here; this also computes its cached parts.

    The caches must not be filled during tracing, with fake tensors.

    Raises:
        SaltusError: a part is missing: this TorchRL is too new.
    """
    missing = [f"{name} ({purpose})" for name, purpose in PRIVATE_PARTS.items() if not hasattr(loss, name)]
    if missing:
        raise SaltusError(
            f"torchrl {version('torchrl')} has no {type(loss).__name__}.{', '.join(missing)}: install a version that "
            "pyproject.toml allows, or adapt pipeline/torchrl_adapter.py"
        )
    _ = loss.target_entropy  # a buffer, made at its first access


def critic_loss(loss: Loss, batch: TensorDictBase) -> tuple[Tensor, Tensor]:
    """The soft Bellman error, eq. 5: mean over the batch, summed over critics. Also the TD errors, (B,)."""
    if isinstance(loss, CustomLoss):
        return loss.critic_loss(batch)
    value, metadata = loss.qvalue_loss(batch) if isinstance(loss, CrossQLoss) else loss.qvalue_v2_loss(batch)
    return value, metadata["td_error"]


def actor_loss(loss: Loss, batch: TensorDictBase) -> tuple[Tensor, Tensor]:
    """Mean of ``alpha log pi(a|s) - Q(s, a)`` over reparameterised actions, eq. 9. Also their log pi, (B,)."""
    value, metadata = loss.actor_loss(batch)
    return value, metadata["log_prob"]


def alpha_loss(loss: Loss, log_prob: Tensor) -> Tensor:
    """Mean of ``-log_alpha (log pi(a|s) + target_entropy)``, eq. 18 with log_alpha in the place of alpha."""
    return loss.alpha_loss(log_prob).mean()


def critic_parameters(loss: Loss) -> dict[str, Tensor]:
    """The critics' trainable parameters by name, stacked over critics."""
    return _trainable(loss.qvalue_network_params)


def target_parameters(loss: Loss) -> dict[str, Tensor]:
    """The target critics' parameters by the names of `critic_parameters`; empty without target networks."""
    if isinstance(loss, CrossQLoss) or not loss.delay_qvalue:
        return {}
    names = critic_parameters(loss)
    targets = loss.target_qvalue_network_params.flatten_keys(".")
    return {name: targets[name] for name in names}


def actor_parameters(loss: Loss) -> dict[str, Tensor]:
    """The actor's trainable parameters by name."""
    return _trainable(loss.actor_network_params)


def _trainable(params: TensorDictBase) -> dict[str, Tensor]:
    return {name: value for name, value in params.flatten_keys(".").items() if value.requires_grad}

"""SAC's first form: critics that learn from a state-value network.

Haarnoja et al. 2018, "Soft Actor-Critic: Off-Policy Maximum Entropy Deep Reinforcement Learning with a Stochastic
Actor" (arXiv 1801.01290).
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives import SACLoss

from pipeline.torchrl_adapter import SACVariant, squared_errors


class StateValueLoss(SACVariant):
    """SAC with a state-value network and its slowly updated copy (Haarnoja et al. 2018a).

    The losses of the network, ``value_loss`` (eq. 5), and of the actor (eq. 12) are those of TorchRL's SACLoss, version
    1, whose critic loss trains each critic on a part of the batch of its own. Here every critic learns from the whole
    batch, as in the paper.
    """

    actor_loss = SACLoss.actor_loss

    def critic_loss(self, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """J_Q (eq. 7), with the target ``r + gamma (1 - terminated) V(s')`` (eq. 8) of the network's copy.

        The loss is averaged over the batch and summed over critics, without the equation's factor 1/2.
        """
        copy = self.target_value_network_params
        # preserve_module_state would turn the copy into parameters that require gradients.
        with torch.no_grad(), copy.to_module(self.value_network, preserve_module_state=False):
            next_value = self.value_network(batch["next"].select(*self.value_network.in_keys))["state_value"]
            target = self.value_estimator.value_estimate(batch, next_value=next_value).squeeze(-1)
        values = self.critics(batch, batch["action"], self.qvalue_network_params, "state_action_value").squeeze(-1)
        return squared_errors(values, target)

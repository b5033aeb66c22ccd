"""Agent: the soft actor-critic (SAC) algorithm.

`Agent` takes the gradient steps of algorithm 1 in Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and
Applications" (arXiv 1812.05905). Its three losses, by the equation numbers of that paper:

=============  ========  ====================  ==================================================
loss           equation  computed by           minimised by
=============  ========  ====================  ==================================================
``J_Q``        5         `critic_loss`         `Agent.update_critic`, over the critics
``J_pi``       9         `actor_loss`          `Agent.update_actor`, over the actor
``J(alpha)``   18        `alpha_loss`          `Agent.update_actor`, over the temperature
=============  ========  ====================  ==================================================

With a state-value network, `Agent.update_critic` first minimises `value_loss`, J_V (eq. 5 of Haarnoja et al. 2018,
arXiv 1801.01290), over that network.

The functions are those of `pipeline.torchrl_adapter`. They evaluate the loss module that `pipeline.losses` chooses for
a configuration: a variant of TorchRL's SACLoss, CrossQLoss or DiscreteSACLoss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pipeline.config import Config
from pipeline.dimensions import Dimensions
from pipeline.divergence import DivergenceMonitor
from pipeline.losses import make_loss, weight_normalizations
from pipeline.networks import merge_batch_statistics
from pipeline.normalize import Normalizers
from pipeline.optimizer import Adam
from pipeline.ranks import ALONE, Ranks
from pipeline.torchrl_adapter import (
    actor_loss,
    actor_parameters,
    alpha_loss,
    critic_loss,
    critic_parameters,
    target_parameters,
    value_loss,
    value_parameters,
)
from saltus.device import to_floats

Metrics = dict[str, Tensor]


class Agent:
    """Actor, critics and temperature, and one gradient step of each.

    The updates are functions of a batch, which `pipeline.learner` compiles and captures. They change tensors in place,
    at fixed addresses, and branch on no tensor value. Metrics are scalars on the device.

    Args:
        config: the configuration of the run.
        dimensions: widths of observations and actions.
        device: where networks, optimisers and statistics live.
        ranks: the processes that train the same networks, on batches of their own.

    Attributes:
        loss: the loss module; holds the parameters of all networks, target networks included, and ``log_alpha``.
        actor: the network that acts and learns.
        eval_actor: the network that is evaluated: an average of the actor over its last updates, or the actor itself.
        progress: share of the run that is done, a scalar in [0, 1]; learning rates decay with it.
        gamma: the discount factor, a scalar, which may grow.
        optimizers: Adam of ``"critic"``, ``"alpha"`` if the temperature is learned, ``"actor"`` if there is one to
            train, and ``"value"`` with a state-value network.
        normalizers: running statistics of observations and rewards, which `observe` updates.
    """

    def __init__(
        self,
        config: Config,
        dimensions: Dimensions,
        device: torch.device | str = "cpu",
        ranks: Ranks = ALONE,
    ):
        self.config, self.dimensions, self.device, self.ranks = config, dimensions, torch.device(device), ranks
        self.loss, self.actor = make_loss(config.for_device(self.device), dimensions, self.device)
        for network in (self.loss.actor_network, self.loss.qvalue_network):
            merge_batch_statistics(network, ranks)
        averages = config.eval_policy_averaging > 0
        self.eval_actor = deepcopy(self.actor).requires_grad_(False) if averages else self.actor
        self._critic_params = critic_parameters(self.loss)
        self._value_params = value_parameters(self.loss)
        self._target_params = target_parameters(self.loss)
        self.progress = torch.zeros((), dtype=torch.float64, device=self.device)
        self.optimizers = self._make_optimizers()
        self._weight_normalizations = weight_normalizations(config, self.loss)
        self.gamma: Tensor = self.loss.value_estimator.gamma
        self.normalizers = Normalizers(config, dimensions, self.gamma, self.device, ranks)
        self._divergence = DivergenceMonitor(self.optimizers["critic"].step_count)

    def _make_optimizers(self) -> dict[str, Adam]:
        config, beta1 = self.config, self.config.adam_beta1
        decay = config.lr_final_fraction, self.progress, config.lr_schedule
        optimizers = {"critic": Adam(self._critic_params, config.critic_lr, *decay, beta1)}
        if config.learns_temperature:
            optimizers["alpha"] = Adam({"log_alpha": self.loss.log_alpha}, config.alpha_lr, *decay)
        if self._value_params:
            optimizers["value"] = Adam(self._value_params, config.critic_lr, *decay, beta1)
        if not config.without_actor:
            optimizers["actor"] = Adam(actor_parameters(self.loss), config.actor_lr, *decay, beta1)
        return optimizers

    def apply_schedules(self, progress: float, env_steps: float, control_step: float) -> None:
        """Set learning rates for a share of the run, in [0, 1], and the discount factor, as `Config.discount`."""
        self.progress.fill_(progress)
        self.gamma.fill_(self.config.discount(env_steps, control_step))

    def settings(self) -> Metrics:
        """Settings that change during the run: ``"gamma"``, and if they exist ``"actor_lr"``, ``"reward_divisor"``."""
        settings = {"gamma": self.gamma}
        if "actor" in self.optimizers:
            settings["actor_lr"] = self.optimizers["actor"].current_lr
        if self.normalizers.rewards is not None:
            settings["reward_divisor"] = self.normalizers.rewards.divisor
        return settings

    def act(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Actions of the stochastic policy, (N, action_dim) in [-1, 1].

        Args:
            observation: (N, obs_dim).
            noise: (N, action_dim), standard normal.
        """
        return self.actor.sample(self.normalizers.normalize_observation(observation), noise)

    def policy(self, observation: Tensor) -> Tensor:
        """Actions of the deterministic policy, (N, action_dim) in [-1, 1], for observations (N, obs_dim)."""
        return self.eval_actor.mode(self.normalizers.normalize_observation(observation))

    def policy_on_cpu(self) -> Callable[[Tensor], Tensor]:
        """A copy of `policy` on the CPU; on the CPU `policy` itself."""
        if self.device.type == "cpu":
            return self.policy
        actor, normalizers = deepcopy(self.eval_actor).cpu(), Normalizers(self.config, self.dimensions, self.gamma)
        if normalizers.observations is not None and self.normalizers.observations is not None:
            normalizers.observations.load_state_dict(self.normalizers.observations.state_dict())
        return lambda observation: actor.mode(normalizers.normalize_observation(observation))

    def observe(self, transition: TensorDictBase) -> None:
        """Update the running statistics with the transition of a vector step."""
        self.normalizers.update(transition)

    def update(self, batch: TensorDict) -> Metrics:
        """One step of everything: state-value network, critics, target networks, actor and temperature."""
        return self.update_critic(batch) | self.update_actor(batch)

    def update_critic(self, batch: TensorDict) -> Metrics:
        """One step of the critics on J_Q (eq. 5), then of the target networks, if there are any.

        J_Q is the squared error of Q(s, a) against r + gamma (1 - terminated) (min Q'(s', a') - alpha log pi(a'|s')),
        with a' ~ pi(s') and target networks Q'. Each preset's form of it, by the class of its loss module:

        - ``sac``, ``redq``, ``droq``: `losses.EnsembleLoss`, targets from all critics, or from a random subset
        - ``crossq``: `losses.JointLoss`, a joint pass through batch norm, no target networks
        - ``fast``, ``xqc``, ``flashsac``: `losses.CategoricalLoss`, the cross-entropy of distributions of returns
        - ``sac-v1``: `state_value.StateValueLoss`
        - ``sac-discrete``: `discrete_losses.ExactLoss`, `ScoreLoss` or `SoftQLoss`

        docs/theory.md has their equations.

        A state-value network V takes its step on J_V first. The target is then r + gamma (1 - terminated) V'(s'), and
        its copy V' is the target network.
        """
        batch = self.normalizers.normalize_batch(batch)
        losses = self._update_value(batch) if self._value_params else {}
        loss, metrics = critic_loss(self.loss, batch)
        self._minimize("critic", loss)
        self._update_targets()
        losses["critic_loss"] = loss.detach()
        for one in losses.values():
            self._divergence.record(one)
        return {**losses, **{name: value.mean() for name, value in metrics.items()}}

    def _update_value(self, batch: TensorDictBase) -> Metrics:
        """One step of the state-value network on J_V, from a normalised batch."""
        loss = value_loss(self.loss, batch)
        self._minimize("value", loss)
        return {"value_loss": loss.detach()}

    def update_actor(self, batch: TensorDict) -> Metrics:
        """One step of the actor on J_pi (eq. 9), then one of the temperature, if it is learned, on J(alpha) (eq. 18).

        J_pi is the mean of alpha log pi(a|s) - min Q(s, a), with reparameterised a ~ pi(s).
        J(alpha) is the mean of -log_alpha (log pi(a|s) + target_entropy) or, if so configured, of
        -alpha (log pi(a|s) + target_entropy).
        """
        batch = self.normalizers.normalize_batch(batch)
        loss, log_prob = actor_loss(self.loss, batch)
        if "actor" in self.optimizers:
            self._minimize("actor", loss)
            self._update_eval_actor()
        metrics = {"actor_loss": loss.detach()}
        alpha = self.loss.log_alpha.detach().exp()
        if "alpha" in self.optimizers:
            temperature_loss = alpha_loss(self.loss, log_prob, self.config.alpha_loss)
            self._minimize("alpha", temperature_loss)
            metrics["alpha_loss"] = temperature_loss.detach()
        self._divergence.record(loss)
        return {**metrics, "alpha": alpha, "entropy": -log_prob.mean()}

    def _minimize(self, name: str, loss: Tensor) -> None:
        """One step of an optimiser on the mean of the ranks' losses, then weight normalisation, if configured."""
        self.optimizers[name].minimize(loss, self.ranks)
        if name in self._weight_normalizations:
            self._weight_normalizations[name].project()

    @torch.no_grad()
    def _update_targets(self) -> None:
        """Move the target networks towards the networks they copy: ``target <- (1 - tau) target + tau network``."""
        networks = self._value_params or self._critic_params
        for name, target in self._target_params.items():
            target.lerp_(networks[name], self.config.tau)

    @torch.no_grad()
    def _update_eval_actor(self) -> None:
        """Average the actor over roughly the last `eval_policy_averaging` fraction of its updates.

        Polynomial-decay averaging (Shamir and Zhang 2013, arXiv 1212.1824) with eta = 1 / eval_policy_averaging - 1.
        """
        if self.eval_actor is self.actor:
            return
        updates_before = self.optimizers["actor"].step_count - 1
        weight = (1 / (1 + self.config.eval_policy_averaging * updates_before)).float()
        pairs = zip(self.eval_actor.state_dict().values(), self.actor.state_dict().values(), strict=True)
        for average, value in pairs:
            average.lerp_(value, weight)

    def check_finite(self, metrics: Metrics) -> dict[str, float]:
        """Read metrics from the device; raise DivergenceError if one is not finite."""
        values = to_floats(metrics)
        self._divergence.check_values(values)
        return values

    def check_parameters(self) -> None:
        """Raise DivergenceError if a parameter is not finite."""
        self._divergence.check_tensors(self.loss.state_dict())

    @property
    def num_bytes(self) -> int:
        """Bytes of networks, target networks and optimisers."""
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in self.tensors()}.values())

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor that the updates change."""
        yield from (value for value in self.loss.state_dict().values() if isinstance(value, Tensor))
        for optimizer in self.optimizers.values():
            yield from optimizer.state_dict().values()
        yield from self.eval_actor.state_dict().values()
        yield self._divergence.first_step

    def state_dict(self) -> dict[str, Any]:
        """Networks, target networks, temperature, optimisers and normalisers; not copies. Waits for all ranks."""
        return {
            "loss": dict(self.loss.state_dict()),
            "eval_actor": {} if self.eval_actor is self.actor else dict(self.eval_actor.state_dict()),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "normalizers": self.normalizers.state_dict(),
            "progress": self.progress,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy the values of a `state_dict` into place."""
        self.loss.load_state_dict(state["loss"])
        if self.eval_actor is not self.actor:
            self.eval_actor.load_state_dict(state["eval_actor"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.normalizers.load_state_dict(state["normalizers"])
        if "progress" in state:  # not before saltus 0.8.0: it is reported until the next update
            self.progress.copy_(state["progress"])
        self._divergence.first_step.zero_()

    def policy_state(self) -> dict[str, dict[str, Tensor]]:
        """A copy of everything that `policy` depends on."""
        observations = self.normalizers.observations
        state = {
            "network": self.eval_actor.state_dict(),
            "observations": {} if observations is None else observations.state_dict(),
        }
        return {part: {name: value.clone() for name, value in tensors.items()} for part, tensors in state.items()}

    def load_policy_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Restore `policy` from a `policy_state`; the agent can then act, but not continue to learn."""
        self.eval_actor.load_state_dict(state["network"])
        if self.normalizers.observations is not None:
            self.normalizers.observations.load_state_dict(state["observations"])

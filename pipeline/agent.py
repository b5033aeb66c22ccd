"""Agent: soft actor-critic as in the paper. Networks, losses, optimisers, targets; one update of each kind.

Equation numbers are those of Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications" (arXiv 1812.05905).
The losses themselves are TorchRL's (`pipeline.torchrl_adapter`), or of the same interface (`pipeline.losses`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pipeline import torchrl_adapter as torchrl
from pipeline.config import Config
from pipeline.losses import make_loss, weight_normalization
from pipeline.normalize import ObservationNormalizer, RewardScaler
from pipeline.optimizer import Adam
from saltus.device.cuda_graph import to_floats
from saltus.errors import SaltusError

Metrics = dict[str, Tensor]


class DivergenceError(SaltusError):
    """A loss, metric or parameter became infinite or NaN."""


class Agent:
    """Actor, critics and temperature, and one gradient step of each.

    Updates are plain functions of a batch; `pipeline.learner` compiles and captures these same functions. Everything
    they modify stays at fixed addresses, and they branch on no tensor value.

    Attributes:
        loss: TorchRL's loss module; holds the networks' parameters, the targets' and ``log_alpha``.
        actor: the network that acts and learns.
        eval_actor: the network that is evaluated: an average of the actor over its last updates, or the actor itself.
    """

    def __init__(self, config: Config, observation_dim: int, action_dim: int, device: torch.device | str = "cpu"):
        self.config, self.device = config, torch.device(device)
        self.loss, self.actor = make_loss(config, observation_dim, action_dim, self.device)
        averages = config.eval_policy_averaging > 0
        self.eval_actor = deepcopy(self.actor).requires_grad_(False) if averages else self.actor
        self._critic_params = torchrl.critic_parameters(self.loss)
        self._target_params = torchrl.target_parameters(self.loss)
        self._actor_params = torchrl.actor_parameters(self.loss)
        self._weight_normalization = weight_normalization(config, self.loss)
        self.optimizers = self._make_optimizers()
        self.observation_normalizer = self.reward_scaler = None
        if config.normalize_observations:
            self.observation_normalizer = ObservationNormalizer(observation_dim, self.device)
        if config.reward_scaling != "none":
            bound = config.value_range if config.reward_scaling == "bounded" else None
            self.reward_scaler = RewardScaler(config.num_envs, config.gamma, bound, self.device)
        # The gradient step of the first non-finite loss, or 0.
        self._diverged_at = torch.zeros((), dtype=torch.float64, device=self.device)

    def _make_optimizers(self) -> dict[str, Adam]:
        config, total = self.config, self.config.total_gradient_steps
        delayed = max(1, total // config.policy_delay)
        final, schedule, beta1 = config.lr_final_fraction, config.lr_schedule, config.adam_beta1
        return {
            "critic": Adam(self._critic_params, config.critic_lr, final, total, schedule, beta1),
            "actor": Adam(self._actor_params, config.actor_lr, final, delayed, schedule, beta1),
            "alpha": Adam({"log_alpha": self.loss.log_alpha}, config.alpha_lr, final, delayed, schedule),
        }

    def act(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Actions of the stochastic policy, (N, action_dim) in [-1, 1].

        Args:
            observation: (N, obs_dim).
            noise: (N, action_dim), standard normal.
        """
        return self.actor.sample(self._normalize(observation), noise)

    def policy(self, observation: Tensor) -> Tensor:
        """Actions of the deterministic policy, (N, action_dim) in [-1, 1], for observations (N, obs_dim)."""
        return self.eval_actor.mode(self._normalize(observation))

    def observe(self, transition: TensorDictBase) -> None:
        """Update the running statistics with a vector step."""
        if self.observation_normalizer is not None:
            self.observation_normalizer.update(transition["observation"])
        if self.reward_scaler is not None:
            self.reward_scaler.update(transition["next", "reward"], transition["next", "done"])

    def update(self, batch: TensorDict) -> Metrics:
        """One step of critics, targets, actor and temperature."""
        return self.update_critic(batch) | self.update_actor(batch)

    def update_critic(self, batch: TensorDict) -> Metrics:
        """One step of the critics on J_Q (eq. 5), and of the target networks, if there are any.

        J_Q is the error of Q(s, a) against r + gamma (1 - terminated) (min Q_target(s', a') - alpha log pi(a'|s')).
        """
        batch = self._normalize_batch(batch)
        loss, td_error = torchrl.critic_loss(self.loss, batch)
        self.optimizers["critic"].step(torch.autograd.grad(loss, list(self._critic_params.values())))
        if self._weight_normalization is not None:
            self._weight_normalization[0].project()
        self._update_targets()
        self._record_divergence(loss)
        return {"critic_loss": loss.detach(), "td_error": td_error.detach().mean()}

    @torch.no_grad()
    def _update_targets(self) -> None:
        """Move the target networks towards the critics: target <- (1 - tau) target + tau critic (algorithm 1)."""
        for name, target in self._target_params.items():
            target.lerp_(self._critic_params[name], self.config.tau)

    def update_actor(self, batch: TensorDict) -> Metrics:
        """One step of the actor on J_pi (eq. 9), then one of the temperature on J(alpha) (eq. 18).

        J_pi = E[alpha log pi(a|s) - min Q(s, a)], a reparameterised; J(alpha) = E[-log_alpha (log pi(a|s) + target
        entropy)].
        """
        batch = self._normalize_batch(batch)
        loss, log_prob = torchrl.actor_loss(self.loss, batch)
        self.optimizers["actor"].step(torch.autograd.grad(loss, list(self._actor_params.values())))
        if self._weight_normalization is not None:
            self._weight_normalization[1].project()
        self._update_eval_actor()
        alpha = self.loss.log_alpha.detach().exp()
        alpha_loss = torchrl.alpha_loss(self.loss, log_prob)
        self.optimizers["alpha"].step(torch.autograd.grad(alpha_loss, [self.loss.log_alpha]))
        self._record_divergence(loss)
        return {
            "actor_loss": loss.detach(),
            "alpha_loss": alpha_loss.detach(),
            "alpha": alpha,
            "entropy": -log_prob.detach().mean(),
        }

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
        for averaged, value in pairs:
            averaged.lerp_(value, weight)

    def _normalize(self, observation: Tensor) -> Tensor:
        return observation if self.observation_normalizer is None else self.observation_normalizer(observation)

    def _normalize_batch(self, batch: TensorDict) -> TensorDict:
        """A normalised shallow copy of a batch: the losses write into their input."""
        batch = batch.copy()
        if self.observation_normalizer is not None:
            for key in ("observation", ("next", "observation")):
                batch.set(key, self.observation_normalizer(batch[key]))
        if self.reward_scaler is not None:
            batch.set(("next", "reward"), self.reward_scaler(batch["next", "reward"]))
        return batch

    @torch.no_grad()
    def _record_divergence(self, loss: Tensor) -> None:
        """Record, on the device, the gradient step of the first non-finite loss."""
        first = (self._diverged_at == 0) & ~torch.isfinite(loss)
        self._diverged_at.copy_(torch.where(first, self.optimizers["critic"].step_count, self._diverged_at))

    def check_finite(self, metrics: Metrics) -> dict[str, float]:
        """Read metrics from the device as floats; raise DivergenceError if one is not finite."""
        values = to_floats(metrics)
        for name, value in values.items():
            if not math.isfinite(value):
                raise self._divergence(f"{name} is {value}")
        return values

    def check_parameters(self) -> None:
        """Raise DivergenceError if a parameter is not finite."""
        for name, value in self.loss.state_dict().items():
            if isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
                raise self._divergence(f"{name} is not finite")

    def _divergence(self, symptom: str) -> DivergenceError:
        step = int(self._diverged_at) or int(self.optimizers["critic"].step_count)
        return DivergenceError(
            f"{symptom} at gradient step {step}: learning has diverged. "
            "Lower the learning rates, or look for extreme observations or rewards in the task"
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of networks, targets and optimisers."""
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in self.tensors()}.values())

    def tensors(self) -> Iterator[Tensor]:
        """Everything that updates modify."""
        yield from (value for value in self.loss.state_dict().values() if isinstance(value, Tensor))
        for optimizer in self.optimizers.values():
            yield from optimizer.state_dict().values()
        yield from self.eval_actor.state_dict().values()
        yield self._diverged_at

    def _normalizers(self) -> dict[str, dict[str, Tensor]]:
        """The statistics of the normalisers that there are: the tensors themselves, by name."""
        normalizers = {"observations": self.observation_normalizer, "rewards": self.reward_scaler}
        return {name: one.state_dict() for name, one in normalizers.items() if one is not None}

    def state_dict(self) -> dict[str, Any]:
        """Networks, targets, temperature, optimisers and normalisers."""
        return {
            "loss": dict(self.loss.state_dict()),
            "eval_actor": {} if self.eval_actor is self.actor else dict(self.eval_actor.state_dict()),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "normalizers": self._normalizers(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.loss.load_state_dict(state["loss"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if self.eval_actor is not self.actor:
            self.eval_actor.load_state_dict(state["eval_actor"])
        for name, statistics in self._normalizers().items():
            for key, value in statistics.items():
                value.copy_(state["normalizers"][name][key])
        self._diverged_at.zero_()

    def policy_state(self) -> dict[str, dict[str, Tensor]]:
        """A copy of everything that `policy` depends on."""
        state = {"network": self.eval_actor.state_dict(), "observations": self._normalizers().get("observations", {})}
        return {part: {name: value.clone() for name, value in tensors.items()} for part, tensors in state.items()}

    def load_policy_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Restore `policy` from a `policy_state`; the agent can then act, but not continue to learn."""
        self.eval_actor.load_state_dict(state["network"])
        for name, value in self._normalizers().get("observations", {}).items():
            value.copy_(state["observations"][name])

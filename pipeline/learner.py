"""Learner: one round of updates."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from pipeline import losses
from pipeline.buffer import ReplayBuffer
from pipeline.config import Config
from pipeline.optimizer import Adam

DRAWN_AT_ONCE = 32  # batches: few enough to take little memory, enough to hide the cost of drawing

Metrics = dict[str, Tensor]
Update = Callable[[TensorDict], Metrics]


class Learner:
    """Actor, critics and temperature, and how they learn.

    An update is a plain function: losses, gradients, Adam, targets. Compiled, that same function becomes one graph,
    its backward pass and optimiser included; both draw the same random numbers and agree within rounding.

    Attributes:
        actor: the policy.
        gradient_steps: critic updates done.
        compiled: whether every update has been compiled, or none is to be: before that, a round takes long.
    """

    def __init__(self, config: Config, observation_dim: int, action_dim: int, device: torch.device | str = "cpu"):
        self.config, self.device = config, torch.device(device)
        self.loss, self.actor = losses.make_loss(config, observation_dim, action_dim, self.device)
        self._critic = losses.critic_parameters(self.loss)
        self._target = losses.target_parameters(self.loss)
        self._actor = losses.actor_parameters(self.loss)
        total, beta1, final = config.total_gradient_steps, config.adam_beta1, config.lr_final
        delayed = max(1, total // config.policy_delay)
        self._optimizers = {
            "critic": Adam(self._critic, config.critic_lr, final, total, beta1),
            "actor": Adam(self._actor, config.actor_lr, final, delayed, beta1),
            "alpha": Adam({"log_alpha": self.loss.log_alpha}, config.alpha_lr, final, delayed),
        }
        self.gradient_steps = 0
        self.compiled = not config.compile
        self._update_critic: Update = self.update_critic
        self._update_actor: Update = self.update_actor
        if config.compile:
            compiler = _Compiler()
            self._update_critic = compiler(self.update_critic)
            self._update_actor = compiler(self.update_actor)

    def round(self, buffer: ReplayBuffer, num_updates: int) -> Metrics:
        """Do `num_updates` updates; return the metrics of the last of each kind, scalars on the device."""
        metrics: Metrics = {}
        for drawn in range(0, num_updates, DRAWN_AT_ONCE):
            for batch in buffer.sample(self.config.batch_size, min(DRAWN_AT_ONCE, num_updates - drawn)):
                metrics |= self._update_critic(batch)
                self.gradient_steps += 1
                if self.gradient_steps % self.config.policy_delay == 0:
                    metrics |= self._update_actor(batch)
                    self.compiled = True
        return metrics

    def update_critic(self, batch: TensorDict) -> Metrics:
        """One step of the critics, and of their targets where there are any."""
        batch = batch.copy()  # the loss writes into what it is given
        loss, metadata = losses.critic_loss(self.loss, batch)
        self._optimizers["critic"].step(torch.autograd.grad(loss, list(self._critic.values())))
        with torch.no_grad():
            for name, target in self._target.items():
                target.lerp_(self._critic[name], self.config.tau)
        return {"critic_loss": loss.detach(), "td_error": metadata["td_error"].detach().mean()}

    def update_actor(self, batch: TensorDict) -> Metrics:
        """One step of the actor, then of the temperature."""
        batch = batch.copy()
        loss, log_prob = losses.actor_loss(self.loss, batch)
        self._optimizers["actor"].step(torch.autograd.grad(loss, list(self._actor.values())))
        alpha = self.loss.log_alpha.detach().exp()
        alpha_loss = losses.alpha_loss(self.loss, log_prob)
        self._optimizers["alpha"].step(torch.autograd.grad(alpha_loss, [self.loss.log_alpha]))
        return {
            "actor_loss": loss.detach(),
            "alpha_loss": alpha_loss.detach(),
            "alpha": alpha,
            "entropy": -log_prob.detach().mean(),
        }

    def check_finite(self, metrics: Metrics) -> None:
        """Raise FloatingPointError, naming the metric and the update, if one of `metrics` is not finite."""
        for name, value in metrics.items():
            if not torch.isfinite(value):
                raise self._diverged(f"{name} is {float(value)}")

    def check_parameters(self) -> None:
        """Raise FloatingPointError, naming the tensor, if one of the networks holds a number that is not finite."""
        for name, value in self.loss.state_dict().items():
            if isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
                raise self._diverged(f"{name} is not finite")

    def _diverged(self, what: str) -> FloatingPointError:
        return FloatingPointError(
            f"{what} at gradient step {self.gradient_steps}: learning has diverged. "
            "Lower the learning rates, or look for extreme observations or rewards in the task"
        )

    def state_dict(self) -> dict[str, Any]:
        """Networks, targets, temperature, normalisation statistics, optimisers and counters."""
        return {
            "loss": dict(self.loss.state_dict()),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()},
            "gradient_steps": self.gradient_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self.loss.load_state_dict(state["loss"])
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.gradient_steps = state["gradient_steps"]


_COMPILE_ERRORS = (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError)


class _Compiler:
    """Puts updates under torch.compile; where that fails, warns once, and all go on as the plain functions."""

    def __init__(self) -> None:
        self._failed = False

    def __call__(self, update: Update) -> Update:
        torch._dynamo.config.trace_autograd_ops = True  # torch.autograd.grad inside the graph
        # With the random numbers of the plain function: what is compiled computes the same, and resumes the same.
        compiled = torch.compile(update, fullgraph=True, dynamic=False, options={"fallback_random": True})

        def run(batch: TensorDict) -> Metrics:
            if not self._failed:
                for attempt in (1, 2):  # a Ctrl-C ends the compiler's processes, too: that is no reason to give up
                    try:
                        return compiled(batch)
                    except _COMPILE_ERRORS as error:
                        if attempt == 2:
                            self._give_up(error)
            return update(batch)

        return run

    def _give_up(self, error: Exception) -> None:
        self._failed = True
        reason = str(error).strip().splitlines()[0]
        warnings.warn(
            f"torch.compile failed, going on without it, at half the speed: {reason}. On the CPU it needs a C++ "
            "compiler and Python's headers (Debian, Ubuntu: apt install g++ python3-dev)",
            stacklevel=4,
        )

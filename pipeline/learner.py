"""Learner: one round of updates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from envs.cuda_graph import CudaGraph, to_floats
from pipeline import losses
from pipeline.buffer import ReplayBuffer
from pipeline.config import Config
from pipeline.graph import Graph, Update
from pipeline.normalize import ObservationNormalizer, RewardScaler
from pipeline.optimizer import Adam

DRAWN_AT_ONCE = 32  # batches: few enough to take little memory, enough to hide the cost of drawing

Metrics = dict[str, Tensor]


@contextmanager
def _tf32_products() -> Iterator[None]:
    """For a while, let CUDA round the factors of float32 matrix products to TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Learner:
    """Actor, critics and temperature, and how they learn.

    An update is a plain function: normalisation, losses, gradients, Adam, targets. Compiled, that same function becomes
    one graph, its backward pass and optimiser included; both draw the same random numbers and agree within rounding.

    Attributes:
        actor: the network that acts and learns.
        average: the network that is evaluated: an average of the actor over its last updates, or the actor itself.
        gradient_steps: critic updates done.
    """

    def __init__(self, config: Config, observation_dim: int, action_dim: int, device: torch.device | str = "cpu"):
        self.config, self.device = config, torch.device(device)
        self.loss, self.actor = losses.make_loss(config, observation_dim, action_dim, self.device)
        self.average = self.actor if config.policy_average == 0 else deepcopy(self.actor).requires_grad_(False)
        self._critic = losses.critic_parameters(self.loss)
        self._target = losses.target_parameters(self.loss)
        self._actor = losses.actor_parameters(self.loss)
        self._unit_weights = losses.unit_weights(config, self.loss)
        total, final, schedule = config.total_gradient_steps, config.lr_final, config.lr_schedule
        delayed = max(1, total // config.policy_delay)
        beta1 = config.adam_beta1
        self._optimizers = {
            "critic": Adam(self._critic, config.critic_lr, final, total, schedule, beta1),
            "actor": Adam(self._actor, config.actor_lr, final, delayed, schedule, beta1),
            "alpha": Adam({"log_alpha": self.loss.log_alpha}, config.alpha_lr, final, delayed, schedule),
        }
        self._normalizers: dict[str, ObservationNormalizer | RewardScaler] = {}
        self._observations = self._rewards = None
        if config.normalize_observations:
            self._observations = ObservationNormalizer(observation_dim, self.device)
            self._normalizers["observations"] = self._observations
        if config.reward_scaling != "none":
            bound = config.value_range if config.reward_scaling == "bounded" else None
            self._rewards = RewardScaler(config.num_envs, config.gamma, bound, self.device)
            self._normalizers["rewards"] = self._rewards
        self.gradient_steps = 0
        self._diverged_at = torch.zeros((), dtype=torch.float64, device=self.device)  # a gradient step, or 0
        self._updates: list[tuple[int, Update]] = [(1, self.update_critic), (config.policy_delay, self.update_actor)]
        if config.policy_delay == 1:
            self._updates = [(1, self.update_both)]
        self._graphs: list[Graph] = []
        self._captured: dict[tuple[ReplayBuffer, int, int], CudaGraph] = {}
        self._acting: CudaGraph | None = None
        if self.device.type == "cuda":
            self._acting = CudaGraph(self._act, "the actor", self.device)
        if config.compile:
            self._graphs = [Graph(update, self._tensors) for _, update in self._updates]
            self._updates = [(every, graph) for (every, _), graph in zip(self._updates, self._graphs, strict=True)]

    @property
    def compiling(self) -> bool:
        """Whether an update is still to be compiled, so that a round to come takes long."""
        return any(graph.pending for graph in self._graphs)

    @property
    def compile_seconds(self) -> float:
        """What compiling has taken so far."""
        return sum(graph.seconds for graph in self._graphs)

    @property
    def num_bytes(self) -> int:
        """What networks, targets and optimisers take."""
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in self._tensors()}.values())

    def act(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Actions in [-1, 1] for observations (N, obs_dim) and standard normal noise (N, action_dim).

        On CUDA N is the same at every call, since it is a CUDA graph that acts there.
        """
        if self._acting is None:
            return self._act(observation, noise)["action"]
        return self._acting(observation, noise)["action"].clone()

    def _act(self, observation: Tensor, noise: Tensor) -> dict[str, Tensor]:
        return {"action": self.actor.sample(self._normalized(observation), noise)}

    def policy(self, observation: Tensor) -> Tensor:
        """The deterministic policy: actions in [-1, 1] for observations (N, obs_dim)."""
        return self.average.mode(self._normalized(observation))

    def observe(self, transition: TensorDictBase) -> None:
        """Take a vector step into the running statistics."""
        if self._observations is not None:
            self._observations.update(transition["observation"])
        if self._rewards is not None:
            self._rewards.update(transition["next", "reward"], transition["next", "done"])

    def _normalized(self, observation: Tensor) -> Tensor:
        return observation if self._observations is None else self._observations(observation)

    def _prepared(self, batch: TensorDict) -> TensorDict:
        """A copy of a batch, since losses write into what they are given, with the statistics of now applied."""
        batch = batch.copy()
        if self._observations is not None:
            for key in ("observation", ("next", "observation")):
                batch.set(key, self._observations(batch[key]))
        if self._rewards is not None:
            batch.set(("next", "reward"), self._rewards(batch["next", "reward"]))
        return batch

    def round(self, buffer: ReplayBuffer, num_updates: int) -> Metrics:
        """Do `num_updates` updates; return the metrics of the last of each kind, scalars on the device.

        On CUDA compiled updates, up to `DRAWN_AT_ONCE` of them with their sampling, are one CUDA graph; the host does
        not wait for it. There the metrics' tensors are those of the next round, too.
        """
        metrics: Metrics = {}
        with _tf32_products() if self.config.matmul_dtype == "tf32" else nullcontext():
            for done in range(0, num_updates, DRAWN_AT_ONCE):
                count = min(DRAWN_AT_ONCE, num_updates - done)
                metrics |= self._block(buffer, count, self.gradient_steps % self.config.policy_delay)
                self.gradient_steps += count
        return metrics

    def _block(self, buffer: ReplayBuffer, count: int, before: int) -> Metrics:
        """Updates on batches drawn at once, after `before` of those between two of the actor's."""
        key = buffer, count, before
        if not (self.device.type == "cuda" and self._graphs and all(graph.compiled for graph in self._graphs)):
            return self._updates_on_new_batches(*key)
        if key not in self._captured:
            work = partial(self._updates_on_new_batches, *key)
            self._captured[key] = CudaGraph(work, "a round of updates", self.device, buffer.generator)
        return self._captured[key]()

    def _updates_on_new_batches(self, buffer: ReplayBuffer, count: int, before: int) -> Metrics:
        metrics: Metrics = {}
        for number, batch in enumerate(buffer.sample(self.config.batch_size, count), start=before + 1):
            for every, update in self._updates:
                if number % every == 0:
                    metrics |= update(batch)
        return metrics

    def update_both(self, batch: TensorDict) -> Metrics:
        """One step of all: what is done together compiles together."""
        return self.update_critic(batch) | self.update_actor(batch)

    def update_critic(self, batch: TensorDict) -> Metrics:
        """One step of the critics, and of their targets where there are any."""
        batch = self._prepared(batch)
        loss, metadata = losses.critic_loss(self.loss, batch)
        self._optimizers["critic"].step(torch.autograd.grad(loss, list(self._critic.values())))
        if self._unit_weights is not None:
            self._unit_weights[0].project()
        with torch.no_grad():
            for name, target in self._target.items():
                target.lerp_(self._critic[name], self.config.tau)
        self._note(loss)
        return {"critic_loss": loss.detach(), "td_error": metadata["td_error"].detach().mean()}

    def update_actor(self, batch: TensorDict) -> Metrics:
        """One step of the actor, then of the temperature."""
        batch = self._prepared(batch)
        loss, log_prob = losses.actor_loss(self.loss, batch)
        self._optimizers["actor"].step(torch.autograd.grad(loss, list(self._actor.values())))
        if self._unit_weights is not None:
            self._unit_weights[1].project()
        self._update_average()
        alpha = self.loss.log_alpha.detach().exp()
        alpha_loss = losses.alpha_loss(self.loss, log_prob)
        self._optimizers["alpha"].step(torch.autograd.grad(alpha_loss, [self.loss.log_alpha]))
        self._note(loss)
        return {
            "actor_loss": loss.detach(),
            "alpha_loss": alpha_loss.detach(),
            "alpha": alpha,
            "entropy": -log_prob.detach().mean(),
        }

    @torch.no_grad()
    def _update_average(self) -> None:
        """Take the actor into its average, by polynomial-decay averaging (Shamir and Zhang 2013, arXiv 1212.1824).

        Most of the weight is on the last `policy_average * t` of t updates: few while the actor still changes fast,
        many later. Their eta is 1 / policy_average - 1.
        """
        if self.average is self.actor:
            return
        before = self._optimizers["actor"].step_count - 1
        weight = (1 / (1 + self.config.policy_average * before)).float()
        for averaged, value in self._averaged():
            averaged.lerp_(value, weight)

    @torch.no_grad()
    def _note(self, loss: Tensor) -> None:
        """Keep, on the device, the number of the first update whose loss is not finite."""
        first = (self._diverged_at == 0) & ~torch.isfinite(loss)
        self._diverged_at.copy_(torch.where(first, self._optimizers["critic"].step_count, self._diverged_at))

    def check_finite(self, metrics: Metrics) -> dict[str, float]:
        """Give `metrics` as numbers; raise FloatingPointError, naming metric and update, if one is not finite."""
        values = to_floats(metrics)
        for name, value in values.items():
            if not math.isfinite(value):
                raise self._diverged(f"{name} is {value}")
        return values

    def check_parameters(self) -> None:
        """Raise FloatingPointError, naming the tensor, if one of the networks holds a number that is not finite."""
        for name, value in self.loss.state_dict().items():
            if isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
                raise self._diverged(f"{name} is not finite")

    def _diverged(self, what: str) -> FloatingPointError:
        step = int(self._diverged_at) or self.gradient_steps
        return FloatingPointError(
            f"{what} at gradient step {step}: learning has diverged. "
            "Lower the learning rates, or look for extreme observations or rewards in the task"
        )

    def state_dict(self) -> dict[str, Any]:
        """Networks, targets, temperature, normalisation statistics, optimisers and counters."""
        return {
            "loss": dict(self.loss.state_dict()),
            "average": {} if self.average is self.actor else dict(self.average.state_dict()),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()},
            "normalizers": {name: normalizer.state_dict() for name, normalizer in self._normalizers.items()},
            "gradient_steps": self.gradient_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self.loss.load_state_dict(state["loss"])
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if self.average is not self.actor:
            self.average.load_state_dict(state["average"])
        for name, normalizer in self._normalizers.items():
            for key, value in normalizer.state_dict().items():
                value.copy_(state["normalizers"][name][key])
        self.gradient_steps = state["gradient_steps"]
        self._diverged_at.zero_()

    def policy_state(self) -> dict[str, dict[str, Tensor]]:
        """A copy of all that `policy` depends on."""
        observations = {} if self._observations is None else self._observations.state_dict()
        state = {"network": self.average.state_dict(), "observations": observations}
        return {part: {name: value.clone() for name, value in tensors.items()} for part, tensors in state.items()}

    def load_policy_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Have `policy` be as it was when `policy_state` gave `state`: a learner to act with, not to go on with."""
        self.average.load_state_dict(state["network"])
        if self._observations is not None:
            for name, value in self._observations.state_dict().items():
                value.copy_(state["observations"][name])

    def _averaged(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The average's parameters and running statistics, each with the actor's."""
        return zip(self.average.state_dict().values(), self.actor.state_dict().values(), strict=True)

    def _tensors(self) -> Iterator[Tensor]:
        """All that updates change."""
        yield from (value for value in self.loss.state_dict().values() if isinstance(value, Tensor))
        for optimizer in self._optimizers.values():
            yield from optimizer.state_dict().values()
        yield from self.average.state_dict().values()
        yield self._diverged_at

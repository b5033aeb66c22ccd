"""Learner: rounds of an agent's updates, with sampling, compilation and capture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor

from pipeline.agent import Agent, Metrics
from pipeline.buffer import ReplayBuffer
from saltus.device.compiled_update import CompiledUpdate, Update
from saltus.device.cuda_graph import CapturedFunction

BATCHES_PER_SAMPLE = 32  # few enough to take little memory, enough to hide the cost of sampling


class Learner:
    """Runs rounds of an agent's updates, compiled if the configuration says so, and captured on CUDA.

    Eager, compiled and captured updates draw the same random numbers and agree within rounding.

    Args:
        agent: what learns.
        capture: capture acting and compiled rounds as CUDA graphs; None: on CUDA. Eager rounds are never captured,
            because they synchronise with the GPU.

    Attributes:
        gradient_steps: number of critic updates so far.
        updates: the updates in their order, each with whether it follows every batch. Otherwise it follows every
            `policy_delay`-th. Updates that always happen together are one.
    """

    def __init__(self, agent: Agent, capture: bool | None = None):
        self.agent, self.gradient_steps = agent, 0
        self._config = agent.config
        self._batch_size = agent.ranks.share(agent.config.batch_size)
        self._capture = agent.device.type == "cuda" if capture is None else capture
        self.updates: list[tuple[bool, Update]] = [(True, agent.update_critic), (False, agent.update_actor)]
        if agent.config.policy_delay == 1:
            self.updates = [(True, agent.update)]
        self._compiled: list[CompiledUpdate] = []
        if self._config.compile:
            self._compiled = [
                CompiledUpdate(update, agent.tensors, agent.ranks.any_rank, agent.ranks.size)
                for _, update in self.updates
            ]
            self.updates = [(always, one) for (always, _), one in zip(self.updates, self._compiled, strict=True)]
        self._captured_rounds: dict[tuple[ReplayBuffer, tuple[bool, ...]], CapturedFunction] = {}
        self._captured_act = CapturedFunction(self._act, "the actor", agent.device) if self._capture else None

    @property
    def compiled_updates(self) -> list[CompiledUpdate]:
        """The updates that compile, the critics' first; none if the configuration compiles nothing."""
        return self._compiled

    @property
    def compiling(self) -> bool:
        """Whether updates are to be compiled, and are not yet; the same on all ranks."""
        return not all(update.attempted for update in self._compiled)

    @property
    def compiled(self) -> bool:
        """Whether all updates run compiled code."""
        return bool(self._compiled) and all(update.compiled for update in self._compiled)

    @property
    def compile_seconds(self) -> float:
        """Duration of all compilation so far."""
        return sum(update.seconds for update in self._compiled)

    @property
    def captured(self) -> bool:
        """Whether a round has been captured as a CUDA graph."""
        return any(function.captured for function in self._captured_rounds.values())

    def act(self, observation: Tensor, noise: Tensor) -> Tensor:
        """`Agent.act`; captured, it takes the same N at every call."""
        if self._captured_act is None:
            return self.agent.act(observation, noise)
        return self._captured_act(observation, noise)["action"].clone()

    def _act(self, observation: Tensor, noise: Tensor) -> Metrics:
        return {"action": self.agent.act(observation, noise)}

    def compile(self, buffer: ReplayBuffer, stopping: Callable[[], bool] = lambda: False) -> None:
        """Compile the updates ahead of the first round, with a batch that rounds draw again.

        Leaves out those that are not compiled yet when `stopping()` becomes true; see `CompiledUpdate.compile`.
        """
        state = buffer.generator.get_state()
        batch = buffer.sample(self._batch_size)[0]
        buffer.generator.set_state(state)
        with self.product_precision():
            for update in self._compiled:
                update.compile(batch, stopping)

    def round(self, buffer: ReplayBuffer, num_updates: int) -> Metrics:
        """Run `num_updates` critic updates and the actor updates that are due; return their last metrics.

        Metrics are scalars on the device. If rounds are captured, the next round overwrites them.
        """
        metrics: Metrics = {}
        with self.product_precision():
            for count in batches_at_once(num_updates):
                metrics |= self._run_updates(buffer, count)
                self.gradient_steps += count
        return metrics

    def release(self) -> None:
        """Free the captured graphs; the next calls capture anew."""
        captured = [*self._captured_rounds.values(), *([self._captured_act] if self._captured_act else [])]
        for function in captured:
            function.release()

    def product_precision(self) -> AbstractContextManager[None]:
        """Context in which float32 matrix products have the precision of the updates."""
        return _tf32_products() if self._config.matmul_dtype == "tf32" else nullcontext()

    def _run_updates(self, buffer: ReplayBuffer, count: int) -> Metrics:
        """Run `count` updates on batches sampled at once, captured if all of them are compiled."""
        numbers = range(self.gradient_steps + 1, self.gradient_steps + count + 1)
        actor_due = tuple(number % self._config.policy_delay == 0 for number in numbers)
        run = partial(self._sample_and_update, buffer, actor_due)
        if not (self._capture and self.compiled):
            return run()
        key = buffer, actor_due
        if key not in self._captured_rounds:
            name = "a round of updates"
            self._captured_rounds[key] = CapturedFunction(run, name, self.agent.device, buffer.generator)
        return self._captured_rounds[key]()

    def _sample_and_update(self, buffer: ReplayBuffer, actor_due: tuple[bool, ...]) -> Metrics:
        """Sample batches and update on each: the critics, and the actor on those where `actor_due` is true."""
        metrics: Metrics = {}
        for batch, due in zip(buffer.sample(self._batch_size, len(actor_due)), actor_due, strict=True):
            for always, update in self.updates:
                if always or due:
                    metrics |= update(batch)
        return metrics


def batches_at_once(num_updates: int) -> list[int]:
    """How many batches a round of `num_updates` updates samples at once, for each time that it samples."""
    return [min(BATCHES_PER_SAMPLE, num_updates - done) for done in range(0, num_updates, BATCHES_PER_SAMPLE)]


@contextmanager
def _tf32_products() -> Iterator[None]:
    """Let CUDA round the factors of float32 matrix products to TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

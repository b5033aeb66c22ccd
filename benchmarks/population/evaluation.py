"""Evaluations of the members' policies in other processes, while training continues."""

from __future__ import annotations

import signal
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.simulation import Simulation
from pipeline.agent import Agent
from pipeline.config import Config
from pipeline.dimensions import Dimensions
from pipeline.divergence import DivergenceError
from pipeline.evaluate import Evaluation, evaluate
from pipeline.seeding import derive_seed
from pipeline.worlds import environment_maker

Arrays = dict[str, dict[str, np.ndarray]]  # as arrays, because each tensor sent would hold an open file


class EvaluationPool:
    """Processes that evaluate policies as `saltus train` does: on the CPU engine, from the same initial states.

    As a context manager it cancels evaluations that have not begun if an error leaves the context.

    Args:
        configs: the members' configurations.
        num_processes: number of processes, with one thread each.

    Attributes:
        curves: the evaluations of each member so far, each a row of numbers by name, in the order of env steps.
        best: the best policy of each member so far, as `pipeline.run.Run.best`.
        diverged: the env steps of the first evaluation at which an action of each member was not finite, or None. Such
            an evaluation is not part of `curves`.
    """

    def __init__(self, configs: list[Config], num_processes: int):
        # The policy runs on the CPU, where no replay buffer is made.
        self._configs = [replace(config, device="cpu") for config in configs]
        self.curves: list[list[dict[str, float]]] = [[] for _ in configs]
        self.best: list[dict[str, Any]] = [{} for _ in configs]
        self.diverged: list[int | None] = [None for _ in configs]
        self._pending: dict[tuple[int, int], Future[Evaluation | None]] = {}
        self._policies: dict[tuple[int, int], Arrays] = {}
        # Ctrl-C also reaches the processes, and the command that owns them still collects what they do.
        ignore = signal.SIGINT, signal.SIG_IGN
        self._pool = ProcessPoolExecutor(num_processes, get_context("spawn"), signal.signal, ignore)

    def __enter__(self) -> EvaluationPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)

    def submit(self, env_steps: int, policies: dict[str, dict[str, Tensor]]) -> None:
        """Begin the evaluation of all members.

        Args:
            env_steps: env steps of each member so far.
            policies: from `StackedAgents.policy_state`.
        """
        for member, config in enumerate(self._configs):
            state = {
                part: {name: value[member].numpy() for name, value in tensors.items()}
                for part, tensors in policies.items()
            }
            self._policies[member, env_steps] = state
            self._pending[member, env_steps] = self._pool.submit(evaluate_policy, config, env_steps, state)

    def collect(self, wait: bool = False) -> int:
        """Add the evaluations that have ended, or all, to the curves; return the number of those still to end."""
        for (member, env_steps), future in list(self._pending.items()):
            if wait or future.done():
                del self._pending[member, env_steps]
                result, state = future.result(), self._policies.pop((member, env_steps))
                if result is None:
                    self.diverged[member] = min(env_steps, self.diverged[member] or env_steps)
                    continue
                self.curves[member].append(
                    {
                        "env_steps": env_steps,
                        "return_mean": result.mean,
                        "return_low": min(result.returns),
                        "length_mean": mean(result.lengths),
                        "failed": result.failed,
                    }
                )
                self.curves[member].sort(key=lambda row: row["env_steps"])
                self._keep_best(member, env_steps, result, state)
        return len(self._pending)

    def _keep_best(self, member: int, env_steps: int, result: Evaluation, state: Arrays) -> None:
        """Keep a policy without failures if its mean return is the highest; the latest of equals."""
        best = self.best[member]
        rank = result.mean, env_steps
        if not result.failed and (not best or rank > (best["return_mean"], best["env_steps"])):
            self.best[member] = {"return_mean": result.mean, "env_steps": env_steps, "policy": to_tensors(state)}


def to_tensors(state: Arrays) -> dict[str, dict[str, Tensor]]:
    """An `Agent.policy_state` of its arrays, which stay in use."""
    return {part: {name: torch.from_numpy(value) for name, value in arrays.items()} for part, arrays in state.items()}


def evaluate_policy(config: Config, env_steps: int, state: Arrays) -> Evaluation | None:
    """Play whole episodes with a policy; None if an action is not finite.

    Args:
        config: the run's configuration, for the CPU.
        env_steps: env steps of the run so far, which choose the initial states.
        state: arrays of an `Agent.policy_state`.
    """
    env = environment_maker(config)(
        config.eval_episodes,
        seed=derive_seed(config.seed, "evaluation", env_steps),
        simulation=Simulation(physics="cpu", num_threads=1),
        check_task=False,  # the training worlds were checked
    )
    agent = Agent(config, Dimensions.of(env))
    agent.load_policy_state(to_tensors(state))

    def policy(observation: Tensor) -> Tensor:
        action = agent.policy(observation)
        if not torch.isfinite(action).all():
            raise DivergenceError("an action is not finite")
        return action

    try:
        return evaluate(policy, env)
    except DivergenceError:
        return None

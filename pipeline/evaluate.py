"""Evaluation: returns of whole episodes played by a policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs import BatchEnv
from envs.environment import Environment
from envs.external.external_env import ExternalEnv
from pipeline.numbers import describe_return
from saltus.device import one_torch_thread
from saltus.errors import SaltusError


@dataclass(frozen=True)
class Evaluation:
    """Returns and lengths of whole episodes.

    Attributes:
        returns: undiscounted sum of rewards of each episode.
        lengths: control steps of each episode.
        failed: number of episodes truncated because physics diverged, or an observation or reward was not finite.
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    failed: int

    @classmethod
    def join(cls, parts: Sequence[Evaluation]) -> Evaluation:
        """The evaluation that consists of the episodes of several."""
        returns = tuple(value for part in parts for value in part.returns)
        lengths = tuple(value for part in parts for value in part.lengths)
        return cls(returns, lengths, sum(part.failed for part in parts))

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Sample standard deviation of the returns; 0 for a single episode."""
        return float(np.std(self.returns, ddof=1)) if len(self.returns) > 1 else 0.0

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% confidence interval of the mean: percentile bootstrap (Efron 1979) with 10,000 resamples.

        It is too narrow for few episodes, in particular where single ones fail: of 10 normal returns it holds the mean
        in 90% of cases. None for a single episode.
        """
        if len(self.returns) == 1:
            return None
        returns = np.asarray(self.returns)
        resamples = np.random.default_rng(0).choice(returns, size=(10_000, len(returns)))
        low, high = np.percentile(resamples.mean(axis=1), [2.5, 97.5])
        return float(low), float(high)

    def summary(self) -> str:
        """Mean, standard deviation, interval and mean length in one line of text."""
        line = f"return {describe_return(self.mean)}"
        if self.interval is not None:
            std, low, high = map(describe_return, (self.std, *self.interval))
            line += f" +- {std} (standard deviation of episodes; 95% interval of the mean: {low} to {high})"
        line += f", length {np.mean(self.lengths):.0f}, {len(self.returns)} episode{'s' * (len(self.returns) > 1)}"
        return line + (f", {self.failed} truncated by failures" if self.failed else "")


@torch.no_grad()
@one_torch_thread()
def evaluate(policy: Callable[[Tensor], Tensor], env: Environment) -> Evaluation:
    """Play one whole episode in every world of `env`.

    Only each world's first episode counts, so that short episodes are not over-represented; one that is longer than
    `max_episode_steps` counts so far. Warns about the reasons of failures. Runs on one torch thread: with the small
    batches of an evaluation more threads take longer.

    Args:
        policy: observation (N, obs_dim) -> action (N, action_dim) in [-1, 1].
        env: an environment with normalized actions; `evaluate` resets it.

    Raises:
        SaltusError: not a policy or an environment, or the environment's actions are not normalized.
    """
    require_playable(policy, env)
    observation = env.reset()
    returns = torch.zeros(env.num_envs, dtype=torch.float64, device=env.device)
    lengths = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)
    running = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    failed = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)
    for _ in range(env.max_episode_steps):  # another library's episodes may have no end
        if not running.any():
            break
        transition, observation = env.step(policy(observation))
        returns += torch.where(running, transition["next", "reward"].squeeze(-1), 0.0)
        lengths += running
        failed += running & env.failed
        running &= ~transition["next", "done"].squeeze(-1)
    if failed.any():
        env.statistics()  # warns
    return Evaluation(tuple(returns.tolist()), tuple(lengths.tolist()), int(failed.sum()))


class _StoppedError(Exception):
    """Something stopped an evaluation."""


def evaluate_until(
    stopping: Callable[[], bool], policy: Callable[[Tensor], Tensor], env: Environment
) -> Evaluation | None:
    """`evaluate`; None if `stopping()`, called before each step, becomes true."""

    def stoppable_policy(observation: Tensor) -> Tensor:
        if stopping():
            raise _StoppedError
        return policy(observation)

    try:
        return evaluate(stoppable_policy, env)
    except _StoppedError:
        return None


def require_playable(policy: Any, env: Any) -> None:
    """Raise SaltusError unless `policy` can be called, and `env` takes the actions of policies, in [-1, 1]."""
    if not isinstance(env, BatchEnv | ExternalEnv):
        within = getattr(env, "batch_env", None)
        hint = ": give the BatchEnv in its batch_env, made with normalized_actions=True" if within is not None else ""
        raise SaltusError(f"policies are played in an environment of saltus.make, not in {env!r}{hint}")
    if not env.normalized_actions:
        raise SaltusError("policies act in [-1, 1]: make the environment with normalized_actions=True")
    if not callable(policy):
        raise SaltusError(
            f"the policy is {policy!r}; expected a function of observations, such as a result of saltus.load_policy"
        )

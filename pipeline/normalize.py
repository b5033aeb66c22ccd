"""Normalisation of observations and rewards by running statistics on the training device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pipeline.config import Config
from pipeline.dimensions import Dimensions
from pipeline.ranks import ALONE, Ranks

EPSILON = 1e-8


class RunningStatistics:
    """Tensors that change in place, saved and restored by name."""

    def state_dict(self) -> dict[str, Tensor]:
        """The statistics by name; not copies."""
        raise NotImplementedError

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy the statistics of a `state_dict` into place."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])


class Moments(RunningStatistics):
    """Running mean and variance of rows, per column, in float64.

    Uses the pairwise update of Chan, Golub and LeVeque (1979), which loses no digits to large means.

    Args:
        columns: number of columns.
        device: where the statistics live.
        ranks: the processes whose rows are counted together, as many on each.

    Attributes:
        count: number of rows so far, a scalar.
        mean: (columns,); 0 before the first row.
        variance: (columns,), of the population; 1 before the first row.
    """

    def __init__(self, columns: int, device: torch.device | str = "cpu", ranks: Ranks = ALONE):
        self._ranks = ranks
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.mean = torch.zeros(columns, dtype=torch.float64, device=device)
        self.variance = torch.ones(columns, dtype=torch.float64, device=device)

    def update(self, rows: Tensor) -> None:
        """Add rows, (N, columns), and those of the other ranks."""
        rows = rows.double()
        added = len(rows) * self._ranks.size
        count = self.count + added
        mean, variance = self._ranks.merge(rows.mean(0), rows.var(0, correction=0))
        difference = mean - self.mean
        squares = self.variance * self.count + variance * added
        self.variance.copy_((squares + difference**2 * self.count * added / count) / count)
        self.mean.add_(difference * added / count)
        self.count.copy_(count)

    def state_dict(self) -> dict[str, Tensor]:
        return {"count": self.count, "mean": self.mean, "variance": self.variance}


class ObservationNormalizer(RunningStatistics):
    """Standardises observations: ``(observation - mean) / std`` (SimbaV2; Lee et al. 2025, arXiv 2502.15280).

    Only `update` changes the statistics.
    """

    def __init__(self, observation_dim: int, device: torch.device | str = "cpu", ranks: Ranks = ALONE):
        self.moments = Moments(observation_dim, device, ranks)

    def update(self, observation: Tensor) -> None:
        """Add observations, (N, obs_dim)."""
        self.moments.update(observation)

    def __call__(self, observation: Tensor) -> Tensor:
        """Normalised observations, (B, obs_dim) float32."""
        mean, variance = self.moments.mean.float(), self.moments.variance.float()
        return (observation - mean) * torch.rsqrt(variance + EPSILON)

    def state_dict(self) -> dict[str, Tensor]:
        return self.moments.state_dict()


class RewardScaler(RunningStatistics):
    """Divides rewards by the standard deviation of discounted returns (Engstrom et al. 2020; FlashSAC, XQC).

    The return of each world is that of its past, ``G <- reward + gamma (1 - done) G``, with the ``done`` of the same
    transition: at an episode's last step its sum is dropped, and G is the reward alone. The standard deviation is over
    time and worlds. Only `update` changes the statistics.

    Args:
        num_envs: number of this rank's worlds.
        gamma: discount factor, a number or a scalar that may change in place.
        value_range: if given, the divisor is at least ``max |G| / value_range``. Scaled returns then stay roughly
            within the atoms of a categorical critic: G is the return of the past, without the entropy bonus, and the
            critic's is that of the future, with it.
        device: where the statistics live.
        ranks: the processes whose returns are counted together.
    """

    def __init__(
        self,
        num_envs: int,
        gamma: float | Tensor,
        value_range: float | None = None,
        device: torch.device | str = "cpu",
        ranks: Ranks = ALONE,
    ):
        self.gamma, self.value_range, self._ranks = gamma, value_range, ranks
        self.moments = Moments(1, device, ranks)
        self.returns = torch.zeros(num_envs, 1, dtype=torch.float64, device=device)
        self.max_abs_return = torch.zeros((), dtype=torch.float64, device=device)

    def update(self, reward: Tensor, done: Tensor) -> None:
        """Add a vector step: rewards and ends of episodes, (num_envs, 1) each."""
        self.returns.copy_(reward + self.gamma * (~done).double() * self.returns)
        self.moments.update(self.returns)
        largest = self._ranks.maximum(self.returns.abs().max())
        self.max_abs_return.copy_(torch.maximum(self.max_abs_return, largest))

    @property
    def divisor(self) -> Tensor:
        """The number that divides rewards, a float64 scalar."""
        divisor = (self.moments.variance + EPSILON).sqrt().squeeze()
        if self.value_range is not None:
            divisor = torch.maximum(divisor, self.max_abs_return / self.value_range)
        return divisor

    def __call__(self, reward: Tensor) -> Tensor:
        """Scaled rewards, (B, 1) float32."""
        return reward / self.divisor.float()

    def state_dict(self) -> dict[str, Tensor]:
        """The statistics by name, with the returns of all ranks' worlds; waits for all ranks."""
        return {**self._shared(), "returns": self._ranks.concatenate(self.returns)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, value in self._shared().items():
            value.copy_(state[name])
        self.returns.copy_(self._ranks.own_rows(state["returns"]))

    def _shared(self) -> dict[str, Tensor]:
        """The statistics that are equal on all ranks; not copies."""
        return {**self.moments.state_dict(), "max_abs_return": self.max_abs_return}


class Normalizers:
    """The normalisations that a configuration asks for; without any, the identity.

    Attributes:
        observations: the normaliser of observations, or None.
        privileged: that of privileged observations, or None.
        rewards: the scaler of rewards, or None.
    """

    def __init__(
        self,
        config: Config,
        dimensions: Dimensions,
        gamma: float | Tensor,
        device: torch.device | str = "cpu",
        ranks: Ranks = ALONE,
    ):
        self.observations: ObservationNormalizer | None = None
        self.privileged: ObservationNormalizer | None = None
        self.rewards: RewardScaler | None = None
        if config.normalize_observations:
            self.observations = ObservationNormalizer(dimensions.observation_dim, device, ranks)
            if dimensions.privileged_dim:
                self.privileged = ObservationNormalizer(dimensions.privileged_dim, device, ranks)
        if config.reward_scaling != "none":
            value_range = config.value_range if config.reward_scaling == "bounded" else None
            num_envs = ranks.share(config.num_envs)
            self.rewards = RewardScaler(num_envs, gamma, value_range, device, ranks)

    def update(self, transition: TensorDictBase) -> None:
        """Add a vector step's transition to the running statistics."""
        if self.observations is not None:
            self.observations.update(transition["observation"])
        if self.privileged is not None:
            self.privileged.update(transition["privileged"])
        if self.rewards is not None:
            self.rewards.update(transition["next", "reward"], transition["next", "done"])

    def normalize_observation(self, observation: Tensor) -> Tensor:
        """Normalised observations, (N, obs_dim)."""
        return observation if self.observations is None else self.observations(observation)

    def normalize_states(self, states: TensorDictBase) -> TensorDictBase:
        """A shallow copy of states with normalised observations, privileged ones included."""
        states = states.copy()
        for name, normalizer in (("observation", self.observations), ("privileged", self.privileged)):
            if normalizer is not None:
                states.set(name, normalizer(states[name]))
        return states

    def normalize_batch(self, batch: TensorDict) -> TensorDict:
        """A shallow copy of a batch with normalised observations and scaled rewards; it may be without ``"next"``."""
        batch = self.normalize_states(batch)
        if "next" in batch:  # the actor's update needs none
            batch.set("next", self.normalize_states(batch["next"]))
            if self.rewards is not None:
                batch.set(("next", "reward"), self.rewards(batch["next", "reward"]))
        return batch

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The statistics by normaliser and name; not copies."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Copy the statistics of a `state_dict` into place."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, RunningStatistics]:
        parts = {"observations": self.observations, "privileged": self.privileged, "rewards": self.rewards}
        return {name: part for name, part in parts.items() if part is not None}

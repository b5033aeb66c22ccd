"""ExternalEnv: an environment of another library as an Environment: normalised actions, true successors, failures."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from envs import transition as transitions
from envs.action_space import ActionSpace
from envs.external.worlds import Worlds
from envs.failures import finite_worlds, truncate_failed
from envs.seeding import hash_seed
from envs.statistics import REWARD_TERM, EpisodeStatistics
from envs.validation import check_state
from saltus.device import copy_tensors, resolve_device, to_device
from saltus.errors import SaltusError


class ExternalEnv:
    """N worlds of another library, which take actions in [-1, 1] (see `envs.environment.Environment`).

    The k choices of a discrete action are evenly spaced from -1 to 1; an action counts as the nearest one.

    A world whose action, observation or reward is not finite fails: it is truncated with reward 0 and an unchanged
    observation, counted as ``nonfinite``, and begins another episode. If the library cannot begin one in that world
    alone, the world fails until its episode ends by itself. A step that withholds the last observation of an episode
    raises on the CPU; on CUDA the world fails, and `statistics` raises.

    Args:
        worlds: the library's worlds.
        name: what messages call them.
        device: where actions come from and transitions go.
        seed: seeds the episodes, as far as the library follows its seeds.

    Attributes:
        worlds: the library's worlds.
        reward_terms: the last step's infos ``reward_...`` by name, (N,) float32 on `simulation_device`, of an
            environment of Gymnasium that has some in its first step; NaN in worlds without them.
    """

    resumes_exactly = False
    normalized_actions = True
    model = None
    privileged_dim = 0

    def __init__(self, worlds: Worlds, name: str, *, device: torch.device | str = "cpu", seed: int = 0):
        self.worlds, self.name, self.device = worlds, name, resolve_device(device)
        self.num_envs, self.observation_dim = worlds.num_envs, len(worlds.observation_names)
        self.simulation_device, self.dt, self.max_episode_steps = worlds.device, worlds.dt, worlds.max_episode_steps
        self.control_low, self.control_high = worlds.actions.low, worlds.actions.high
        self.action_choices = worlds.actions.choices
        self.action_dim = len(self.control_low)
        self._actions = ActionSpace(self.control_low, self.control_high, True, worlds.device)
        self.action_low, self.action_high = self._actions.low, self._actions.high
        self._bounds = self.control_low.to(worlds.device), self.control_high.to(worlds.device)
        weakref.finalize(self, worlds.close).atexit = False  # each evaluation makes an environment
        self._terms: list[str] | None = None  # of the reward; None: before the first step
        self._known_terms: set[str] = set()  # those, and the terms that a warning named
        self._statistics = EpisodeStatistics(name, worlds.device, ())
        self._can_sync = worlds.device.type == "cpu"
        self._first_seed = seed
        self._seed: int | None = _derive(seed, 0)  # of the next reset; None: the random streams continue
        self._started = False
        self.reward_terms: dict[str, Tensor] = {}
        self._observation = torch.zeros(self.num_envs, self.observation_dim, device=worlds.device)
        self._elapsed = torch.zeros(self.num_envs, dtype=torch.int64, device=worlds.device)
        self._return = torch.zeros(self.num_envs, dtype=torch.float64, device=worlds.device)
        self._lost = torch.zeros(self.num_envs, dtype=torch.bool, device=worlds.device)
        self._withheld = torch.zeros((), dtype=torch.int64, device=worlds.device)
        self.failed = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)

    def seed(self, seed: int) -> None:
        """Seed all episodes from the next `reset` on, as far as the library follows its seeds."""
        self._first_seed, self._seed = seed, _derive(seed, 0)

    @torch.no_grad()
    def reset(self) -> Tensor:
        """Start an episode in every world; return the observations to act on, (N, obs_dim) float32."""
        observation, self._seed, self._started = self.worlds.reset(self._seed), None, True
        self._elapsed.zero_()
        self._return.zero_()
        self._lost = torch.zeros_like(self._lost)
        return self._observe(observation)

    @torch.no_grad()
    def step(self, action: Tensor) -> tuple[TensorDict, Tensor]:
        """Take one control step in every world.

        Args:
            action: (N, action_dim) float32 in [-1, 1], on `device` or on `simulation_device`.

        Returns:
            The transition, of batch size [N], and the observation to act on next, (N, obs_dim) float32.

        Raises:
            SaltusError: an action of a wrong type, shape or dtype; on the CPU also one that is not finite, or a
                successor that the library withholds.
            RuntimeError: before the first `reset`.
        """
        if not self._started:
            raise RuntimeError("call reset() before step()")
        self._actions.check(action, self.num_envs, read_values=self._can_sync)
        action = action.detach().to(self.simulation_device)
        usable = finite_worlds(action)
        action = torch.where(usable[:, None], action, 0.0)
        control = self._actions.to_control(action).clamp(*self._bounds)  # in spite of rounding
        outcome = self.worlds.step(control.round() if self.action_choices else control)
        if self._can_sync and outcome.missing.any():
            raise self._withholding()
        self._withheld += outcome.missing.sum()

        observation, counted = self._observation, ~self._lost
        failed, successor, reward, terminated, truncated = truncate_failed(
            self._lost | ~usable | outcome.missing,
            observation,
            outcome.successor,
            outcome.reward,
            outcome.terminated,
            outcome.truncated,
        )
        self._elapsed += 1
        self._return += reward
        done = terminated | truncated
        self.reward_terms = self._align_terms(outcome.terms)
        self._statistics.add_step(reward, self._return, self._elapsed, done & counted, failed, self.reward_terms)
        none = torch.zeros_like(failed)
        self._statistics.add_failures(none, failed, none)
        self._elapsed.masked_fill_(done, 0)
        self._return.masked_fill_(done, 0.0)

        next_obs, self._lost = self.worlds.begin(outcome.terminated | outcome.truncated, failed)
        transition = transitions.make(observation, action, successor, reward, terminated, truncated)
        if self.device != self.simulation_device:
            transition = transition.apply(lambda value: to_device(value, self.device), device=self.device)
        self.failed = to_device(failed, self.device)
        return transition, self._observe(next_obs)

    def _align_terms(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The reward's terms that the first step had; NaN where they are missing. Warns once about each other one."""
        if self._terms is None:
            self._count_terms(sorted(found))
        if new := found.keys() - self._known_terms:
            self._known_terms |= new
            warnings.warn(
                f"{self.name} gives the reward terms {', '.join(sorted(new))} in a later step than the first, so they "
                "are not counted: give all terms in every step",
                stacklevel=3,
            )
        unknown = torch.full((self.num_envs,), torch.nan, device=self.simulation_device)
        return {name: found.get(name, unknown) for name in self._terms or ()}

    def _count_terms(self, names: list[str]) -> None:
        """Count reward terms from here on."""
        self._terms, self._known_terms = names, set(names)
        self._statistics = self._statistics.with_terms(names)

    def _observe(self, observation: Tensor) -> Tensor:
        """Keep the observation to act on next; a world without a finite one is lost, and observed as before."""
        finite = finite_worlds(observation)
        self._lost = self._lost | ~finite
        self._observation = torch.where(self._lost[:, None], self._observation, observation)
        return to_device(self._observation.clone(), self.device)

    def statistics(self) -> dict[str, float]:
        """Totals over all worlds since the environment was made (see `BatchEnv.statistics`).

        Raises:
            SaltusError: the library withheld true successors.
        """
        if self._withheld:
            raise self._withholding()
        return self._statistics.read()

    def _withholding(self) -> SaltusError:
        return SaltusError(f"{self.name} ended episodes without their last observations: {self.worlds.missing_advice}")

    def get_state(self) -> TensorDict:
        """The totals of the statistics, and the choices of actions; the worlds themselves cannot be saved."""
        choices = torch.tensor(self.action_choices, dtype=torch.int64)
        return TensorDict({"totals": dict(self._statistics.totals), "action_choices": choices}).clone()

    def set_state(self, state: TensorDictBase | Mapping[str, Any]) -> None:
        """Continue the totals of a `get_state`. The next `reset` begins other episodes than the run has had.

        Raises:
            SaltusError: no such state: entries of other names, types or shapes.
        """
        terms = _terms_in(state)
        statistics = self._statistics.with_terms(terms)
        check_state(state, {**self.get_state(), "totals": statistics.totals})
        self._terms, self._known_terms, self._statistics = terms or None, set(terms), statistics
        copy_tensors(state["totals"], statistics.totals)
        self._seed = _derive(self._first_seed, int(statistics.totals["steps"]))

    def render(self) -> np.ndarray:
        """A frame of world 0, (height, width, 3) uint8.

        Raises:
            SaltusError: an environment without frames.
        """
        return self.worlds.render()


def _terms_in(state: Any) -> list[str]:
    """The names of the reward's terms among the totals of a state; none in something else."""
    totals = state.get("totals", None) if isinstance(state, Mapping | TensorDictBase) else None
    names = totals.keys() if isinstance(totals, Mapping | TensorDictBase) else ()
    return [name.removeprefix(REWARD_TERM) for name in names if str(name).startswith(REWARD_TERM)]


def _derive(seed: int, steps: int) -> int:
    """A seed of 31 bits: libraries add the number of the world to it, and keep it in 32 bits."""
    return hash_seed(seed, steps) >> 1

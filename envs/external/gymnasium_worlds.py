"""GymnasiumWorlds: a vector environment with Gymnasium's interface, of NumPy arrays or torch tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from torch import Tensor

from envs.external.reward_infos import reward_terms
from envs.external.spaces import actions, column, flatten, observation_parts
from envs.external.worlds import FALLBACK_DT, FALLBACK_STEPS, Outcome, first_number
from saltus.errors import SaltusError

_DT = ("step_dt", "dt", "control_timestep")
_STEPS = ("max_episode_steps", "max_episode_length")
_FINAL = ("final_obs", "final_observation")


class GymnasiumWorlds:
    """The worlds of a vector environment; see `envs.external.worlds.Worlds`.

    The environment needs `num_envs`, `single_observation_space`, `single_action_space`, ``metadata["autoreset_mode"]``,
    `reset` and `step`, as `gymnasium.vector.VectorEnv` defines them. If its observations are torch tensors, everything
    stays on their device.

    ==============  ============================================================================================
    autoreset mode  successors of ended episodes
    ==============  ============================================================================================
    ``SAME_STEP``   ``infos["final_obs"]`` (or ``"final_observation"``): an array of objects, as of SyncVectorEnv,
                    or a batch; ``infos["_final_obs"]`` says of which worlds
    ``DISABLED``    the step's observations; then ``reset(options={"reset_mask": mask})`` begins episodes
    ``NEXT_STEP``   as DISABLED, which SyncVectorEnv and AsyncVectorEnv support; others are refused
    ==============  ============================================================================================

    Raises:
        SaltusError: a space, an autoreset mode or an observation that cannot be trained on.
    """

    missing_advice = (
        "AutoresetMode.SAME_STEP needs the true last observations of ended episodes: add infos['final_obs'] and "
        "infos['_final_obs'] to the step, or let a reset_mask begin episodes, with AutoresetMode.DISABLED"
    )

    def __init__(self, env: Any):
        self._env, self.num_envs = env, int(env.num_envs)
        self._parts = observation_parts(env.single_observation_space)
        self.observation_names = [name for part in self._parts for name in part.names]
        self.actions = actions(env.single_action_space)
        self._action_shape = (self.num_envs, *env.single_action_space.shape)
        self._action_dtype = getattr(env.single_action_space, "dtype", None) or np.float32
        self._resets_itself = _resets_itself(env)
        dt, limit = _dt_and_limit([env, _unwrapped(env)])
        if not (dt and limit):
            with _first_world(env) as world:
                dt, limit = _dt_and_limit(
                    [env, _unwrapped(env), *([] if world is None else [world, _unwrapped(world)])]
                )
        self.dt = dt or 1 / (env.metadata.get("render_fps") or 1 / FALLBACK_DT)
        self.max_episode_steps = limit or FALLBACK_STEPS
        first = _first_leaf(env.reset(seed=0)[0])
        self._takes_tensors = isinstance(first, Tensor)
        self.device = first.device if isinstance(first, Tensor) else torch.device("cpu")

    def reset(self, seed: int | None) -> Tensor:
        return self._flat(self._env.reset(seed=seed)[0])

    def step(self, control: Tensor) -> Outcome:
        action = control.reshape(self._action_shape)
        if self.actions.choices:
            action = action.long()
        given = action if self._takes_tensors else action.numpy().astype(self._action_dtype)
        observation, reward, terminated, truncated, infos = self._env.step(given)
        self._next = after = self._flat(observation)
        rewards = column("reward", reward, self.num_envs, torch.float32, self.device)
        terminated = column("terminated", terminated, self.num_envs, torch.bool, self.device)
        truncated = column("truncated", truncated, self.num_envs, torch.bool, self.device)
        terms = reward_terms(infos, self.num_envs, self.device)
        if not self._resets_itself:
            return Outcome(after, rewards, terminated, truncated, torch.zeros_like(terminated), terms)
        final, known = self._final(infos)
        ended = terminated | truncated
        successor = torch.where(ended[:, None], final, after)
        return Outcome(successor, rewards, terminated, truncated, ended & ~known, terms)

    def begin(self, ended: Tensor, failed: Tensor) -> tuple[Tensor, Tensor]:
        if self._resets_itself:
            return self._next, failed & ~ended
        mask = ended | failed
        if not mask.any():
            return self._next, torch.zeros_like(mask)
        given = mask.clone() if self._takes_tensors else mask.numpy().copy()
        first = self._flat(self._env.reset(options={"reset_mask": given})[0])
        if not torch.equal(first[~mask], self._next[~mask]):
            raise SaltusError(
                f"reset(options={{'reset_mask': mask}}) of {self._env} changed the observations of worlds outside the "
                "mask, which are in the middle of an episode: begin episodes in the worlds of the mask alone, and "
                "return the observations of the others as the last step did"
            )
        return first, torch.zeros_like(mask)

    def render(self) -> np.ndarray:
        if getattr(self._env, "render_mode", None) != "rgb_array":
            raise SaltusError(
                f"{self._env} has render_mode {getattr(self._env, 'render_mode', None)!r}, and a video needs "
                "'rgb_array': let the factory take render_mode, and pass it on"
            )
        try:
            frame = self._env.render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise SaltusError(f"{self._env} cannot render frames: {error}") from error
        frame = frame.cpu().numpy() if isinstance(frame, Tensor) else np.asarray(frame)
        return np.asarray(frame[0] if frame.ndim == 4 else frame, np.uint8)

    def close(self) -> None:
        if hasattr(self._env, "close"):
            self._env.close()

    def _flat(self, observation: Any) -> Tensor:
        return flatten(observation, self._parts, self.num_envs, self.device)

    def _final(self, infos: Any) -> tuple[Tensor, Tensor]:
        """The last observations of ended episodes, (N, obs_dim), and the worlds that have one, (N,) bool."""
        worlds, width = self.num_envs, len(self.observation_names)
        known = torch.zeros(worlds, dtype=torch.bool, device=self.device)
        key = next((key for key in _FINAL if key in infos), None)
        if key is None:
            return torch.zeros(worlds, width, device=self.device), known
        value = infos[key]
        if isinstance(value, np.ndarray) and value.dtype == object:  # an observation of each world, or None
            final = torch.zeros(worlds, width, device=self.device)
            for world in (index for index in range(worlds) if value[index] is not None):
                final[world] = flatten(_batch(value[world]), self._parts, 1, self.device)[0]
                known[world] = True
            return final, known
        mask = infos.get(f"_{key}")
        known = ~known if mask is None else column(f"infos['_{key}']", mask, worlds, torch.bool, self.device)
        return self._flat(value), known


def _resets_itself(env: Any) -> bool:
    """Whether the step that ends an episode begins the next.

    Raises:
        SaltusError: no autoreset mode, or one that cannot be trained with.
    """
    mode = (getattr(env, "metadata", None) or {}).get("autoreset_mode")
    choices = (
        "AutoresetMode.SAME_STEP (with infos['final_obs']) or AutoresetMode.DISABLED (with a reset that takes "
        "options={'reset_mask': mask})"
    )
    if not isinstance(mode, AutoresetMode):
        raise SaltusError(
            f"the metadata of {env} have autoreset_mode {mode!r}, so saltus cannot tell the last observation of an "
            f"episode from the first of the next. Set env.metadata = {{**env.metadata, 'autoreset_mode': ...}} to "
            f"{choices}, as the environment behaves"
        )
    if mode == AutoresetMode.NEXT_STEP and not isinstance(_unwrapped(env), SyncVectorEnv | AsyncVectorEnv):
        raise SaltusError(
            f"{env} has AutoresetMode.NEXT_STEP, whose steps after the end of an episode are no transitions, and only "
            f"Gymnasium's SyncVectorEnv and AsyncVectorEnv let saltus skip these: give it {choices}"
        )
    return mode == AutoresetMode.SAME_STEP


@contextmanager
def _first_world(env: Any) -> Iterator[Any]:
    """The first world of a vector environment, which knows a step's length and a time limit; None if it has none.

    The worlds of an AsyncVectorEnv are in other processes, each of which a question for an unknown attribute would end.
    A world is made in this process instead, as AsyncVectorEnv itself does, and closed.
    """
    inner = _unwrapped(env)
    if isinstance(inner, AsyncVectorEnv):
        with closing(inner.env_fns[0]()) as world:
            yield world
    else:
        yield next(iter(getattr(env, "envs", getattr(inner, "envs", []))), None)


def _unwrapped(env: Any) -> Any:
    """The environment within wrappers. An object that derives from no class of Gymnasium is its own."""
    return getattr(env, "unwrapped", env)


def _dt_and_limit(holders: list[Any]) -> tuple[float, int]:
    """Seconds per control step, and steps of the longest episode; 0 where no holder says."""
    return first_number(holders, _DT, 0.0), int(_limit(holders) or first_number(holders, _STEPS, 0))


def _limit(holders: list[Any]) -> int | None:
    for spec in (getattr(holder, "spec", None) for holder in holders):
        limit = spec and {"max_episode_steps": spec.max_episode_steps, **spec.kwargs}["max_episode_steps"]
        if limit:
            return int(limit)
    return None


def _first_leaf(observation: Any) -> Any:
    while isinstance(observation, dict):
        observation = next(iter(observation.values()))
    return observation


def _batch(observation: Any) -> Any:
    """An observation of one world as a batch of one."""
    if isinstance(observation, dict):
        return {key: _batch(value) for key, value in observation.items()}
    return observation[None]

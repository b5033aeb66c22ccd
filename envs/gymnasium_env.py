"""GymnasiumVectorEnv: a BatchEnv as a vector environment of Gymnasium."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from envs import as_batch_env
from envs.batch_env import BatchEnv
from envs.render import Renderer
from envs.task import Task
from envs.validation import check_mask
from saltus.errors import SaltusError


class GymnasiumVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """N worlds of one task with Gymnasium's interface: NumPy in, NumPy out.

    Worlds reset within the step that ends their episode (`AutoresetMode.SAME_STEP`). The infos of that step have the
    true last observations, as those of Gymnasium's SyncVectorEnv in this mode:

    ============================  =======================================================================
    key                           value
    ============================  =======================================================================
    ``final_obs``                 (N,) objects: (obs_dim,) float32 where an episode ended, else None
    ``final_info``                the infos below of the worlds whose episode ended
    ``<term>``                    (N,) the task's reward terms in the other worlds, in the engine's precision
    ``_<key>``                    (N,) bool, the worlds that have the key
    ============================  =======================================================================

    If the task's `observation` returns the group "critic", the infos of `reset` and `step` have it as ``privileged``,
    (N, privileged_dim) float32. ``final_info`` has that of the last observations.

    Args:
        task: a task as for `saltus.make`, or a BatchEnv.
        num_envs: number of worlds; None with a BatchEnv.
        render_mode: ``"rgb_array"``: `render` returns a frame of each world.
        **options: as for `saltus.make`. By default actions are in the actuators' units (``normalized_actions=False``).

    Attributes:
        batch_env: the BatchEnv.

    Raises:
        SaltusError: an unknown `render_mode`, options for a BatchEnv that exists, or an error of `saltus.make`.
    """

    def __init__(
        self,
        task: str | Task | type[Task] | BatchEnv,
        num_envs: int | None = None,
        *,
        render_mode: Literal["rgb_array"] | None = None,
        **options: Any,
    ):
        if render_mode not in (None, "rgb_array"):
            raise SaltusError(f"render_mode is {render_mode!r}; it must be None or 'rgb_array'")
        self.batch_env = env = as_batch_env(task, num_envs, options)
        self.num_envs, self.render_mode = env.num_envs, render_mode
        self.metadata = {
            "autoreset_mode": AutoresetMode.SAME_STEP,
            "render_modes": ["rgb_array"],
            "render_fps": max(1, round(1 / env.task.dt)),
        }
        low, high = env.action_low.cpu().numpy(), env.action_high.cpu().numpy()
        self.single_observation_space = Box(-np.inf, np.inf, (env.observation_dim,), np.float32)
        self.single_action_space = Box(low, high, dtype=np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._renderer: Renderer | None = None
        self._resources = ExitStack()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a new episode in every world.

        Args:
            seed: seeds the initial states of all episodes of all worlds. None: they continue their random stream,
                which the option ``seed`` of `saltus.make` starts.
            options: ``reset_mask``, (N,) bool: start episodes in these worlds only.

        Returns:
            The observation of every world, (N, obs_dim) float32, and infos.

        Raises:
            SaltusError: an impossible seed, another option, or a mask of a wrong type, shape or dtype.
            RuntimeError: a mask before the first `reset`.
        """
        if not isinstance(options or {}, Mapping):
            raise SaltusError(f"options is {options!r}; it must be a dictionary with 'reset_mask', or None")
        unknown = [key for key in options or {} if key != "reset_mask"]
        if unknown:
            raise SaltusError(f"options has {unknown}; expected 'reset_mask' or nothing")
        mask = (options or {}).get("reset_mask")
        if isinstance(mask, np.ndarray):
            mask = torch.from_numpy(mask.copy())
        if mask is not None:
            check_mask(mask, self.num_envs)  # before the seed, which a refused call leaves as it was
        if seed is not None:
            self.batch_env.seed(seed)
            super().reset(seed=int(seed))
        return _to_numpy(self.batch_env.reset(mask)), self._privileged_infos()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one control step in every world.

        Args:
            actions: (N, action_dim), converted to float32.

        Returns:
            The observation to act on next, (N, obs_dim) float32; reward, (N,) float64; terminated and truncated,
            (N,) bool; infos.

        Raises:
            SaltusError, RuntimeError: as `BatchEnv.step`.
        """
        action = torch.from_numpy(np.array(actions, dtype=np.float32))
        transition, observation = self.batch_env.step(action)
        successor = {key: _to_numpy(value) for key, value in transition["next"].items()}
        reward, terminated, truncated, done = (
            successor[key][:, 0] for key in ("reward", "terminated", "truncated", "done")
        )
        terms = {name: _to_numpy(term) for name, term in self.batch_env.reward_terms.items()}
        infos = _infos(terms, ~done) | self._privileged_infos()
        if done.any():
            final = np.full(self.num_envs, None, dtype=object)
            for world in np.flatnonzero(done):
                final[world] = successor["observation"][world]
            infos |= {"final_obs": final, "_final_obs": done.copy()}
            if self.batch_env.privileged_dim:
                terms["privileged"] = successor["privileged"]
            infos |= {"final_info": _infos(terms, done), "_final_info": done.copy()}
        return _to_numpy(observation), reward.astype(np.float64), terminated, truncated, infos

    def _privileged_infos(self) -> dict[str, Any]:
        """The group "critic" of the current observations; nothing without one."""
        if not self.batch_env.privileged_dim:
            return {}
        return {"privileged": _to_numpy(self.batch_env.privileged), "_privileged": np.ones(self.num_envs, dtype=bool)}

    def render(self) -> tuple[np.ndarray, ...]:
        """Render the current state of every world, N frames of (height, width, 3) uint8.

        Raises:
            SaltusError: no `render_mode`.
            RenderError: no OpenGL.
        """
        if self.render_mode is None:
            raise SaltusError("render_mode is None: make the environment with render_mode='rgb_array' to render it")
        if self._renderer is None:
            self._renderer = self._resources.enter_context(Renderer(self.batch_env))
        return tuple(self._renderer.frame(world).copy() for world in range(self.num_envs))

    def close_extras(self, **_: Any) -> None:
        self._resources.close()
        self._renderer = None


def _to_numpy(value: torch.Tensor) -> np.ndarray:
    return value.cpu().numpy()


def _infos(terms: dict[str, np.ndarray], worlds: np.ndarray) -> dict[str, Any]:
    """The values of some worlds, and zeros elsewhere, with their masks; nothing for no worlds."""
    if not worlds.any():
        return {}
    values: dict[str, Any] = {
        name: np.where(worlds if term.ndim == 1 else worlds[:, None], term, 0.0) for name, term in terms.items()
    }
    return values | {f"_{name}": worlds.copy() for name in terms}

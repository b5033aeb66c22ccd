"""Environment: what training, evaluation and playing need of worlds, whoever simulates them."""

from __future__ import annotations

from typing import Any, Protocol

import mujoco
import torch
from tensordict import TensorDict
from torch import Tensor


class Environment(Protocol):
    """N worlds, stepped together. `BatchEnv` simulates a Task; `ExternalEnv` steps an environment of another library.

    Attributes:
        name: what messages call it.
        num_envs, observation_dim, action_dim: sizes.
        privileged_dim: width of what the critics see in addition to observations; 0: nothing.
        device: where actions come from and transitions go.
        simulation_device: where the worlds are. `step` takes actions that are there without another copy.
        normalized_actions: whether actions lie in [-1, 1].
        control_low, control_high: (action_dim,) float32 bounds of actions in the environment's units.
        action_choices: number of choices of each discrete action; their indices are the environment's units. Empty:
            actions are continuous.
        dt: seconds of simulated time per control step.
        max_episode_steps: control steps after which an episode is truncated.
        model: the MuJoCo model; None: there is none, or it is another library's.
        resumes_exactly: whether `set_state` continues within episodes. False: it restores the statistics alone, and
            `reset` must follow, which begins other episodes than those before.
        failed: (N,) bool, the worlds that failed in the last step: they were truncated, with reward 0 and an unchanged
            observation.
    """

    num_envs: int
    observation_dim: int
    action_dim: int
    privileged_dim: int
    device: torch.device
    normalized_actions: bool
    control_low: Tensor
    control_high: Tensor
    action_choices: tuple[int, ...]
    failed: Tensor

    @property
    def name(self) -> str: ...

    @property
    def simulation_device(self) -> torch.device: ...

    @property
    def dt(self) -> float: ...

    @property
    def max_episode_steps(self) -> int: ...

    @property
    def model(self) -> mujoco.MjModel | None: ...

    @property
    def resumes_exactly(self) -> bool: ...

    def seed(self, seed: int) -> None:
        """Seed all episodes from the next `reset` on."""
        ...

    def reset(self) -> Tensor:
        """Start an episode in every world; return the observations to act on, (N, obs_dim) float32."""
        ...

    def step(self, action: Tensor) -> tuple[TensorDict, Tensor]:
        """Take one control step in every world; a world whose episode ends is reset within the step.

        Args:
            action: (N, action_dim) float32.

        Returns:
            The transition (see `envs.transition`), and the observation to act on next, (N, obs_dim) float32.
        """
        ...

    def statistics(self) -> dict[str, float]:
        """Totals over all worlds since the environment was made (see `BatchEnv.statistics`)."""
        ...

    def get_state(self) -> TensorDict:
        """The state that a checkpoint keeps."""
        ...

    def set_state(self, state: Any) -> None:
        """Continue from a state that `get_state` returned (see `resumes_exactly`)."""
        ...

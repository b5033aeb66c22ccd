"""Ant-v5: a four-legged robot walks forward (Gymnasium's task and model)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mujoco
import torch
from torch import Tensor

from envs.failures import finite_worlds
from envs.task import State
from envs.tasks.gymnasium_task import GymnasiumTask
from envs.tasks.resets import add_noise
from envs.tasks.rewards import ordered_sum
from saltus.errors import SaltusError


@dataclass
class Ant(GymnasiumTask):
    """Observation: positions without x and y, velocities, and clipped contact forces.

    Options and defaults are Gymnasium's.
    """

    xml_file: str = "ant.xml"
    """The model: the plain name of one of Gymnasium's files, or the path of a file."""
    frame_skip: int = 5
    """Physics steps per control step."""
    max_episode_steps: int = 1000
    """Control steps after which an episode is truncated."""
    forward_reward_weight: float = 1.0
    """Reward per m/s of forward velocity."""
    ctrl_cost_weight: float = 0.5
    """Cost of a control step per squared control, summed over the actuators."""
    contact_cost_weight: float = 5e-4
    """Cost of a control step per squared contact force (N and N m), summed over the bodies."""
    healthy_reward: float = 1.0
    """Reward of every control step that ends healthy."""
    main_body: int | str = 1
    """Body whose velocity is rewarded: its number or its name."""
    terminate_when_unhealthy: bool = True
    """Whether an unhealthy state ends the episode."""
    healthy_z_range: tuple[float, float] = (0.2, 1.0)
    """Heights of the torso that are healthy, in m."""
    contact_force_range: tuple[float, float] = (-1.0, 1.0)
    """Bounds to which contact forces are clipped, in N and N m."""
    reset_noise_scale: float = 0.1
    """Scale of the noise of initial positions and velocities, in m, rad and their rates."""
    exclude_current_positions_from_observation: bool = True
    """Whether the observation leaves out where the robot is in the plane, or along its line."""
    include_cfrc_ext_in_observation: bool = True
    """Whether the observation has the contact forces of the bodies."""

    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel", "xpos", "cfrc_ext")

    def bind(self, model: mujoco.MjModel, dtype: torch.dtype, device: torch.device) -> None:
        super().bind(model, dtype, device)
        try:
            self._main_body = model.body(self.main_body).id
        except (KeyError, IndexError) as error:
            raise SaltusError(
                f"main_body is {self.main_body!r}; expected the name or the number of a body. MuJoCo: {error.args[0]}"
            ) from None

    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        start = super().reset(num_envs, generator)
        return add_noise(start, self.reset_noise_scale, generator, normal_velocities=True)

    def observation(self, state: State) -> Tensor:
        parts = [state.qpos[:, 2:] if self.exclude_current_positions_from_observation else state.qpos, state.qvel]
        if self.include_cfrc_ext_in_observation:
            parts.append(self._contact_forces(state)[:, 1:].flatten(1))  # without the world body
        return torch.cat(parts, dim=-1)

    def reward(self, state: State, action: Tensor, next_state: State) -> tuple[Tensor, dict[str, Tensor]]:
        x_velocity = (next_state.xpos[:, self._main_body, 0] - state.xpos[:, self._main_body, 0]) / self.dt
        forward = x_velocity * self.forward_reward_weight
        survive = self._healthy(next_state).to(forward) * self.healthy_reward
        ctrl_cost = self.ctrl_cost_weight * ordered_sum(action.square())
        contact_cost = self.contact_cost_weight * ordered_sum(self._contact_forces(next_state).flatten(1).square())
        terms = {
            "reward_forward": forward,
            "reward_ctrl": -ctrl_cost,
            "reward_contact": -contact_cost,
            "reward_survive": survive,
        }
        return forward + survive - (ctrl_cost + contact_cost), terms

    def terminated(self, state: State) -> Tensor:
        return ~self._healthy(state) & self.terminate_when_unhealthy

    def _contact_forces(self, state: State) -> Tensor:
        return state.cfrc_ext.clamp(*self.contact_force_range)

    def _healthy(self, state: State) -> Tensor:
        low, high = self.healthy_z_range
        finite = finite_worlds(torch.cat([state.qpos, state.qvel], dim=-1))
        return finite & (low <= state.qpos[:, 2]) & (state.qpos[:, 2] <= high)

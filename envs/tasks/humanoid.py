"""Humanoid-v5: a humanoid walks forward (Gymnasium's task and model)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import mujoco
import torch
from torch import Tensor

from envs.task import State
from envs.tasks.humanoid_task import HumanoidTask
from envs.tasks.rewards import ordered_sum, weighted_positions


@dataclass
class Humanoid(HumanoidTask):
    """Observation: positions without x and y, velocities, inertias, body velocities, actuator and contact forces.

    Options and defaults are Gymnasium's.
    """

    xml_file: str = "humanoid.xml"
    forward_reward_weight: float = 1.25
    """Reward per m/s of forward velocity."""
    contact_cost_weight: float = 5e-7
    """Cost of a control step per squared contact force (N and N m), summed over the bodies."""
    contact_cost_range: tuple[float, float] = (-math.inf, 10.0)
    """Bounds to which the cost of contacts is clipped."""
    healthy_reward: float = 5.0
    """Reward of every control step that ends healthy."""
    terminate_when_unhealthy: bool = True
    """Whether an unhealthy state ends the episode."""
    healthy_z_range: tuple[float, float] = (1.0, 2.0)
    """Heights of the torso that are healthy, in m."""

    fields: ClassVar[tuple[str, ...]] = (
        "qpos", "qvel", "ctrl", "xipos", "cinert", "cvel", "qfrc_actuator", "cfrc_ext"
    )  # fmt: skip

    def bind(self, model: mujoco.MjModel, dtype: torch.dtype, device: torch.device) -> None:
        super().bind(model, dtype, device)
        self._body_mass = torch.as_tensor(model.body_mass, dtype=dtype, device=device).clone()
        self._total_mass = float(model.body_mass.sum())

    def reward(self, state: State, action: Tensor, next_state: State) -> tuple[Tensor, dict[str, Tensor]]:
        positions = torch.stack([state.xipos, next_state.xipos])
        before, after = weighted_positions(self._body_mass, positions) / self._total_mass
        x_velocity = (after[:, 0] - before[:, 0]) / self.dt
        forward = self.forward_reward_weight * x_velocity
        survive = self._healthy(next_state).to(forward) * self.healthy_reward
        ctrl_cost = self.ctrl_cost_weight * ordered_sum(next_state.ctrl.square())
        contact_cost = self.contact_cost_weight * ordered_sum(next_state.cfrc_ext.flatten(1).square())
        contact_cost = contact_cost.clamp(*self.contact_cost_range)
        terms = {
            "reward_survive": survive,
            "reward_forward": forward,
            "reward_ctrl": -ctrl_cost,
            "reward_contact": -contact_cost,
        }
        return forward + survive - (ctrl_cost + contact_cost), terms

    def terminated(self, state: State) -> Tensor:
        return ~self._healthy(state) & self.terminate_when_unhealthy

    def _healthy(self, state: State) -> Tensor:
        low, high = self.healthy_z_range
        return (low < state.qpos[:, 2]) & (state.qpos[:, 2] < high)

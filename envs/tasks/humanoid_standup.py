"""HumanoidStandup-v5: a humanoid that lies on the floor stands up (Gymnasium's task and model)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from envs.task import State
from envs.tasks.humanoid_task import HumanoidTask
from envs.tasks.rewards import ordered_sum


@dataclass
class HumanoidStandup(HumanoidTask):
    """Observation: positions without x and y, velocities, inertias, body velocities, actuator and contact forces.

    Options and defaults are Gymnasium's.
    """

    xml_file: str = "humanoidstandup.xml"
    uph_cost_weight: float = 1.0
    """Has no effect, as in Gymnasium."""
    impact_cost_weight: float = 5e-7
    """Cost of a control step per squared contact force (N and N m), summed over the bodies."""
    impact_cost_range: tuple[float, float] = (-math.inf, 10.0)
    """Bounds to which the cost of contacts is clipped."""

    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel", "ctrl", "cinert", "cvel", "qfrc_actuator", "cfrc_ext")

    def reward(self, state: State, action: Tensor, next_state: State) -> tuple[Tensor, dict[str, Tensor]]:
        height = next_state.qpos[:, 2] / self.model.opt.timestep
        ctrl_cost = self.ctrl_cost_weight * ordered_sum(next_state.ctrl.square())
        impact_cost = self.impact_cost_weight * ordered_sum(next_state.cfrc_ext.flatten(1).square())
        impact_cost = impact_cost.clamp(*self.impact_cost_range)
        terms = {"reward_linup": height, "reward_quadctrl": -ctrl_cost, "reward_impact": -impact_cost}
        return height - ctrl_cost - impact_cost + 1, terms

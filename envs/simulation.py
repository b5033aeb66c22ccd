"""Simulation: which engine steps the worlds, and how."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from envs.physics import Physics
from envs.physics.cpu import CpuPhysics
from envs.physics.warp import WarpPhysics, missing_packages
from envs.task import Task
from saltus.errors import SaltusError


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """The simulation's settings. The string below a field is its help on the command line."""

    physics: Literal["auto", "cpu", "warp"] = "auto"
    """Engine: mujoco.batch on the CPU, or mujoco_warp on the training device. auto: warp on CUDA if it is installed."""
    num_threads: int = 0
    """CPU threads of the CPU engine; 0: one per core."""
    solver: Literal["model", "newton"] = "model"
    """Constraint solver: the model's own, or Newton's (warp has no PGS, which Humanoid's model asks for)."""
    max_contacts: int = 0
    """Contacts per world that warp allocates memory for; 0: estimated by a rollout with random actions."""
    max_constraints: int = 0
    """Constraint rows per world that warp allocates memory for; 0: estimated likewise."""

    def __post_init__(self) -> None:
        for name, choices in (("physics", ("auto", "cpu", "warp")), ("solver", ("model", "newton"))):
            if getattr(self, name) not in choices:
                raise SaltusError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}")
        for name in ("num_threads", "max_contacts", "max_constraints"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise SaltusError(f"{name} is {value}; it must be a whole number, 0 or more")

    def engine(self, device: torch.device) -> Literal["cpu", "warp"]:
        """The engine to use with a training device; ``auto`` resolved.

        Raises:
            SaltusError: settings of Warp's memory with the CPU engine.
        """
        physics = self.physics
        if physics == "auto":
            physics = "warp" if device.type == "cuda" else "cpu"
            if physics == "warp" and missing_packages():
                warnings.warn("Warp is not installed, so the CPU simulates: pip install 'saltus[warp]'", stacklevel=2)
                physics = "cpu"
        if physics == "cpu" and (self.max_contacts or self.max_constraints):
            raise SaltusError(
                "max_contacts and max_constraints go with physics warp; on the CPU the model sets the memory of "
                'contacts and constraints: <size memory="..."/>'
            )
        return physics

    def make_physics(self, task: Task, num_envs: int, model_fields: dict[str, Tensor], device: torch.device) -> Physics:
        """The worlds of a task that is bound to its model, with per-world `model_fields`, for a training device."""
        arguments = task.model, num_envs, task.fields, task.fresh, model_fields
        if self.engine(device) == "cpu":
            return CpuPhysics(*arguments, self.num_threads)
        return WarpPhysics(*arguments, device, self.max_contacts, self.max_constraints)

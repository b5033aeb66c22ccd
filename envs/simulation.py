"""Simulation: the choice of the physics engine and its settings."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, replace
from typing import Literal

import mujoco
import torch
from torch import Tensor

from envs.physics import Physics
from envs.physics.cpu import CpuPhysics
from envs.physics.warp import WarpPhysics
from envs.physics.warp_model import missing_packages
from envs.task import Task, load_model
from envs.whole_numbers import MAX_INT, require_whole
from saltus.errors import SaltusError

_log = logging.getLogger("saltus")

# A control step of Warp takes 5 ms (Hopper-v5, H100) or 10 ms (Humanoid-v5) however few the worlds are: 16 CPU threads
# simulate about 600 or 200 worlds in that time, while the GPU learns.
MIN_WARP_WORLDS = 512


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Settings of the simulation. The string below a field is its help on the command line."""

    physics: Literal["auto", "cpu", "warp"] = "auto"
    """Engine: mujoco.batch on the CPU, or mujoco_warp on the training device. auto: warp on CUDA from 512 worlds on."""
    num_threads: int = 0
    """CPU threads of the CPU engine; 0: one per core."""
    solver: Literal["model", "newton"] = "model"
    """Constraint solver: the model's own, or Newton's (warp has no PGS, which Humanoid's model asks for)."""
    solver_iterations: int = 0
    """Largest number of the constraint solver's iterations in a physics step; 0: the model's."""
    max_contacts: int = 0
    """Contacts per world that warp allocates memory for; 0: estimated by a rollout with random actions."""
    max_constraints: int = 0
    """Constraint rows per world that warp allocates memory for; 0: estimated likewise."""

    def __post_init__(self) -> None:
        for name, choices in (("physics", ("auto", "cpu", "warp")), ("solver", ("model", "newton"))):
            if getattr(self, name) not in choices:
                raise SaltusError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}")
        for name in ("num_threads", "solver_iterations", "max_contacts", "max_constraints"):
            require_whole(name, getattr(self, name), at_least=0, at_most=MAX_INT)

    def resolve(self, device: torch.device, num_envs: int) -> Simulation:
        """These settings with ``physics="auto"`` replaced by the engine for a training device and a number of worlds.

        Raises:
            SaltusError: settings of Warp's memory with the CPU engine.
        """
        physics = self._suitable_engine(device, num_envs) if self.physics == "auto" else self.physics
        if physics == "cpu" and (self.max_contacts or self.max_constraints):
            raise SaltusError(
                "max_contacts and max_constraints need physics warp; on the CPU the model sets the memory of contacts "
                'and constraints: <size memory="..."/>'
            )
        return replace(self, physics=physics)

    def _suitable_engine(self, device: torch.device, num_envs: int) -> Literal["cpu", "warp"]:
        if device.type != "cuda":
            return "cpu"
        if num_envs < MIN_WARP_WORLDS and not (self.max_contacts or self.max_constraints):
            _log.info(
                f"physics: on the CPU. A step of Warp takes as long for a few worlds as for {MIN_WARP_WORLDS}, and "
                "pays from there on (--physics warp, or --num-envs)"
            )
            return "cpu"
        if missing_packages():
            warnings.warn(
                "Warp is not installed, so physics runs on the CPU: pip install -c constraints.txt -e '.[warp]'",
                stacklevel=2,
            )
            return "cpu"
        return "warp"

    def placement(self, device: torch.device) -> tuple[torch.device, torch.dtype]:
        """Device and dtype of the resolved engine's tensors, for a training device."""
        return (device, WarpPhysics.dtype) if self.physics == "warp" else (CpuPhysics.device, CpuPhysics.dtype)

    def load_model(self, task: Task) -> mujoco.MjModel:
        """Compile a task's model, with the solver and the iterations of these settings.

        Raises:
            SaltusError: as `envs.task.load_model`, or a model whose time stands still or that has no joints.
        """
        model, name = load_model(task), type(task).__name__
        if not model.opt.timestep > 0:
            raise SaltusError(
                f"the timestep of task {name}'s model is {model.opt.timestep:g}; it must be above 0: "
                '<option timestep="0.002"/>'
            )
        if model.nv == 0:
            raise SaltusError(f"the model of task {name} has no joints, so nothing in it moves: give its bodies joints")
        if self.solver == "newton":
            model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
        if self.solver_iterations:
            model.opt.iterations = self.solver_iterations
        return model

    def make_physics(self, task: Task, num_envs: int, model_fields: dict[str, Tensor], device: torch.device) -> Physics:
        """Make the resolved engine for a task that is bound to its model.

        Args:
            model_fields: MjModel fields of the models that worlds run, (number of models, ...) by name. There are
                `model_variants` of the task, or one for each world.
            device: the training device.
        """
        arguments = task.model, num_envs, task.fields, task.recompute_derived, model_fields
        home = task.data0 if task.home is not None or task.settle_steps else None
        if self.physics == "cpu":
            return CpuPhysics(*arguments, self.num_threads, home)
        return WarpPhysics(*arguments, device, self.max_contacts, self.max_constraints, home)

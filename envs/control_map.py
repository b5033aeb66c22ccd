"""ControlMap: how a task's actions set the controls, for programs that use a policy without saltus."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from envs.batch_env import BatchEnv
from envs.random_states import random_states
from envs.task_functions import defines, inputs_of

_TOLERANCE, _NEGLIGIBLE = 1e-5, 1e-6  # of a control's largest value
_DIGITS = 7  # as many as float32 has


@dataclass(frozen=True)
class ControlMap:
    """How actions, in the task's units, set MuJoCo's inputs.

    Attributes:
        offset, matrix: ``ctrl = offset + matrix @ action``, (nu,) and (nu, action_dim) float64. None: ``ctrl`` depends
            on the state, or in another way on the action.
        computed_inputs: names of the inputs that the task's `control` computes otherwise.
    """

    offset: Tensor | None
    matrix: Tensor | None
    computed_inputs: tuple[str, ...]

    def actions_of(self, control: int) -> list[int]:
        """The actions that a control depends on."""
        return [] if self.matrix is None else self.matrix[control].nonzero().flatten().tolist()

    def only_control_of(self, action: int) -> int | None:
        """The control that an action alone sets, if the action sets no other control."""
        if self.matrix is None:
            return None
        controls = self.matrix[:, action].nonzero().flatten().tolist()
        return controls[0] if len(controls) == 1 and self.actions_of(controls[0]) == [action] else None


@torch.no_grad()
def control_map(env: BatchEnv) -> ControlMap:
    """Find how a task's actions set ``ctrl``, by calls of its `control` with random actions in random states.

    The environment is reset.
    """
    task, nu = env.task, env.task.model.nu
    start = torch.from_numpy(task.data0.ctrl.copy())
    if not defines(task, "control"):
        return ControlMap(torch.zeros_like(start), torch.eye(nu, dtype=start.dtype), ())
    low, high = env.control_low.cpu(), env.control_high.cpu()
    env.reset()
    center = ((low + high) / 2).repeat(env.num_envs, 1).to(env.simulation_device)
    inputs = inputs_of(task.control(env.state, center))
    computed = tuple(name for name in inputs if name != "ctrl")
    if "ctrl" not in inputs:
        return ControlMap(start, torch.zeros(nu, env.action_dim, dtype=start.dtype), computed)
    count = 64 + 2 * env.action_dim
    unit = 2 * torch.rand(count, env.action_dim, generator=torch.Generator().manual_seed(0)) - 1
    unit[::2] = unit[::2].sign()  # at the bounds a task may clip
    action = torch.clamp((low + high) / 2 + (high - low) / 2 * unit, low, high)
    states = random_states(env, count, whole_numbers=True)
    try:
        ctrl = inputs_of(task.control(states, action.to(env.simulation_device)))["ctrl"].double().cpu()
    except Exception:  # a task may refuse states that its physics never reaches
        return ControlMap(None, None, ("ctrl", *computed))
    found = _fit(action.double(), ctrl, low.double(), high.double())
    return ControlMap(None, None, ("ctrl", *computed)) if found is None else ControlMap(*found, computed)


def _fit(action: Tensor, ctrl: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor] | None:
    """Offset and matrix of the affine function of actions (N, action_dim) that has the values ctrl (N, nu), if any."""
    if not torch.isfinite(ctrl).all():
        return None
    center, half_range = (low + high) / 2, (high - low) / 2
    unit = torch.cat([torch.ones(len(action), 1), (action - center) / half_range], dim=1)
    solution = torch.linalg.lstsq(unit, ctrl).solution
    largest = ctrl.abs().amax(dim=0)
    if ((unit @ solution - ctrl).abs() > _TOLERANCE * largest).any():
        return None
    weights = torch.where(solution[1:].abs() <= _NEGLIGIBLE * largest, 0.0, solution[1:])
    matrix = (weights / half_range[:, None]).T
    offset = solution[0] - matrix @ center
    offset = torch.where(offset.abs() <= _NEGLIGIBLE * largest, 0.0, offset)
    return _rounded(offset), _rounded(matrix)


def _rounded(values: Tensor) -> Tensor:
    """The values with the digits that are exact in spite of the rounding of float32."""
    digits = [float(f"{value:.{_DIGITS}g}") for value in values.flatten().tolist()]
    return torch.tensor(digits, dtype=values.dtype).reshape(values.shape)

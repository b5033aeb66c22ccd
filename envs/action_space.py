"""ActionSpace: bounds of actions, and their scaling to controls."""

from __future__ import annotations

import torch
from torch import Tensor

from saltus.errors import SaltusError


class ActionSpace:
    """Actions, (N, action_dim) float32, and their scaling to the actuators' units.

    Args:
        control_low, control_high: (action_dim,) bounds in the units of the task or its actuators.
        normalized: whether actions lie in [-1, 1] and ``control = center + half_range * action``; otherwise actions are
            controls.
        device: the physics' device, on which controls are computed.

    Attributes:
        low, high: (action_dim,) bounds of actions, on the device of the control ranges.
    """

    def __init__(self, control_low: Tensor, control_high: Tensor, normalized: bool, device: torch.device):
        self.normalized = normalized
        self.low = -torch.ones_like(control_low) if normalized else control_low.clone()
        self.high = torch.ones_like(control_high) if normalized else control_high.clone()
        self._center = ((control_low + control_high) / 2).to(device)
        self._half_range = ((control_high - control_low) / 2).to(device)

    def to_control(self, action: Tensor) -> Tensor:
        """Convert actions to controls, (N, action_dim) each."""
        return self._center + self._half_range * action if self.normalized else action

    def check(self, action: Tensor, num_envs: int, read_values: bool) -> None:
        """Raise SaltusError for a wrong type, shape or dtype or, with `read_values`, for a non-finite action."""
        shape = (num_envs, len(self.low))
        if not isinstance(action, Tensor):
            raise SaltusError(
                f"the action is a {type(action).__name__}; expected a torch.float32 tensor of shape {shape}"
            )
        if action.shape != shape or action.dtype != torch.float32:
            raise SaltusError(
                f"the action is {action.dtype} of shape {tuple(action.shape)}; expected torch.float32 of shape {shape}"
            )
        if read_values and not torch.isfinite(action).all():
            world = int((~torch.isfinite(action)).any(dim=-1).nonzero()[0])
            raise SaltusError(f"the action of world {world} is not finite: {action[world].tolist()}")

"""Physics: one protocol, and the engines behind it.

The fields an engine hands out are MuJoCo's own (``qpos``, ``xpos``, ``sensordata``, ...), with a leading axis of
worlds. What is stale when is the task's choice (`Task.fresh`), made when the engine is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import mujoco
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

POST_CONSTRAINT = ("cacc", "cfrc_int", "cfrc_ext")
"""Fields that mj_step leaves as they were; mj_rnePostConstraint, which Gymnasium calls after it, computes them."""


class Physics(Protocol):
    """N worlds of one model. Every tensor is in the engine's `dtype` and on its `device`."""

    model: mujoco.MjModel
    num_worlds: int
    dtype: torch.dtype
    device: torch.device

    def read(self, out: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Copy the task's fields, (N, ...) each, into `out` if given, else into new tensors; return them."""
        ...

    def step(self, ctrl: Tensor, frame_skip: int) -> None:
        """Apply `ctrl` (N, nu) for `frame_skip` physics steps."""
        ...

    def reset(self, mask: Tensor, qpos: Tensor, qvel: Tensor) -> None:
        """Where `mask` (N,) holds, clear the world and put it at `qpos` (N, nq), `qvel` (N, nv)."""
        ...

    def unstable(self) -> Tensor:
        """Worlds whose physics failed or diverged in the last `step` or `reset`, (N,) bool."""
        ...

    def overflowed(self) -> Tensor:
        """Worlds in which the last `step` or `reset` dropped contacts or constraints for lack of memory, (N,) bool."""
        ...

    @property
    def overflow_advice(self) -> str:
        """What to do where worlds overflowed."""
        ...

    def get_state(self) -> TensorDict:
        """All that is needed to continue bit for bit, of batch size [N]."""
        ...

    def set_state(self, state: TensorDictBase | Mapping[str, Any]) -> None:
        """Continue from what `get_state` returned."""
        ...

    def mj_data(self, world: int) -> mujoco.MjData:
        """One world as an MjData with everything computed, for rendering."""
        ...

"""Physics: one protocol, and the engines behind it.

Fields have MuJoCo's names (``qpos``, ``xpos``, ``sensordata``, ...) and a leading axis of worlds. An engine copies them
out; it never hands out its own arrays. `Task.recompute_derived` decides which state derived fields describe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import mujoco
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

POST_CONSTRAINT = ("cacc", "cfrc_int", "cfrc_ext")
"""Fields that mj_step does not compute. mj_rnePostConstraint does; Gymnasium calls it after mj_step."""


INPUTS = ("ctrl", "mocap_pos", "mocap_quat", "xfrc_applied", "qfrc_applied")
"""Fields that `Task.control` may set."""


def divergence_advice(model: mujoco.MjModel) -> str:
    """How to avoid states that are not finite or beyond MuJoCo's limit, for a model."""
    integrator, runge_kutta = model.opt.integrator, mujoco.mjtIntegrator.mjINT_RK4
    explicit = integrator in (mujoco.mjtIntegrator.mjINT_EULER, runge_kutta)
    of_velocity = [model.tendon_damping, model.actuator_gainprm[:, 2], model.actuator_biasprm[:, 2]]
    if integrator == runge_kutta or model.opt.disableflags & int(mujoco.mjtDisableBit.mjDSBL_EULERDAMP):
        of_velocity.append(model.dof_damping)  # which Euler's method integrates implicitly
    if not (explicit and any(values.any() for values in of_velocity)):
        return "it diverged. A smaller timestep, or less extreme actions, may help"
    return (
        'it diverged. <option integrator="implicitfast"/>, which integrates damping implicitly, a smaller timestep, or '
        "less extreme actions, may help"
    )


class Physics(Protocol):
    """N worlds of one model. Every tensor is in the engine's `dtype` and on its `device`.

    Attributes:
        models: rows of `model_fields` that worlds run, (N,) int64, written in place; see `set_models`.
    """

    model: mujoco.MjModel
    num_worlds: int
    models: Tensor
    dtype: torch.dtype
    device: torch.device

    def read(self, out: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Copy the task's fields, (N, ...) each, into `out` if given, else into new tensors; return them."""
        ...

    def step(self, ctrl: Tensor | None, frame_skip: int, inputs: Mapping[str, Tensor] | None = None) -> None:
        """Simulate `frame_skip` physics steps.

        Args:
            ctrl: (N, nu); None: unchanged.
            frame_skip: number of physics steps.
            inputs: fields of `INPUTS`, (N, ...) by name; others are unchanged.
        """
        ...

    def reset(self, mask: Tensor, qpos: Tensor, qvel: Tensor, start: Mapping[str, Tensor] | None = None) -> None:
        """Reset the worlds of `mask`, (N,) bool, to `qpos` (N, nq) and `qvel` (N, nv).

        All else is as in `home`, or at the model's defaults.

        Args:
            start: other fields of `HOME_FIELDS` that worlds start with, (N, ...) by name.
        """
        ...

    def set_models(self, mask: Tensor, rows: Tensor) -> None:
        """Give worlds of `mask`, (N,) bool, models of `model_fields`, by their rows, (N,) int64, before a `reset`.

        World i has model i at first, or i modulo their number. From the first call on the state holds the rows, as
        ``models``.
        """
        ...

    def unstable(self) -> Tensor:
        """Worlds whose physics raised or diverged in the last `step` or `reset`, (N,) bool."""
        ...

    def overflowed(self) -> Tensor:
        """Worlds that dropped contacts or constraints in the last `step` or `reset`, for lack of memory, (N,) bool."""
        ...

    @property
    def failure_advice(self) -> str:
        """Why worlds are `unstable`, and how to avoid it; MuJoCo's own words if it raised an error."""
        ...

    @property
    def overflow_advice(self) -> str:
        """How to avoid overflows. Reading it may synchronise with the GPU."""
        ...

    def get_state(self) -> TensorDict:
        """Everything needed to continue bit for bit, of batch size [N]."""
        ...

    def set_state(self, state: TensorDictBase | Mapping[str, Any]) -> None:
        """Continue from a state that `get_state` returned.

        `read` is up to date after the next `step`, or, in the worlds of its mask, `reset`.
        """
        ...

    def world_model(self, world: int) -> mujoco.MjModel:
        """One world's model, with the per-world fields of `Task.randomize`."""
        ...

    def mj_data(self, world: int) -> mujoco.MjData:
        """A copy of one world, after mj_forward, for rendering."""
        ...

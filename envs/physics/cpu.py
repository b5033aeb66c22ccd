"""CPU physics: `mujoco.batch` on all cores, in float64. The reference engine."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import mujoco
import numpy as np
import torch
from mujoco.batch import DATA_FIELDS, Batch, SimulationError
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from envs.physics import POST_CONSTRAINT
from saltus.errors import SaltusError

_NONE, _VELOCITY = int(mujoco.mjtStage.mjSTAGE_NONE), int(mujoco.mjtStage.mjSTAGE_VEL)

_log = logging.getLogger("saltus.mujoco")
if mujoco.get_mju_user_warning() is None:
    # By default MuJoCo prints warnings and appends them to a file in the current folder. Divergence is counted below.
    mujoco.set_mju_user_warning(_log.debug)

_warning = mujoco.mjtWarning
# MuJoCo itself resets a diverged simulation; only these counters show it.
_DIVERGED = [int(kind) for kind in (_warning.mjWARN_BADQPOS, _warning.mjWARN_BADQVEL, _warning.mjWARN_BADQACC)]
# MuJoCo drops contacts and constraints that exceed the model's memory.
_OVERFLOWED = [int(kind) for kind in (_warning.mjWARN_CONTACTFULL, _warning.mjWARN_CNSTRFULL)]


def available_cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class CpuPhysics:
    """The Physics protocol on `mujoco.batch`.

    Args:
        model: the compiled model.
        num_worlds: number of worlds.
        fields: names of the MjData fields that `read` returns.
        recompute_derived: see `Task.recompute_derived`.
        model_fields: MjModel fields that differ between worlds, (num_worlds, ...) by name.
        num_threads: number of threads; 0: one per core.

    Raises:
        SaltusError: a field that MjData lacks or that cannot be read in a batch.
    """

    dtype = torch.float64
    device = torch.device("cpu")
    overflow_advice = "raise <size memory=.../> in the MJCF"

    def __init__(
        self,
        model: mujoco.MjModel,
        num_worlds: int,
        fields: tuple[str, ...],
        recompute_derived: bool,
        model_fields: dict[str, Tensor] | None = None,
        num_threads: int = 0,
    ):
        unknown = sorted(set(fields) - DATA_FIELDS)
        if unknown:
            raise SaltusError(
                f"not readable fields of MjData: {', '.join(unknown)}; readable are {', '.join(sorted(DATA_FIELDS))}"
            )
        self.model, self.num_worlds = copy.copy(model), num_worlds
        if model.ntree == 1:
            # One kinematic tree has one constraint island: searching for islands changes no bit and costs time.
            self.model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_ISLAND)
        self._post_constraint = tuple(field for field in fields if field in POST_CONSTRAINT)
        # A persistent batch keeps each world's MjData: it continues from stages computed ahead, and get_data is whole.
        persistent = recompute_derived or bool(self._post_constraint)
        self._batch = Batch(self.model, num_worlds, num_threads or available_cores(), persistent)
        self._recompute_derived = recompute_derived
        for name, values in (model_fields or {}).items():
            self._batch.expand(name)[...] = values.numpy()
        if model_fields:
            self._batch.set_const()
        self._batch.reset(stage=_NONE)
        self._initial = self._batch.state.copy()
        self._qpos, self._qvel = self._batch.bind("qpos"), self._batch.bind("qvel")
        self._ctrl, self._ncon = self._batch.bind("ctrl"), self._batch.bind("ncon")
        self._bound = {field: self._batch.bind(field) for field in fields if field not in self._post_constraint}
        self._data = mujoco.MjData(model)
        self._computed = {
            field: np.zeros((num_worlds, *getattr(self._data, field).shape)) for field in self._post_constraint
        }
        # Without equality constraints, external forces come from contacts only.
        self._only_contacts = self._post_constraint == ("cfrc_ext",) and model.neq == 0
        self._fields = fields
        self._clear_failures()

    def read(self, out: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        if out is None:
            return {field: torch.from_numpy(self._live(field).copy()) for field in self._fields}
        for field, target in out.items():
            target.numpy()[...] = self._live(field)
        return out

    def _live(self, field: str) -> np.ndarray:
        return self._computed[field] if field in self._computed else self._bound[field]

    def step(self, ctrl: Tensor, frame_skip: int) -> None:
        self._ctrl[...] = ctrl.numpy()
        self._clear_failures()
        # Recomputing contacts in the new state discards the step's contact forces, which mj_rnePostConstraint needs.
        stage = _VELOCITY if self._recompute_derived and not self._post_constraint else _NONE
        self._record_failures(lambda: self._batch.step(nstep=frame_skip, stage=stage))
        if self._post_constraint:
            self._compute_post_constraint()
            if self._recompute_derived:
                stable = ~self._unstable
                self._record_failures(lambda: self._batch.forward(stable, _VELOCITY))

    def _clear_failures(self) -> None:
        self._unstable = np.zeros(self.num_worlds, dtype=bool)
        self._overflowed = np.zeros(self.num_worlds, dtype=bool)
        # Clear the counters before every call: MuJoCo's own reset sets a counter to 1, it does not increment it.
        self._batch.warning[...] = 0

    def _record_failures(self, call: Callable[[], None]) -> None:
        """Make a call on the batch and record the worlds in which it failed. The call completes in the others."""
        try:
            call()
        except SimulationError as error:
            self._unstable[error.ids] = True
        self._unstable |= self._batch.warning[:, _DIVERGED, 1].any(axis=1)
        self._overflowed |= self._batch.warning[:, _OVERFLOWED, 1].any(axis=1)

    def _compute_post_constraint(self) -> None:
        worlds = np.flatnonzero(self._ncon) if self._only_contacts else range(self.num_worlds)
        if self._only_contacts:
            self._computed["cfrc_ext"][...] = 0
        for world in worlds:
            self._batch.get_data(world, self._data)
            mujoco.mj_rnePostConstraint(self.model, self._data)
            for field, values in self._computed.items():
                values[world] = getattr(self._data, field)

    def reset(self, mask: Tensor, qpos: Tensor, qvel: Tensor) -> None:
        where = mask.numpy()
        # Faster than Batch.reset, which also clears what forward overwrites.
        self._batch.state[where] = self._initial[where]
        self._qpos[where] = qpos.numpy()[where]
        self._qvel[where] = qvel.numpy()[where]
        self._clear_failures()
        self._record_failures(lambda: self._batch.forward(where))
        for values in self._computed.values():
            values[where] = 0  # mj_resetData and mj_forward leave these fields at zero

    def unstable(self) -> Tensor:
        return torch.from_numpy(self._unstable.copy())

    def overflowed(self) -> Tensor:
        return torch.from_numpy(self._overflowed.copy())

    def get_state(self) -> TensorDict:
        return TensorDict({"integration": torch.from_numpy(self._batch.state.copy())}, batch_size=[self.num_worlds])

    def set_state(self, state: TensorDictBase | Mapping[str, Any]) -> None:
        self._batch.state[...] = state["integration"].numpy()

    def world_model(self, world: int) -> mujoco.MjModel:
        return self._batch.get_model(world)

    def mj_data(self, world: int) -> mujoco.MjData:
        data = self._batch.get_data(world)
        mujoco.mj_forward(self.world_model(world), data)
        return data

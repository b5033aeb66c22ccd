"""CPU physics: `mujoco.batch` on all cores, in float64. The reference engine."""

from __future__ import annotations

import copy
import ctypes
import logging
import os
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import mujoco
import numpy as np
import torch
from mujoco.batch import DATA_FIELDS, Batch, SimulationError
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from envs.home import HOME_FIELDS
from envs.physics import POST_CONSTRAINT, divergence_advice
from envs.physics.computed_fields import require_computed
from envs.physics.model_fields import HIDDEN_STATE, with_constants
from saltus.errors import SaltusError, warn_once

_NONE, _VELOCITY = int(mujoco.mjtStage.mjSTAGE_NONE), int(mujoco.mjtStage.mjSTAGE_VEL)

_log = logging.getLogger("saltus.mujoco")
if mujoco.get_mju_user_warning() is None:
    # By default MuJoCo prints warnings and appends them to a file in the current folder. Divergence is counted below.
    mujoco.set_mju_user_warning(_log.debug)


def stop_clock() -> None:
    """Stop MuJoCo from reading the clock, more than a hundred times a step, for timers that nothing here reads.

    MuJoCo's Python package installs a clock as the C callback `mjcb_time`. Without it steps take less time (Humanoid
    by a fifteenth, Hopper by a sixth) and ``MjData.timer`` stays zero; no result changes. A callback of the user's own
    is kept. `mujoco.set_mjcb_time(None)` restores the package's clock.
    """
    if mujoco.get_mjcb_time() is not None:
        return
    try:
        from mujoco import _callbacks

        ctypes.c_void_p.in_dll(ctypes.CDLL(_callbacks.__file__), "mjcb_time").value = None
    except (ImportError, OSError, ValueError):  # another build of MuJoCo: it only costs time
        _log.debug("MuJoCo's clock could not be stopped")


stop_clock()

_warning = mujoco.mjtWarning
# MuJoCo itself resets a diverged simulation; only these counters show it.
_DIVERGED = [int(kind) for kind in (_warning.mjWARN_BADQPOS, _warning.mjWARN_BADQVEL, _warning.mjWARN_BADQACC)]
# MuJoCo drops contacts and constraints that exceed the model's memory.
_OVERFLOWED = [int(kind) for kind in (_warning.mjWARN_CONTACTFULL, _warning.mjWARN_CNSTRFULL)]


_instances: weakref.WeakSet[CpuPhysics] = weakref.WeakSet()


def _disable_in_child() -> None:
    """Mark the engines of a forked child, which lacks their threads, as unusable.

    Their batches are kept for good: to free one joins its threads, and hangs.
    """
    for physics in _instances:
        physics.disable()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disable_in_child)


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
        model_fields: MjModel fields of the models that worlds run, (number of models, ...) by name; see `set_models`.
        num_threads: number of threads; 0: one per core.
        home: the state that worlds start from; None: the model's defaults.

    Raises:
        SaltusError: a field that MjData lacks, that cannot be read in a batch or that steps of the model do not
            compute; a model field that cannot differ between worlds.

    With several threads, an engine raises SaltusError when it is used in a forked child process.
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
        home: mujoco.MjData | None = None,
    ):
        unknown = sorted(set(fields) - DATA_FIELDS)
        if unknown:
            raise SaltusError(
                f"not readable fields of MjData: {', '.join(unknown)}; readable are {', '.join(sorted(DATA_FIELDS))}"
            )
        require_computed(model, fields)
        self.model, self.num_worlds = copy.copy(model), num_worlds
        if model.ntree == 1 and not {"nisland", "nidof"} & {*fields}:
            # One kinematic tree has one constraint island: searching for islands changes no bit and costs time.
            self.model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_ISLAND)
        self._post_constraint = tuple(field for field in fields if field in POST_CONSTRAINT)
        hidden = [flag for flag, bit in HIDDEN_STATE.items() if model.opt.enableflags & int(bit)]
        if hidden:
            flags = " ".join(f'{flag}="enable"' for flag in hidden)
            warn_once(
                f"the model sets <flag {flags}/>: MuJoCo keeps its bookkeeping outside the state, so that a resumed "
                "run differs from one that never stopped. Remove the flag if runs must resume bit for bit"
            )
        self._has_hidden_state = bool(hidden)
        # A persistent batch keeps each world's MjData: it continues from stages computed ahead, and get_data is whole.
        persistent = recompute_derived or bool(self._post_constraint) or self._has_hidden_state
        self._batch = Batch(self.model, num_worlds, num_threads or available_cores(), persistent)
        self._in_child = False
        _instances.add(self)
        self._recompute_derived = recompute_derived
        self._model_fields = with_constants(self.model, model_fields or {}, self._batch.nthread)
        self.models, self._models_change = torch.arange(num_worlds), False
        if self._model_fields:
            self.models %= len(next(iter(self._model_fields.values())))
            self._apply_models(np.full(num_worlds, True))
        self._batch.reset(stage=_NONE)
        if home is not None:
            for field in HOME_FIELDS:
                self._batch.bind(field)[...] = getattr(home, field)
        self._initial = self._batch.state.copy()
        self._qpos, self._qvel = self._batch.bind("qpos"), self._batch.bind("qvel")
        self._ctrl, self._ncon = self._batch.bind("ctrl"), self._batch.bind("ncon")
        self._xfrc = self._batch.bind("xfrc_applied")
        self._bound = {field: self._batch.bind(field) for field in fields if field not in self._post_constraint}
        self._data, self._scratch_model = mujoco.MjData(model), copy.copy(self.model)
        self._computed = {
            field: np.zeros((num_worlds, *getattr(self._data, field).shape)) for field in self._post_constraint
        }
        # Without equality constraints and spatial tendons, external forces are those of contacts and applied ones.
        spatial_tendons = np.any(model.wrap_type != mujoco.mjtWrap.mjWRAP_JOINT)
        self._few_forces = self._post_constraint == ("cfrc_ext",) and model.neq == 0 and not spatial_tendons
        self._fields = fields
        self._error = ""  # what MuJoCo raised at the last failure; empty: a world diverged
        self._clear_failures()

    def set_models(self, mask: Tensor, rows: Tensor) -> None:
        self._models_change = True
        changed = mask & (rows != self.models)
        self.models.copy_(torch.where(mask, rows, self.models))
        self._apply_models(changed.numpy())

    def _apply_models(self, where: np.ndarray) -> None:
        rows = self.models.numpy()[where]
        for name, values in self._model_fields.items():
            self._batch.expand(name)[where] = values[rows]

    def disable(self) -> None:
        """Refuse further use, in a forked child process that lacks the engine's threads."""
        if self._batch.nthread > 1:
            self._in_child = True
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._batch._b))

    def read(self, out: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        if out is None:
            return {field: torch.from_numpy(self._live(field).copy()) for field in self._fields}
        for field, target in out.items():
            target.numpy()[...] = self._live(field)
        return out

    def _live(self, field: str) -> np.ndarray:
        return self._computed[field] if field in self._computed else self._bound[field]

    def step(self, ctrl: Tensor | None, frame_skip: int, inputs: Mapping[str, Tensor] | None = None) -> None:
        if ctrl is not None:
            self._ctrl[...] = ctrl.numpy()
        for field, values in (inputs or {}).items():
            self._batch.bind(field)[...] = values.numpy()
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
        self._raised = ""  # what MuJoCo raised since
        # Clear the counters before every call: MuJoCo's own reset sets a counter to 1, it does not increment it.
        self._batch.warning[...] = 0

    def _record_failures(self, call: Callable[[], None]) -> None:
        """Make a call on the batch and record the worlds in which it failed. The call completes in the others."""
        if self._in_child:
            raise SaltusError(
                "this environment was made before this process was forked from another one, and its threads stayed "
                "there: make it in the child process, start processes by 'spawn', or give num_threads=1"
            )
        try:
            call()
        except SimulationError as error:
            self._unstable[error.ids] = True
            self._raised = " ".join(self._batch.error(int(error.ids[0])).split())
        self._unstable |= self._batch.warning[:, _DIVERGED, 1].any(axis=1)
        if self._unstable.any():
            self._error = self._raised
        self._overflowed |= self._batch.warning[:, _OVERFLOWED, 1].any(axis=1)

    def _compute_post_constraint(self) -> None:
        worlds: list[int] | range = range(self.num_worlds)
        if self._few_forces:
            worlds = np.flatnonzero((self._ncon > 0) | self._xfrc.any(axis=(1, 2))).tolist()
            self._computed["cfrc_ext"][...] = 0
        copies = [(values, getattr(self._data, field)) for field, values in self._computed.items()]
        for world in worlds:
            self._batch.get_data(world, self._data)
            if self._model_fields:
                self._batch.get_model(world, self._scratch_model)
            mujoco.mj_rnePostConstraint(self._scratch_model, self._data)
            for values, computed in copies:
                values[world] = computed

    def reset(self, mask: Tensor, qpos: Tensor, qvel: Tensor, start: Mapping[str, Tensor] | None = None) -> None:
        where = mask.numpy()
        if self._has_hidden_state:
            self._batch.reset(where, stage=_NONE)
        # Faster than Batch.reset, which also clears what forward overwrites.
        self._batch.state[where] = self._initial[where]
        self._qpos[where] = qpos.numpy()[where]
        self._qvel[where] = qvel.numpy()[where]
        for field, initial in (start or {}).items():
            self._batch.bind(field)[where] = initial.numpy()[where]
        self._clear_failures()
        self._record_failures(lambda: self._batch.forward(where))
        for values in self._computed.values():
            values[where] = 0  # mj_resetData and mj_forward leave these fields at zero

    def unstable(self) -> Tensor:
        return torch.from_numpy(self._unstable.copy())

    def overflowed(self) -> Tensor:
        return torch.from_numpy(self._overflowed.copy())

    @property
    def failure_advice(self) -> str:
        if not self._error:
            return divergence_advice(self.model)
        advice = f": {self.overflow_advice}" if "memory" in self._error else ""
        return f"MuJoCo raised {self._error!r}{advice}"

    def get_state(self) -> TensorDict:
        state = {"integration": torch.from_numpy(self._batch.state.copy())}
        if self._models_change:
            state["models"] = self.models.clone()
        return TensorDict(state, batch_size=[self.num_worlds])

    def set_state(self, state: TensorDictBase | Mapping[str, Any]) -> None:
        if self._has_hidden_state:
            self._batch.reset(stage=_NONE)
        if self._models_change:
            self.set_models(torch.ones(self.num_worlds, dtype=torch.bool), state["models"])
        self._batch.state[...] = state["integration"].numpy()

    def world_model(self, world: int) -> mujoco.MjModel:
        return self._batch.get_model(world) if self._model_fields else self.model

    def mj_data(self, world: int) -> mujoco.MjData:
        data = self._batch.get_data(world)
        mujoco.mj_forward(self.world_model(world), data)
        return data

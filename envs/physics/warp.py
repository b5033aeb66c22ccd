"""GPU physics: `mujoco_warp` in float32, one CUDA graph for a control step and one for a reset.

On a device without CUDA Warp runs the same kernels on the CPU, slowly: that is for tests.

Nothing here waits for the device, and no shape depends on a value. What differs from the CPU engine, beside float32:
no solver but Newton and CG, the order of floating-point sums on CUDA (so that two runs differ in the last bits), and
contacts and constraints in arrays of fixed size.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mujoco
import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from envs.physics import POST_CONSTRAINT
from envs.physics.warp_memory import ccd_workspace_bytes, estimate_capacity, modules, num_bytes, release_memory
from saltus.device import resolve_device
from saltus.device.cuda_graph import gc_paused, graph_break
from saltus.device.memory import free_bytes
from saltus.errors import SaltusError

_log = logging.getLogger("saltus")

_LARGEST = 1e10  # mjMAXVAL: beyond it MuJoCo, too, takes a state for diverged
# All that the next step depends on.
_STATE = (
    "time", "qpos", "qvel", "act", "history", "plastic", "qacc_warmstart", "ctrl", "qfrc_applied", "xfrc_applied",
    "eq_active", "mocap_pos", "mocap_quat", "userdata",
)  # fmt: skip
# What follows from model fields that differ between worlds, and so differs, too.
_DERIVED = (
    "body_subtreemass", "body_invweight0", "dof_invweight0", "geom_aabb", "geom_rbound", "eq_data", "cam_pos0",
    "cam_poscom0", "cam_mat0", "light_pos0", "light_poscom0", "light_dir0", "tendon_length0", "tendon_invweight0",
    "actuator_acc0",
)  # fmt: skip


def missing_packages() -> list[str]:
    """What Warp physics needs and is not installed."""
    return [name for name in ("warp", "mujoco_warp") if importlib.util.find_spec(name) is None]


def require_warp(device: torch.device) -> None:
    """Raise ValueError, with the way out, where Warp physics cannot run on `device`."""
    if missing := missing_packages():
        raise SaltusError(
            f"physics warp needs {' and '.join(missing)}: pip install 'saltus[warp]', or take physics cpu"
        )
    if device.type == "cpu":
        return
    if not torch.cuda.is_available():
        raise SaltusError("physics warp on cuda: torch sees no CUDA device. Take physics cpu, or device cpu for tests")
    wp, _ = modules()
    if not wp.is_cuda_available():
        raise SaltusError(
            "physics warp on cuda: torch sees the GPU and warp does not, most likely because the driver is older than "
            "the CUDA that warp was built with. Update the driver, or take physics cpu"
        )


class WarpPhysics:
    """The Physics protocol on `mujoco_warp`.

    Args:
        model: the compiled model. A PGS solver becomes Newton's, with a warning: Warp has no PGS.
        num_worlds: how many worlds of it.
        fields: the MjData fields that `read` returns.
        fresh: whether `read` gives position- and velocity-dependent fields of the state after the step, or of the last
            evaluation within it, as a plain mj_step leaves them.
        model_fields: MjModel fields that differ between worlds, (num_worlds, ...) by name.
        device: ``cuda``, or ``cpu`` for tests.
        max_contacts: contacts for which there is memory, per world; worlds share it. 0: as a rollout with random
            controls suggests (`estimate_capacity`).
        max_constraints: rows of constraints (a contact has several) for which there is memory in each world; 0:
            likewise.

    Raises:
        ValueError: no Warp, no CUDA, an old driver; a model with something that Warp does not have; a field that cannot
            be read or cannot differ between worlds.
        MemoryError: more worlds than the device's memory holds; nothing has been allocated then.

    Attributes:
        num_bytes: what the state's arrays take.
        working_bytes: what a step takes beside them, at most.
    """

    dtype = torch.float32

    def __init__(
        self,
        model: mujoco.MjModel,
        num_worlds: int,
        fields: tuple[str, ...],
        fresh: bool,
        model_fields: dict[str, Tensor] | None = None,
        device: torch.device | str = "cuda",
        max_contacts: int = 0,
        max_constraints: int = 0,
    ):
        require_warp(torch.device(device))
        self.device = resolve_device(device)
        self._warp, self._mujoco_warp = modules()
        self.model, self.num_worlds = with_supported_solver(model), num_worlds
        self._mj_data = mujoco.MjData(self.model)
        if not max_contacts or not max_constraints:
            contacts, constraints = estimate_capacity(self.model)
            max_contacts, max_constraints = max_contacts or contacts, max_constraints or constraints
        self.max_contacts, self.max_constraints = max_contacts, max_constraints
        self._fields, self._fresh, self._model_fields = fields, fresh, dict(model_fields or {})
        self._post_constraint = any(field in POST_CONSTRAINT for field in fields)
        with self._scope():
            self.num_bytes = num_bytes(self.model, num_worlds, max_contacts, max_constraints)
            # What integrator and solver work on takes less than the state.
            self.working_bytes = self.num_bytes + num_worlds * max_contacts * ccd_workspace_bytes(self.model)
            _log.info(
                f"memory on {self.device}: physics: {num_worlds:,} worlds, {self.num_bytes / 1e6:,.0f} MB, and at most "
                f"{self.working_bytes / 1e6:,.0f} MB to work on (--num-envs; room for --max-contacts {max_contacts}, "
                f"--max-constraints {max_constraints} in each)"
            )
            self._require_memory(self.num_bytes + self.working_bytes)
            self._warp_model = self._put_model()
            self._data = self._make_data(num_worlds)
            self._set_model_fields()
            self._views = {field: self._view(field) for field in fields}
            self._state = {field: view for field in _STATE if (view := self._view(field)).numel()}
            self._make_inputs()
        self._place_worlds = WarpGraph(self._reset_and_forward, self.device)
        self._control_steps: dict[int, WarpGraph] = {}
        self._ever_full = torch.zeros(3, dtype=torch.bool, device=self.device)  # contacts, constraints, others
        self._unstable = torch.zeros(num_worlds, dtype=torch.bool, device=self.device)
        self._overflowed = torch.zeros_like(self._unstable)
        self._last = {field: view.clone() for field, view in self._views.items()}
        everywhere = torch.ones_like(self._unstable)
        self.reset(everywhere, self._inputs["_qpos"].clone(), self._inputs["_qvel"].clone())

    @contextmanager
    def _scope(self) -> Iterator[None]:
        """Warp on this engine's device and on torch's stream, so that both see each other's work in order."""
        wp = self._warp
        if self.device.type == "cpu":
            with wp.ScopedDevice("cpu"):
                yield
            return
        stream = wp.stream_from_torch(torch.cuda.current_stream(self.device))
        with torch.cuda.device(self.device), wp.ScopedStream(stream):
            yield

    def _launch(self, work: WarpGraph) -> None:
        """Have Warp work, by graphs of its own.

        In its solver is a loop on the device. To record that, Warp ends the recording that it is in and begins another,
        of which torch, were the recording its own, would not know.
        """

        def launch() -> None:
            with self._scope():
                work()

        graph_break(launch)

    def _require_memory(self, needed: int) -> None:
        free = free_bytes(self.device)
        if needed > free:
            release_memory(self.device)
            free = free_bytes(self.device)
        if needed > free:
            raise MemoryError(
                f"{self.num_worlds} worlds take {needed / 1e9:.2f} GB on {self.device}, where {free / 1e9:.2f} GB are "
                f"free: lower num_envs (each world takes {needed / self.num_worlds / 1e3:.0f} kB), max_constraints "
                f"({self.max_constraints}) or max_contacts ({self.max_contacts})"
            )

    def _put_model(self) -> Any:
        expanded = {*self._model_fields, *_DERIVED} if self._model_fields else set()
        specs = {item.name: item.type for item in dataclasses.fields(self._mujoco_warp.Model)}
        batched = {name for name, spec in specs.items() if getattr(spec, "shape", ())[:1] == ("*",)}
        unknown = sorted(set(self._model_fields) - batched)
        if unknown:
            raise SaltusError(
                f"model fields that cannot differ between worlds in Warp: {', '.join(unknown)}. Leave them out of "
                f"randomize, or take physics cpu; there are {', '.join(sorted(batched))}"
            )
        if self.model.opt.enableflags & int(mujoco.mjtEnableBit.mjENBL_SLEEP):
            raise SaltusError(
                "the model enables sleeping, of which a reset of some worlds would wake others in Warp: leave out "
                '<flag sleep="enable"/>, or take physics cpu'
            )
        try:
            model = self._mujoco_warp.put_model(
                self.model, batch_sizes={name: self.num_worlds for name in sorted(expanded & batched)}
            )
        except (NotImplementedError, ValueError) as error:
            raise SaltusError(
                f"Warp cannot simulate this model: {error} Change the model, or take physics cpu, which can"
            ) from error
        model.opt.warn_overflow = 0  # printed from within kernels; counted here instead
        if self.device.type == "cuda" and not self._warp.is_conditional_graph_supported():
            model.opt.graph_conditional = False  # a driver before 12.4: every solver iteration runs in every world
        return model

    def _make_data(self, num_worlds: int) -> Any:
        return self._mujoco_warp.make_data(
            self.model, nworld=num_worlds, nconmax=self.max_contacts, njmax=self.max_constraints
        )

    def _set_model_fields(self) -> None:
        for name, values in self._model_fields.items():
            view = self._warp.to_torch(getattr(self._warp_model, name))
            view.copy_(values.to(self.device, self.dtype).reshape(view.shape))
        if self._model_fields:
            self._mujoco_warp.set_const(self._warp_model, self._data)

    def _view(self, field: str) -> Tensor:
        """An array of Warp's, without copying, in the shape that MjData has it in."""
        array = getattr(self._data, field, None)
        shape = np.shape(getattr(self._mj_data, field, ()))
        if not isinstance(array, self._warp.array) or array.shape[:1] != (self.num_worlds,):
            raise SaltusError(
                f"not readable fields of MjData in Warp: {field}; there are {', '.join(self._readable())}"
            )
        if 0 in array.shape:
            return torch.zeros((self.num_worlds, *shape), dtype=self.dtype, device=self.device)
        return self._warp.to_torch(array).reshape(self.num_worlds, *shape)

    def _readable(self) -> list[str]:
        names = (item.name for item in dataclasses.fields(self._data))
        return sorted(
            name
            for name in names
            if hasattr(self._mj_data, name)
            and isinstance(array := getattr(self._data, name), self._warp.array)
            and array.shape[:1] == (self.num_worlds,)
        )

    def _make_inputs(self) -> None:
        """Arrays at fixed addresses, from which graphs read, and the kernel that places worlds."""
        wp = self._warp
        self._ctrl, self._qacc = wp.to_torch(self._data.ctrl), wp.to_torch(self._data.qacc)
        self._overflow = wp.to_torch(self._data.overflow)
        self._counts = {name: wp.to_torch(getattr(self._data, name)) for name in ("ncollision", "nacon", "nefc")}
        kinds = self._mujoco_warp.OverflowType
        contacts, constraints = kinds.BROADPHASE | kinds.NARROWPHASE | kinds.CCD, kinds.NEFC | kinds.NJMAX_NNZ
        others = kinds.ALL & ~(contacts | constraints | kinds.ITERATIONS | kinds.LS_ITERATIONS)
        masks = [int(contacts), int(constraints), int(others)]
        self._full_kinds = torch.tensor(masks, dtype=torch.int32, device=self.device)
        self._mask = wp.zeros(self.num_worlds, dtype=bool)
        self._qpos, self._qvel = wp.clone(self._data.qpos), wp.zeros_like(self._data.qvel)
        self._inputs = {name: wp.to_torch(getattr(self, name)) for name in ("_mask", "_qpos", "_qvel")}

        @wp.kernel(enable_backward=False)
        def place(mask: wp.array[bool], source: wp.array2d[float], target: wp.array2d[float]) -> None:  # type: ignore
            world, index = wp.tid()
            if mask[world]:
                target[world, index] = source[world, index]

        self._place = place

    def read(self, out: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        if out is None:
            return {field: values.clone() for field, values in self._last.items()}
        for field, target in out.items():
            target.copy_(self._last[field])
        return out

    def step(self, ctrl: Tensor, frame_skip: int) -> None:
        self.advance(ctrl, frame_skip)
        self._detect_failures()
        for field, view in self._views.items():
            self._last[field].copy_(view)

    def advance(self, ctrl: Tensor, frame_skip: int) -> None:
        """The simulation's part of `step`, which looks for failures and keeps what `read` returns, too."""
        if frame_skip not in self._control_steps:
            self._control_steps[frame_skip] = WarpGraph(lambda: self._control_step(frame_skip), self.device)
        self._ctrl.copy_(ctrl)
        self._overflow.zero_()
        self._launch(self._control_steps[frame_skip])

    def _control_step(self, frame_skip: int) -> None:
        mjw, model, data = self._mujoco_warp, self._warp_model, self._data
        for _ in range(frame_skip):
            mjw.step(model, data)
        if self._post_constraint:
            mjw.rne_postconstraint(model, data)
        if self._fresh:
            mjw.fwd_position(model, data)
            mjw.sensor_pos(model, data)
            mjw.fwd_velocity(model, data)
            mjw.sensor_vel(model, data)

    def reset(self, mask: Tensor, qpos: Tensor, qvel: Tensor) -> None:
        for name, values in (("_mask", mask), ("_qpos", qpos), ("_qvel", qvel)):
            self._inputs[name].copy_(values)
        self._overflow.zero_()
        self._launch(self._place_worlds)
        self._detect_failures()
        # Every world has been computed anew; the others keep showing what their last step left.
        for field, last in self._last.items():
            shown = mask.reshape(-1, *[1] * (last.dim() - 1))
            # As mj_resetData and mj_forward leave it.
            new = torch.zeros_like(last) if field in POST_CONSTRAINT else self._views[field]
            last.copy_(torch.where(shown, new, last))

    def _reset_and_forward(self) -> None:
        wp, mjw, data = self._warp, self._mujoco_warp, self._data
        mjw.reset_data(self._warp_model, data, reset=self._mask)
        for source, target in ((self._qpos, data.qpos), (self._qvel, data.qvel)):
            wp.launch(self._place, dim=target.shape, inputs=[self._mask, source], outputs=[target])
        mjw.forward(self._warp_model, data)

    def _detect_failures(self) -> None:
        """On the device: Warp itself neither looks for bad states nor resets them."""
        state = (self._state["qpos"], self._state["qvel"], self._qacc)
        sound = torch.stack([(part.abs() <= _LARGEST).all(dim=-1) for part in state]).all(dim=0)
        self._unstable.copy_(~sound)
        full = (self._overflow[:, None] & self._full_kinds) != 0
        # Warp itself notes these at the end of a step only, not in a reset.
        full[:, 0] |= (self._counts["ncollision"] > self._data.naconmax) | (self._counts["nacon"] > self._data.naconmax)
        full[:, 1] |= self._counts["nefc"] > self._data.njmax
        self._overflowed.copy_(full.any(dim=-1))
        self._ever_full |= full.any(dim=0)

    def unstable(self) -> Tensor:
        return self._unstable.clone()

    def overflowed(self) -> Tensor:
        """As the protocol says; where the worlds' common memory for contacts was full, that is every world."""
        return self._overflowed.clone()

    @property
    def overflow_advice(self) -> str:
        ways_out = (
            f"raise max_contacts (it is {self.max_contacts})",
            f"raise max_constraints (it is {self.max_constraints})",
            "take physics cpu, since another of Warp's limits was reached",
        )
        full = [way for way, was in zip(ways_out, self._ever_full.tolist(), strict=True) if was]
        return " and ".join(full or ways_out[:2])

    def get_state(self) -> TensorDict:
        return TensorDict({field: view.clone() for field, view in self._state.items()}, batch_size=[self.num_worlds])

    def set_state(self, state: TensorDictBase | Mapping[str, Any]) -> None:
        for field, view in self._state.items():
            view.copy_(state[field])

    def mj_data(self, world: int) -> mujoco.MjData:
        model = self._model_of(world)
        data = mujoco.MjData(model)
        for field, view in self._state.items():
            setattr(data, field, view[world].double().cpu().numpy() if view.dim() > 1 else float(view[world]))
        mujoco.mj_forward(model, data)
        return data

    def _model_of(self, world: int) -> mujoco.MjModel:
        if not self._model_fields:
            return self.model
        model = copy.copy(self.model)
        for name, values in self._model_fields.items():
            getattr(model, name)[...] = values[world].cpu().numpy()
        mujoco.mj_setConst(model, mujoco.MjData(model))
        return model


class WarpGraph:
    """Work on the device, as a CUDA graph from its second time on: the first loads and compiles its kernels.

    A recording that fails raises, and is tried again the next time.
    """

    def __init__(self, work: Callable[[], None], device: torch.device):
        self._work, self._device = work, device
        self._calls, self._graph = 0, None

    def __call__(self) -> None:
        self._calls += 1
        if self._device.type == "cuda" and self._calls >= 2 and self._graph is None:
            self._graph = self._capture()
        if self._graph is None:
            self._work()
        else:
            modules()[0].capture_launch(self._graph)

    def _capture(self) -> Any:
        wp, _ = modules()
        stream = torch.cuda.Stream(self._device)  # torch's default stream cannot be captured
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with (
            gc_paused(),
            torch.cuda.stream(stream),
            wp.ScopedStream(wp.stream_from_torch(stream)),
            wp.ScopedCapture() as capture,
        ):
            self._work()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        return capture.graph


def with_supported_solver(model: mujoco.MjModel) -> mujoco.MjModel:
    """A copy of the model with Newton's solver in the place of PGS, which Warp does not have."""
    model = copy.copy(model)
    if model.opt.solver == mujoco.mjtSolver.mjSOL_PGS:
        warnings.warn(
            "the model asks for the PGS solver, which Warp does not have: Newton's is used, which solves the same "
            "problem to a smaller error. On the CPU, solver newton does the same",
            stacklevel=2,
        )
        model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
    return model

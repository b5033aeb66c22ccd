"""GPU physics: `mujoco_warp` in float32, one CUDA graph for a control step and one for a reset.

On the CPU Warp runs the same kernels, slowly; only tests do so.

Nothing here synchronises with the GPU, and no shape depends on a value. Differences from the CPU engine: float32; only
the Newton and CG solvers; on CUDA the order of floating-point sums varies, so that two runs differ in the last bits;
contacts and constraints live in arrays of fixed size.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import mujoco
import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from envs.masked import where_worlds
from envs.physics import POST_CONSTRAINT, divergence_advice
from envs.physics.computed_fields import require_computed
from envs.physics.model_fields import with_constants
from envs.physics.warp_fields import FROM_ACTUATION, FROM_KINEMATICS, lagging_fields, require_readable, state_fields
from envs.physics.warp_graph import WarpGraph
from envs.physics.warp_memory import ccd_workspace_bytes, estimate_capacity, num_bytes
from envs.physics.warp_model import (
    modules,
    per_world_fields,
    put_model,
    require_per_world,
    require_supported_flags,
    require_warp,
    with_supported_solver,
)  # fmt: skip
from envs.physics.warp_start import WarpStart, home_fields
from saltus.device import resolve_device
from saltus.device.cuda_graph import graph_break
from saltus.device.memory import free_bytes_for

_log = logging.getLogger("saltus")

_MAX_VALUE = float(mujoco.mjMAXVAL)  # MuJoCo takes a state beyond it for diverged


class WarpPhysics:
    """The Physics protocol on `mujoco_warp`.

    Args:
        model: the compiled model. A PGS solver becomes Newton's, with a warning, because Warp has no PGS.
        num_worlds: number of worlds.
        fields: names of the MjData fields that `read` returns.
        recompute_derived: see `Task.recompute_derived`.
        model_fields: MjModel fields of the models that worlds run, (number of models, ...) by name; see `set_models`.
        device: ``cuda``, or ``cpu`` for tests.
        max_contacts: contacts per world to allocate memory for, shared by all worlds; 0: estimated by a rollout with
            random controls (`estimate_capacity`).
        max_constraints: constraint rows to allocate memory for in each world (a contact has several); 0: likewise.
        home: the state that worlds start from; None: the model's defaults.

    Raises:
        SaltusError: no Warp, no CUDA, an old driver; a model that Warp cannot simulate; a field that cannot be read,
            that steps of the model do not compute or that cannot differ between worlds.
        MemoryError: more worlds than the device's memory holds; raised before anything is allocated.

    Attributes:
        num_bytes: bytes of the state's arrays.
        working_bytes: upper bound on the bytes that a step uses in addition.
    """

    dtype = torch.float32

    def __init__(
        self,
        model: mujoco.MjModel,
        num_worlds: int,
        fields: tuple[str, ...],
        recompute_derived: bool,
        model_fields: dict[str, Tensor] | None = None,
        device: torch.device | str = "cuda",
        max_contacts: int = 0,
        max_constraints: int = 0,
        home: mujoco.MjData | None = None,
    ):
        require_warp(torch.device(device))
        require_supported_flags(model)
        require_computed(model, fields)
        require_readable(fields)
        self.device = resolve_device(device)
        self._warp, self._mujoco_warp = modules()
        self.model, self.num_worlds = with_supported_solver(model), num_worlds
        self._mj_data = mujoco.MjData(self.model)
        if not max_contacts or not max_constraints:
            contacts, constraints = estimate_capacity(self.model, home)
            max_contacts, max_constraints = max_contacts or contacts, max_constraints or constraints
        self.max_contacts, self.max_constraints = max_contacts, max_constraints
        self._recompute_derived, self._model_fields = recompute_derived, dict(model_fields or {})
        self._post_constraint = any(field in POST_CONSTRAINT for field in fields)
        self._forward = self._forward_for(fields)
        with self._scope():
            self.num_bytes = num_bytes(self.model, num_worlds, max_contacts, max_constraints)
            # The workspace of integrator and solver is smaller than the state.
            self.working_bytes = self.num_bytes + num_worlds * max_contacts * ccd_workspace_bytes(self.model)
            _log.info(
                f"memory on {self.device}: physics: {num_worlds:,} worlds, {self.num_bytes / 1e6:,.0f} MB, and at most "
                f"{self.working_bytes / 1e6:,.0f} MB more in a step (--num-envs; per world --max-contacts "
                f"{max_contacts}, --max-constraints {max_constraints})"
            )
            self._require_memory(self.num_bytes + self.working_bytes)
            require_per_world(self.model, self._model_fields)
            tables = with_constants(self.model, self._model_fields)
            require_per_world(self.model, (), derived=tables)
            self._warp_model = put_model(self.model, num_worlds, tables, self.device)
            self._data = self._mujoco_warp.make_data(
                self.model, nworld=num_worlds, nconmax=max_contacts, njmax=max_constraints
            )
            self._make_model_views(tables)
            self._views = {field: self._view(field) for field in fields}
            state = {field: self._view(field) for field in state_fields(self.model)}
            self._state = {field: view for field, view in state.items() if view.numel()}
            self._lagging = {field: self._state[field] for field in lagging_fields(self.model)}
            self._make_inputs()
            self._home = home_fields(self._state, home, self._mj_data)
        self._reset_graphs: dict[tuple[str, ...], WarpGraph] = {}
        self._step_graphs: dict[int, WarpGraph] = {}
        # Which memory was ever exhausted: contacts, constraints, other limits.
        self._ever_full = torch.zeros(3, dtype=torch.bool, device=self.device)
        self._unstable = torch.zeros(num_worlds, dtype=torch.bool, device=self.device)
        self._overflowed = torch.zeros_like(self._unstable)
        self._outputs = {field: view.clone() for field, view in self._views.items()}
        everywhere = torch.ones_like(self._unstable)
        qpos, qvel = (self._state[name].clone() for name in ("qpos", "qvel"))
        self.reset(everywhere, qpos, qvel)

    @contextmanager
    def _scope(self) -> Iterator[None]:
        """Run Warp on this engine's device and on torch's stream, so that their work stays in order."""
        wp = self._warp
        if self.device.type == "cpu":
            with wp.ScopedDevice("cpu"):
                yield
            return
        stream = wp.stream_from_torch(torch.cuda.current_stream(self.device))
        with torch.cuda.device(self.device), wp.ScopedStream(stream):
            yield

    def _launch(self, work: WarpGraph) -> None:
        """Run a graph of Warp's, outside torch's captures.

        Warp's solver captures a conditional loop, which cannot nest in a torch capture.
        """

        def launch() -> None:
            with self._scope():
                work()

        graph_break(launch)

    def _require_memory(self, needed: int) -> None:
        free = free_bytes_for(needed, self.device)
        if needed > free:
            raise MemoryError(
                f"{self.num_worlds} worlds need {needed / 1e9:.2f} GB and {self.device} has {free / 1e9:.2f} GB free: "
                f"lower num_envs (each world needs {needed / self.num_worlds / 1e3:.0f} kB), max_constraints "
                f"({self.max_constraints}) or max_contacts ({self.max_contacts})"
            )

    def _make_model_views(self, tables: Mapping[str, np.ndarray]) -> None:
        """View the worlds' models as tensors; copy the models that they may run to the device."""
        self._model_views: dict[str, Tensor] = {}
        self._model_tables: dict[str, Tensor] = {}
        for name in tables.keys() & per_world_fields(self.model):
            view = self._warp.to_torch(attrgetter(name)(self._warp_model))
            table = torch.as_tensor(tables[name], dtype=self.dtype, device=self.device)
            self._model_views[name], self._model_tables[name] = view, table.reshape(-1, *view.shape[1:])
        self.models, self._models_change = torch.arange(self.num_worlds, device=self.device), False
        self.models %= len(next(iter(tables.values()), self.models))
        self._apply_models()

    def set_models(self, mask: Tensor, rows: Tensor) -> None:
        self._models_change = True
        self.models.copy_(torch.where(mask, rows, self.models))  # in place, as CUDA graphs require
        self._apply_models()

    def _apply_models(self) -> None:
        for name, view in self._model_views.items():
            view.copy_(self._model_tables[name][self.models])

    def _view(self, field: str) -> Tensor:
        """One of Warp's arrays as a tensor, without copying: (num_worlds, *shape of MjData's field)."""
        array, shape = getattr(self._data, field), np.shape(getattr(self._mj_data, field))
        if 0 in array.shape:
            return torch.zeros((self.num_worlds, *shape), dtype=self.dtype, device=self.device)
        return self._warp.to_torch(array).reshape(self.num_worlds, *shape)

    def _make_inputs(self) -> None:
        """Allocate the arrays that graphs read, at fixed addresses."""
        wp = self._warp
        self._ctrl, self._qacc = wp.to_torch(self._data.ctrl), wp.to_torch(self._data.qacc)
        self._overflow = wp.to_torch(self._data.overflow)
        self._counts = {name: wp.to_torch(getattr(self._data, name)) for name in ("ncollision", "nacon", "nefc")}
        kinds = self._mujoco_warp.OverflowType
        contacts, constraints = kinds.BROADPHASE | kinds.NARROWPHASE | kinds.CCD, kinds.NEFC | kinds.NJMAX_NNZ
        others = kinds.ALL & ~(contacts | constraints | kinds.ITERATIONS | kinds.LS_ITERATIONS)
        masks = [int(contacts), int(constraints), int(others)]
        self._full_kinds = torch.tensor(masks, dtype=torch.int32, device=self.device)
        self._start = WarpStart(self._state, self.num_worlds)

    def read(self, out: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        if out is None:
            return {field: values.clone() for field, values in self._outputs.items()}
        for field, target in out.items():
            target.copy_(self._outputs[field])
        return out

    def step(self, ctrl: Tensor | None, frame_skip: int, inputs: Mapping[str, Tensor] | None = None) -> None:
        for field, values in (inputs or {}).items():
            self._state[field].copy_(values)
        self.simulate(ctrl, frame_skip)
        self._detect_divergence()
        self._detect_overflows()
        for field, view in self._views.items():
            self._outputs[field].copy_(view)

    def simulate(self, ctrl: Tensor | None, frame_skip: int) -> None:
        """Simulate one control step. `step` also detects failures and copies the fields that `read` returns."""
        if frame_skip not in self._step_graphs:
            self._step_graphs[frame_skip] = WarpGraph(lambda: self._control_step(frame_skip), self.device)
        if ctrl is not None:
            self._ctrl.copy_(ctrl)
        self._overflow.zero_()
        self._launch(self._step_graphs[frame_skip])

    def _control_step(self, frame_skip: int) -> None:
        mjw, model, data = self._mujoco_warp, self._warp_model, self._data
        for _ in range(frame_skip):
            mjw.step(model, data)
        if self._post_constraint:
            mjw.rne_postconstraint(model, data)
        if self._recompute_derived:
            mjw.fwd_position(model, data)
            mjw.sensor_pos(model, data)
            mjw.fwd_velocity(model, data)
            mjw.sensor_vel(model, data)

    def reset(self, mask: Tensor, qpos: Tensor, qvel: Tensor, start: Mapping[str, Tensor] | None = None) -> None:
        start = {**self._home, **(start or {}), "qpos": qpos, "qvel": qvel}
        graph = self._reset_graph(tuple(start))
        self._start.write(mask, start)
        self._overflow.zero_()
        before = {field: view.clone() for field, view in self._lagging.items()}
        self._launch(graph)
        self._detect_divergence()
        if self._forward == self._forward_all:
            self._detect_overflows()
        else:  # no contact was looked for
            self._overflowed.zero_()
        # The forward pass recomputed every world; worlds outside the mask keep the fields of their last step.
        for field, view in self._lagging.items():
            view.copy_(where_worlds(mask, view, before[field]))
        for field, output in self._outputs.items():
            # mj_resetData and mj_forward leave these fields at zero.
            new = torch.zeros_like(output) if field in POST_CONSTRAINT else self._views[field]
            output.copy_(where_worlds(mask, new, output))

    def _reset_graph(self, fields: tuple[str, ...]) -> WarpGraph:
        """The graph of a reset that sets `fields`."""
        if fields not in self._reset_graphs:
            with self._scope():
                self._start.allocate(fields)
            self._reset_graphs[fields] = WarpGraph(lambda: self._reset_and_forward(fields), self.device)
        return self._reset_graphs[fields]

    def _reset_and_forward(self, fields: tuple[str, ...]) -> None:
        self._mujoco_warp.reset_data(self._warp_model, self._data, reset=self._start.mask)
        self._start.launch(fields)
        if self._lagging and self._forward != self._forward_actuation:  # which computes them itself
            self._forward_kinematics()
            self._mujoco_warp.com_vel(self._warp_model, self._data)
        self._forward()

    def _forward_for(self, fields: tuple[str, ...]) -> Callable[[], None]:
        """The cheapest forward pass that computes `fields` of a state. A reset of a few worlds runs it for all."""
        needed = {*fields} - {*state_fields(self.model)} - {*POST_CONSTRAINT}
        if not needed:
            return lambda: None
        if needed <= FROM_KINEMATICS:
            return self._forward_kinematics
        if needed <= FROM_KINEMATICS | FROM_ACTUATION:
            return self._forward_actuation
        return self._forward_all

    def _forward_kinematics(self) -> None:
        self._mujoco_warp.fwd_kinematics(self._warp_model, self._data)

    def _forward_actuation(self) -> None:
        mjw, model, data = self._mujoco_warp, self._warp_model, self._data
        mjw.fwd_kinematics(model, data)
        mjw.transmission(model, data)
        mjw.fwd_velocity(model, data)
        mjw.fwd_actuation(model, data)

    def _forward_all(self) -> None:
        self._mujoco_warp.forward(self._warp_model, self._data)

    def _detect_divergence(self) -> None:
        """Find diverged worlds, on the device. Warp itself neither detects nor resets bad states."""
        state = (self._state["qpos"], self._state["qvel"], self._qacc)
        stable = torch.stack([(part.abs() <= _MAX_VALUE).all(dim=-1) for part in state]).all(dim=0)
        self._unstable.copy_(~stable)

    def _detect_overflows(self) -> None:
        """Find worlds that may have lost contacts or constraints, on the device."""
        full = (self._overflow[:, None] & self._full_kinds) != 0
        # Warp sets these flags at the end of a step, but not in a reset.
        full[:, 0] |= (self._counts["ncollision"] > self._data.naconmax) | (self._counts["nacon"] > self._data.naconmax)
        full[:, 1] |= self._counts["nefc"] > self._data.njmax
        self._overflowed.copy_(full.any(dim=-1))
        self._ever_full |= full.any(dim=0)

    @property
    def load_seconds(self) -> float:
        """Time that loading and compiling Warp's kernels took."""
        return sum(graph.load_seconds for graph in (*self._reset_graphs.values(), *self._step_graphs.values()))

    def unstable(self) -> Tensor:
        return self._unstable.clone()

    def overflowed(self) -> Tensor:
        """Worlds that dropped contacts or constraints, (N,) bool; every world if the shared contact memory was full."""
        return self._overflowed.clone()

    def solver_iterations(self) -> Tensor:
        """Iterations of each world's constraint solver in the last physics step, (N,) int32."""
        return self._warp.to_torch(self._data.solver_niter).clone()

    @property
    def failure_advice(self) -> str:
        return divergence_advice(self.model)

    @property
    def overflow_advice(self) -> str:
        advice = (
            f"raise max_contacts (it is {self.max_contacts})",
            f"raise max_constraints (it is {self.max_constraints})",
            "choose physics cpu, since another limit of Warp was reached",
        )
        needed = [one for one, was_full in zip(advice, self._ever_full.tolist(), strict=True) if was_full]
        return " and ".join(needed or advice[:2])

    def get_state(self) -> TensorDict:
        state = {**self._state, "models": self.models} if self._models_change else self._state
        return TensorDict({name: one.clone() for name, one in state.items()}, batch_size=[self.num_worlds])

    def set_state(self, state: TensorDictBase | Mapping[str, Any]) -> None:
        if self._models_change:
            self.set_models(torch.ones_like(self._unstable), state["models"].to(self.device))
        for field, view in self._state.items():
            view.copy_(state.get(field, torch.zeros_like(view)))  # see `envs.validation.LATER_ENTRIES`

    def mj_data(self, world: int) -> mujoco.MjData:
        model = self.world_model(world)
        data = mujoco.MjData(model)
        for field, view in self._state.items():
            setattr(data, field, view[world].double().cpu().numpy() if view.dim() > 1 else float(view[world]))
        mujoco.mj_forward(model, data)
        return data

    def world_model(self, world: int) -> mujoco.MjModel:
        if not self._model_fields:
            return self.model
        model, row = copy.copy(self.model), int(self.models[world])
        for name, values in self._model_fields.items():
            owner, attribute = (model.opt, name[4:]) if name.startswith("opt.") else (model, name)
            setattr(owner, attribute, values[row].cpu().numpy())
        mujoco.mj_setConst(model, mujoco.MjData(model))
        return model

"""The optional Warp packages, and a model prepared for them."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
import warnings
from collections.abc import Collection
from typing import Any

import mujoco
import numpy as np
import torch

from saltus.device.memory import deferred_frees
from saltus.device.warm_start import temporary_cache_folder
from saltus.errors import SaltusError

_UNUSED = {"dof_length"}  # Warp reads it for sleeping alone, which it cannot have here


def modules() -> tuple[Any, Any]:
    """Import and return ``warp`` and ``mujoco_warp``: lazily, since they are optional and slow to import."""
    import warp

    warp.config.log_level = warp.LOG_WARNING  # by default Warp prints a line for each of about a hundred kernels
    import mujoco_warp

    _initialize(warp)
    return warp, mujoco_warp


@functools.cache
def _initialize(warp: Any) -> None:
    """Initialise Warp; cache its kernels in a temporary folder if its own cannot be written.

    Synchronising runs the frees that Warp deferred.
    """
    try:
        warp.init()
    except OSError as error:
        warp.config.kernel_cache_dir = temporary_cache_folder("WARP_CACHE_PATH", error)
        warp.init()
    deferred_frees.append(lambda device: warp.synchronize_device(warp.device_from_torch(str(device))))


def missing_packages() -> list[str]:
    """Packages that Warp physics needs and that are not installed."""
    return [name for name in ("warp", "mujoco_warp") if importlib.util.find_spec(name) is None]


def require_warp(device: torch.device) -> None:
    """Raise SaltusError unless Warp physics can run on `device`."""
    if missing := missing_packages():
        raise SaltusError(
            f"physics warp needs {' and '.join(missing)}: pip install -c constraints.txt -e '.[warp]', "
            "or choose physics cpu"
        )
    if device.type == "cpu":
        return
    if not torch.cuda.is_available():
        raise SaltusError(
            "physics warp on cuda: torch finds no CUDA device. Choose physics cpu, or device cpu for tests"
        )
    wp, _ = modules()
    if not wp.is_cuda_available():
        raise SaltusError(
            "physics warp on cuda: torch finds the GPU but Warp does not, probably because the driver is older than "
            "Warp's CUDA version. Update the driver, or choose physics cpu"
        )


def require_supported_flags(model: mujoco.MjModel) -> None:
    """Raise SaltusError for flags of a model that do not suit Warp's batched worlds."""
    if model.opt.enableflags & int(mujoco.mjtEnableBit.mjENBL_SLEEP):
        raise SaltusError(
            "the model enables sleeping. In Warp a reset of some worlds would wake bodies in others: remove "
            '<flag sleep="enable"/>, or choose physics cpu'
        )
    if model.opt.enableflags & int(mujoco.mjtEnableBit.mjENBL_IPC):
        raise SaltusError('Warp does not have IPC: remove <flag ipc="enable"/>, or choose physics cpu')


def with_supported_solver(model: mujoco.MjModel) -> mujoco.MjModel:
    """Copy a model, replacing the PGS solver, which Warp lacks, by Newton's; warn if so."""
    model = copy.copy(model)
    if model.opt.solver == mujoco.mjtSolver.mjSOL_PGS:
        warnings.warn(
            "the model asks for the PGS solver, which Warp does not have: Newton's is used, which solves the same "
            "problem to a smaller error. On the CPU, solver newton does the same",
            stacklevel=2,
        )
        model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
    return model


def per_world_fields(model: mujoco.MjModel) -> set[str]:
    """Fields of a model that may differ between worlds in Warp, those of its options as ``opt.<name>``."""
    _, mjw = modules()
    fields = batched_fields(mjw.Model) | {f"opt.{name}" for name in batched_fields(mjw.Option)} - {"opt.timestep"}
    if not (model.opt.wind.any() or model.opt.density > 0 or model.opt.viscosity > 0):
        fields -= {"opt.wind", "opt.density", "opt.viscosity"}  # Warp omits a medium that the model lacks
    return fields


def require_per_world(model: mujoco.MjModel, given: Collection[str], derived: Collection[str] = ()) -> None:
    """Raise SaltusError for fields that Warp shares between worlds.

    Args:
        model: the model.
        given: fields that are to differ between worlds.
        derived: fields that follow from them; those that Warp does not have are ignored.
    """
    _, mjw = modules()
    possible = per_world_fields(model)
    shared = {item.name for item in dataclasses.fields(mjw.Model)} - possible - _UNUSED
    if unknown := sorted(set(given) - possible | set(derived) & shared):
        raise SaltusError(
            f"model fields that cannot differ between worlds in Warp: {', '.join(unknown)}. Remove them, or those that "
            "they follow from, from randomize, or choose physics cpu; possible fields are "
            + ", ".join(sorted(possible))
        )


def put_model(model: mujoco.MjModel, num_worlds: int, per_world: Collection[str], device: torch.device) -> Any:
    """Copy a model to Warp's current device, as a ``mujoco_warp.Model``.

    Args:
        model: a model with a supported solver.
        num_worlds: number of worlds.
        per_world: fields that differ between worlds; of these `per_world_fields` get an axis of worlds.
        device: Warp's current device.

    Raises:
        SaltusError: a model that Warp cannot simulate.
    """
    wp, mjw = modules()
    expanded = {*per_world} & per_world_fields(model)
    options = {name for name in expanded if name.startswith("opt.")}
    try:
        warp_model = mjw.put_model(model, batch_sizes={name: num_worlds for name in sorted(expanded - options)})
    except (NotImplementedError, ValueError) as error:
        raise SaltusError(
            f"Warp cannot simulate this model: {error} Change the model, or choose physics cpu, which can"
        ) from error
    for name in options:
        _expand_option(warp_model.opt, name.removeprefix("opt."), num_worlds)
    warp_model.opt.warn_overflow = 0  # would print from kernels; `WarpPhysics.overflowed` reports it instead
    if device.type == "cuda" and not wp.is_conditional_graph_supported():
        warp_model.opt.graph_conditional = False  # drivers before 12.4: every world runs every solver iteration
    return warp_model


def batched_fields(cls: Any, axis: str = "*") -> set[str]:
    """Fields of one of mujoco_warp's classes whose first axis, of this name, is that of worlds."""
    return {item.name for item in dataclasses.fields(cls) if getattr(item.type, "shape", ())[:1] == (axis,)}


def _expand_option(option: Any, name: str, num_worlds: int) -> None:
    """Give an option an axis of worlds: `put_model` expands fields of the model only."""
    wp, _ = modules()
    shared = getattr(option, name)
    array = wp.array(np.repeat(shared.numpy(), num_worlds, axis=0), dtype=shared.dtype)
    array._is_batched = True  # as mujoco_warp marks its own
    setattr(option, name, array)

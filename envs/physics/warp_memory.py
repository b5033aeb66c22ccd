"""Memory of `mujoco_warp` worlds: estimated before allocation."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import mujoco
import numpy as np
from mujoco.batch import Batch, SimulationError

from envs.home import HOME_FIELDS
from envs.physics.warp_model import modules
from saltus.errors import SaltusError

_ROUND = (mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CAPSULE)
_CONVEX = (
    mujoco.mjtGeom.mjGEOM_ELLIPSOID, mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_BOX,
    mujoco.mjtGeom.mjGEOM_MESH, mujoco.mjtGeom.mjGEOM_HFIELD,
)  # fmt: skip
_BETWEEN_GEOMS = (  # sensors that run collision detection on geoms which may not collide
    mujoco.mjtSensor.mjSENS_GEOMDIST, mujoco.mjtSensor.mjSENS_GEOMNORMAL, mujoco.mjtSensor.mjSENS_GEOMFROMTO,
)  # fmt: skip


def estimate_capacity(
    model: mujoco.MjModel, home: mujoco.MjData | None = None, num_worlds: int = 32, num_steps: int = 1000
) -> tuple[int, int]:
    """Contacts and constraint rows per world to allocate memory for: twice the maximum of a rollout, plus 8.

    The rollout runs on the CPU engine, from `home` or the model's initial state, with random controls. It does not end
    with episodes, so that bodies which fall lie on the floor with all their contacts.

    Raises:
        SaltusError: MuJoCo raised in the rollout, for example for lack of memory.
    """
    generator = np.random.default_rng(0)
    batch = Batch(model, num_worlds, min(num_worlds, 8), False)
    batch.reset()
    for field in () if home is None else HOME_FIELDS:
        batch.bind(field)[...] = getattr(home, field)
    low, high = np.where(model.actuator_ctrllimited[:, None], model.actuator_ctrlrange, [-1.0, 1.0]).T
    most = np.zeros(2, dtype=int)
    for _ in range(num_steps // 10):
        batch.bind("ctrl")[...] = generator.uniform(low, high, (num_worlds, model.nu))
        try:
            batch.step(nstep=10)
        except SimulationError as error:
            text = " ".join(str(error).split())
            raise SaltusError(
                f"the rollout that estimates contacts and constraints failed. {text}. Raise <size memory=.../> in the "
                "MJCF, or give max_contacts and max_constraints, which skips the rollout"
            ) from error
        most = np.maximum(most, [batch.bind("ncon").max(), batch.bind("nefc").max()])
    contacts, constraints = (8 * math.ceil((2 * int(count) + 8) / 8) for count in most)
    return contacts, constraints


def num_bytes(model: mujoco.MjModel, num_worlds: int, max_contacts: int, max_constraints: int) -> int:
    """Bytes of the state's arrays, extrapolated from one and two worlds."""
    _, mjw = modules()
    one, two = (
        _array_bytes(mjw.make_data(model, nworld=count, nconmax=max_contacts, njmax=max_constraints))
        for count in (1, 2)
    )
    return one + (two - one) * (num_worlds - 1)


def ccd_workspace_bytes(model: mujoco.MjModel) -> int:
    """Upper bound on the workspace of convex collision detection (CCD), in bytes per contact of `max_contacts`.

    Zero if only planes, spheres and capsules collide. Counts the arrays of mujoco_warp's `convex_narrowphase`, without
    those of flexes.
    """
    collides = (model.geom_contype | model.geom_conaffinity) != 0
    collides[model.pair_geom1] = collides[model.pair_geom2] = True
    collides |= np.isin(model.sensor_type, _BETWEEN_GEOMS).any()
    types = model.geom_type[collides]
    num_round, num_convex = (np.count_nonzero(np.isin(types, kinds)) for kinds in (_ROUND, _CONVEX))
    if not num_convex or num_round + num_convex < 2:
        return 0
    iterations = max(model.opt.ccd_iterations, 16)
    polytope = 16 * (10 + 2 * iterations) + 20 * (6 + 5 * iterations) + 4 * 24  # vertices, faces, horizon
    return int(polytope + 88 * max(16, model.npolygonmax) + 44 * max(3, model.nmeshdegmax))


def _array_bytes(data: Any) -> int:
    wp, _ = modules()
    total = 0
    for item in dataclasses.fields(data):
        value = getattr(data, item.name)
        if isinstance(value, wp.array):
            total += value.capacity
        elif dataclasses.is_dataclass(value):
            total += _array_bytes(value)
    return total

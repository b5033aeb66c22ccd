"""Per-world model fields for `Task.randomize`."""

from __future__ import annotations

import mujoco
import torch
from torch import Tensor

from saltus.errors import SaltusError


def scale_masses(model: mujoco.MjModel, factor: Tensor) -> dict[str, Tensor]:
    """Scale the bodies' masses and inertias by one factor each, as a change of density does.

    MuJoCo does not derive inertias from masses: a new ``body_mass`` alone changes the mass and keeps the inertia.

    Args:
        model: the model, ``self.model`` in a task.
        factor: positive factors: (N,), one per world, or (N, nbody), one per world and body.

    Returns:
        ``body_mass`` (N, nbody) and ``body_inertia`` (N, nbody, 3) in float64, on the factor's device.

    Raises:
        SaltusError: factors of another shape, or not positive.
    """
    shapes = f"(N,) or (N, {model.nbody})"
    if not (isinstance(factor, Tensor) and (factor.dim() == 1 or tuple(factor.shape[1:]) == (model.nbody,))):
        described = tuple(factor.shape) if isinstance(factor, Tensor) else f"a {type(factor).__name__}"
        raise SaltusError(f"scale_masses got factors of shape {described}; expected a tensor of shape {shapes}")
    if not (factor > 0).all():
        raise SaltusError(f"scale_masses got a factor of {float(factor.min())}; factors must be positive")
    factor = factor.double().reshape(len(factor), -1)
    mass, inertia = (torch.as_tensor(values, device=factor.device) for values in (model.body_mass, model.body_inertia))
    return {"body_mass": factor * mass, "body_inertia": factor.unsqueeze(-1) * inertia}

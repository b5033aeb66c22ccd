"""Fields of models that differ between worlds, and the constants that MuJoCo derives from them."""

from __future__ import annotations

from collections.abc import Mapping

import mujoco
import numpy as np
from mujoco.batch import MODEL_FIELDS, Batch
from torch import Tensor

from saltus.errors import SaltusError


def with_constants(model: mujoco.MjModel, fields: Mapping[str, Tensor], num_threads: int = 1) -> dict[str, np.ndarray]:
    """Add the constants that mj_setConst derives, in float64, to the fields of K models.

    Args:
        model: the model that they vary.
        fields: fields of MjModel or, as ``opt.<name>``, of MjOption, (K, ...) by name.
        num_threads: threads to compute with.

    Returns:
        `fields` and the derived constants that differ from those of `model`, (K, ...) by name.

    Raises:
        SaltusError: a field that cannot differ between worlds.
    """
    if unknown := sorted(set(fields) - MODEL_FIELDS):
        raise SaltusError(f"model fields that cannot differ between worlds: {', '.join(unknown)}")
    if not fields:
        return {}
    batch = Batch(model, len(next(iter(fields.values()))), num_threads)
    for name, values in fields.items():
        batch.expand(name)[...] = values.cpu().numpy()
    batch.set_const()
    tables = {name: batch.expanded(name) for name in sorted(MODEL_FIELDS)}
    return {name: values.copy() for name, values in tables.items() if values is not None}

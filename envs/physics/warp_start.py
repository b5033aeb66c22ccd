"""The state that Warp worlds start from at a reset: arrays at fixed addresses, as graph replay requires."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import mujoco
import numpy as np
import torch
from torch import Tensor

from envs.home import HOME_FIELDS
from envs.physics.warp_model import modules


class WarpStart:
    """Initial values of state fields, and the worlds to set them in.

    Args:
        state: the engine's floating-point state fields, (N, ...) views of Warp's arrays by name.
        num_worlds: N.

    Attributes:
        mask: the worlds to set, a Warp array of N bools.
    """

    def __init__(self, state: Mapping[str, Tensor], num_worlds: int):
        wp, _ = modules()
        self._state, self._num_worlds = state, num_worlds
        self.mask = wp.zeros(num_worlds, dtype=bool)
        self._mask_view = wp.to_torch(self.mask)
        self._values: dict[str, Tensor] = {}
        self._pairs: dict[str, tuple[Any, Any]] = {}  # values and field as Warp arrays (N, size)

        @wp.kernel(enable_backward=False)
        def copy_where(mask: wp.array[bool], source: wp.array2d[float], target: wp.array2d[float]) -> None:  # type: ignore
            world, index = wp.tid()
            if mask[world]:
                target[world, index] = source[world, index]

        self._copy_where = copy_where

    def allocate(self, fields: Iterable[str]) -> None:
        """Allocate the values of fields that have none yet."""
        wp, _ = modules()
        for field in fields:
            if field not in self._values:
                self._values[field] = self._state[field].clone()
                both = (self._values[field], self._state[field])
                values, target = (wp.from_torch(one.view(self._num_worlds, -1)) for one in both)
                self._pairs[field] = values, target

    def write(self, mask: Tensor, fields: Mapping[str, Tensor]) -> None:
        """Copy a mask, (N,) bool, and values of allocated fields, (N, ...) by name."""
        self._mask_view.copy_(mask)
        for field, values in fields.items():
            self._values[field].copy_(values)

    def launch(self, fields: Iterable[str]) -> None:
        """Launch the kernels that set fields in the worlds of the mask."""
        wp, _ = modules()
        for field in fields:
            values, target = self._pairs[field]
            wp.launch(self._copy_where, dim=target.shape, inputs=[self.mask, values], outputs=[target])


def home_fields(state: Mapping[str, Tensor], home: mujoco.MjData | None, defaults: mujoco.MjData) -> dict[str, Tensor]:
    """The fields of `home` that differ from the model's defaults, (N, ...) by name; none without `home`."""
    found = {}
    for field in HOME_FIELDS:
        if home is not None and field in state and not np.array_equal(getattr(home, field), getattr(defaults, field)):
            values = torch.as_tensor(getattr(home, field), dtype=state[field].dtype, device=state[field].device)
            found[field] = values.expand_as(state[field]).clone()
    return found

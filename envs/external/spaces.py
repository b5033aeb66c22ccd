"""Spaces of Gymnasium, or of the same form: which are trained on, and their flattening."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saltus.errors import SaltusError

_LARGEST = 2**23  # float32 holds all whole numbers up to it, and their means, from which actions are computed


@dataclass(frozen=True)
class Part:
    """A Box in an observation: its keys in nested dicts, and its shape."""

    keys: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def names(self) -> list[str]:
        """Names of its entries, such as ``"desired_goal 2"``."""
        return [f"{'.'.join(self.keys) or 'observation'} {index}" for index in range(prod(self.shape))]


def observation_parts(space: Any, keys: tuple[str, ...] = ()) -> list[Part]:
    """The Boxes of an observation space, in the order of `gymnasium.spaces.flatten`: that of each Dict's spaces.

    Raises:
        SaltusError: an image, or a space that is neither a Box nor a Dict of them.
    """
    if isinstance(getattr(space, "spaces", None), Mapping):
        return [part for key, inner in space.spaces.items() for part in observation_parts(inner, (*keys, str(key)))]
    where = f"observation {'.'.join(keys)!r}" if keys else "the observation"
    if not _is_box(space):
        raise SaltusError(
            f"{where} is in the space {space}; expected a Box, or a Dict of Boxes: encode it as numbers by a wrapper, "
            "such as gymnasium.wrappers.FlattenObservation"
        )
    if getattr(space, "dtype", None) == np.uint8 or len(space.shape) > 2:
        refuse_image(where, tuple(space.shape))
    if not prod(space.shape):
        raise SaltusError(f"{where} is empty: its shape is {tuple(space.shape)}; leave it out by a wrapper")
    return [Part(keys, tuple(space.shape))]


def refuse_image(where: str, shape: tuple[int, ...]) -> NoReturn:
    """Raise SaltusError for an observation that is an image."""
    raise SaltusError(
        f"{where} is an image, of shape {shape}, and saltus's networks take vectors: observe the state in its place, "
        "or encode the image in the environment"
    )


@dataclass(frozen=True)
class Actions:
    """The actions of a space, flattened.

    Attributes:
        low, high: bounds, (action_dim,) float32; of discrete actions the first and the last index.
        choices: number of choices of each discrete action; empty: actions are continuous.
    """

    low: Tensor
    high: Tensor
    choices: tuple[int, ...] = ()


def refuse_actions(found: object) -> NoReturn:
    """Raise SaltusError for actions that are neither continuous and bounded nor discrete."""
    raise SaltusError(
        f"actions are in {found}; expected a Box with finite bounds, or Gymnasium's Discrete or MultiDiscrete with at "
        "least 2 choices. Give unbounded actions the range that they are used in, by the environment's "
        "single_action_space"
    )


def actions(space: Any) -> Actions:
    """The actions of a Box, a Discrete or a MultiDiscrete.

    Raises:
        SaltusError: another space, a Box of integers, bounds that are not finite or in the wrong order, an action
            without a choice, or indices that float32 does not hold.
    """
    counts = getattr(space, "nvec", getattr(space, "n", None)) if hasattr(space, "start") else None
    if counts is not None:
        return _discrete(space, np.asarray(counts))
    if not _is_box(space):
        refuse_actions(space)
    dtype = getattr(space, "dtype", None) or np.float32
    if not np.issubdtype(dtype, np.floating):
        raise SaltusError(
            f"actions are in {space}, a Box of {np.dtype(dtype)}; expected a Box of floating-point numbers. Give whole "
            "numbers as a MultiDiscrete, with the number of choices of each entry and `start`, the first ones"
        )
    low, high = (np.broadcast_to(np.asarray(end, np.float32), space.shape) for end in (space.low, space.high))
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        refuse_actions(space)
    return Actions(torch.from_numpy(low.copy()).flatten(), torch.from_numpy(high.copy()).flatten())


def _discrete(space: Any, counts: NDArray[np.int64]) -> Actions:
    if not counts.size or counts.min() < 2:
        refuse_actions(space)
    start, counts = np.broadcast_to(np.asarray(space.start), counts.shape).flatten(), counts.flatten()
    if max(np.abs(start).max(), np.abs(start + counts - 1).max()) > _LARGEST:
        raise SaltusError(f"actions are in {space}; expected indices from -2^23 to 2^23, which float32 holds")
    low, high = (torch.from_numpy(end.astype(np.float32)) for end in (start, start + counts - 1))
    return Actions(low, high, tuple(counts.tolist()))


def _is_box(space: Any) -> bool:
    return all(hasattr(space, name) for name in ("low", "high", "shape"))


def flatten(observation: Any, parts: list[Part], count: int, device: torch.device) -> Tensor:
    """Observations of `count` worlds as new memory, (count, obs_dim) float32.

    Raises:
        SaltusError: an entry is missing, or has another shape than its space.
    """
    columns = []
    for part in parts:
        value = observation
        for key in part.keys:
            if key not in value:
                raise SaltusError(f"the observation has no entry {key!r}, which its space has; it has {sorted(value)}")
            value = value[key]
        value = torch.as_tensor(value, device=device)
        if value.shape != (count, *part.shape):
            where = ".".join(part.keys) or "the observation"
            raise SaltusError(f"{where} has shape {tuple(value.shape)}; its space says {(count, *part.shape)}")
        columns.append(value.reshape(count, -1).float())
    return torch.cat(columns, dim=1) if len(columns) > 1 else columns[0].clone()


def column(name: str, value: Any, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number of each world as new memory, (count,).

    Raises:
        SaltusError: another shape than (count,) or (count, 1).
    """
    value = torch.as_tensor(value, device=device)
    if tuple(value.shape) not in ((count,), (count, 1)):
        raise SaltusError(f"the environment's {name} has shape {tuple(value.shape)}; expected {(count,)}")
    return value.reshape(count).to(dtype, copy=True)

"""DrawnFields: the fields of the worlds' models that `Task.randomize` drew, for a task's functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from saltus.errors import SaltusError


class DrawnFields:
    """Fields of the worlds' present models, as the task's `randomize` returned them.

    ``drawn["body_mass"]`` is (N, nbody), in the engine's precision and on its device: a copy. Iteration gives the
    names. Constants that MuJoCo derives, such as ``body_subtreemass``, are not among them.

    Args:
        tables: the fields of the models, (number of models, ...) by name. They are copied to the engine's device at
            the first read, which no CUDA graph captures.
        models: the model that each world runs, (N,) int64; the engine writes it in place (see `envs.physics.Physics`).
        dtype: the engine's.
    """

    def __init__(self, tables: Mapping[str, Tensor], models: Tensor, dtype: torch.dtype):
        self._tables, self._models, self._dtype = tables, models, dtype
        self._read: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._tables:
            names = ", ".join(self._tables) or "nothing"
            raise SaltusError(
                f"the task reads state.drawn[{name!r}], and its `randomize` draws {names}. Numbers that all worlds "
                "share are in self.model"
            )
        if name not in self._read:
            self._read[name] = self._tables[name].to(self._models.device, self._dtype)
        return self._read[name][self._models]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def of(self, models: Tensor) -> DrawnFields:
        """The fields of other worlds, which run `models`, (M,) int64."""
        other = DrawnFields(self._tables, models, self._dtype)
        other._read = self._read
        return other

    def with_swapped_models(self, worlds: Tensor) -> DrawnFields:
        """The fields if the worlds of `worlds`, (N,) bool, ran the models of their neighbours."""
        return self.of(torch.where(worlds, self._models.roll(1), self._models))

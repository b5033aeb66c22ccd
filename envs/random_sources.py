"""Which random numbers a task's function draws besides those of the generator that it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_OTHER_GENERATORS = frozenset({"default_rng", "RandomState", "Random"})  # of NumPy and Python


class OtherDraws(TorchDispatchMode):
    """Watches torch's random operations.

    Args:
        generator: the expected one.

    Attributes:
        found: whether an operation drew from another generator.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._address, self.found = generator._cdata, False  # type: ignore[attr-defined]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            source = kwargs.get("generator")  # another Python object of the same generator
            self.found |= source is None or source._cdata != self._address
        return func(*args, **kwargs)


def makes_generators(function: Callable[..., Any]) -> bool:
    """Whether the text of a function names generators of NumPy or Python."""
    code = getattr(function, "__code__", None)
    return code is not None and not _OTHER_GENERATORS.isdisjoint(_names(code))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)

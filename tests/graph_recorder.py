"""A stand-in for CUDA graphs that records torch's operations on the CPU and replays them in the same memory.

As on a GPU, recording has no effect on tensors or random generators, a replay runs no Python of the function, and its
results are written to the tensors of the recording. So it detects work that only Python does, and tensors that change
their address. It does not detect the use of freed memory, or calls that CUDA cannot capture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import saltus.device.cuda_graph
from saltus.device.synchronizations import Synchronizations


class GraphRecorder(TorchDispatchMode):
    """Replaces torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Callable[[], object]] = []
        self._generators = [torch.default_generator]
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def register_generator_state(self, generator: torch.Generator) -> None:
        self._generators.append(generator)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        named = dict(zip((one.name for one in func._schema.arguments), args, strict=False)) | kwargs
        for one in func._schema.arguments:
            if one.alias_info is not None and one.alias_info.is_write:
                for written in tree_leaves(named.get(one.name)):
                    self._before.setdefault(id(written), (written, written.clone()))
        result = func(*args, **kwargs)
        self.operations.append(partial(_replay, func, args, kwargs, tree_leaves(result)))
        return result

    def reset(self) -> None:
        self.operations.clear()

    @torch.no_grad()
    def replay(self) -> None:
        for operation in self.operations:
            operation()

    @contextmanager
    def record(self) -> Iterator[None]:
        random = [generator.get_state() for generator in self._generators]
        try:
            with self:
                yield
        finally:
            for tensor, before in reversed(self._before.values()):
                tensor.copy_(before)
            for generator, state in zip(self._generators, random, strict=True):
                generator.set_state(state)


class _Recording(AbstractContextManager[None]):
    """Replaces torch.cuda.graph, which refers to its graph even after the capture."""

    def __init__(self, graph: GraphRecorder, pool: Any, stream: Any) -> None:
        self._graph, self._record = graph, graph.record()

    def __enter__(self) -> None:
        self._record.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._record.__exit__(*error)


def _replay(func: Any, args: Any, kwargs: Any, results: list[Any]) -> None:
    for fixed, new in zip(results, tree_leaves(func(*args, **kwargs)), strict=True):
        if isinstance(fixed, Tensor) and fixed.data_ptr() != new.data_ptr():
            fixed.copy_(new)


def _find_synchronizations(call: Callable[[], Any]) -> tuple[Any, list[str]]:
    with Synchronizations() as synchronizations:
        return call(), synchronizations.found


def record_on_cpu(monkeypatch: pytest.MonkeyPatch, graph: Callable[[], Any] = GraphRecorder) -> None:
    """Make `CapturedFunction` record and replay on the CPU, with `graph` instead of torch.cuda.CUDAGraph."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", _Recording)
    for name in ("Stream", "stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(saltus.device.cuda_graph, "find_synchronizations", _find_synchronizations)

"""Work on a CUDA device, recorded and replayed."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

WAITED = "called a synchronizing CUDA operation"  # torch's sync debug mode, in its warnings


class CudaGraph:
    """Work on a CUDA device, recorded at its third call and replayed from then on.

    The first two calls do the work as it is: they compile, and let libraries choose their kernels. At a replay nothing
    of the work's Python is left, inputs are copied to where the recorded ones were, and random numbers go on where the
    last call left them. The tensors that replays give are the same ones: the next replay writes into them.

    It is one CUDA graph, or one before, between and after each thing that the work has done by `outside`.

    What the work keeps for its next call it must leave where it was in memory. Work that waits for the device in its
    second call, and so cannot be recorded, goes on as it is, with a warning that says where it waits.

    Args:
        work: (tensors) -> tensors by name.
        name: what it is, for messages.
        device: where.
        generators: random streams that it draws from beside torch's own.

    Raises:
        ValueError: inputs of other shapes or dtypes than those that were recorded.
    """

    CALLS_BEFORE = 2
    recording: ClassVar[CudaGraph | None] = None

    def __init__(
        self, work: Callable[..., dict[str, Tensor]], name: str, device: torch.device, *generators: torch.Generator
    ):
        self._work, self._name, self._device, self._generators = work, name, device, generators
        self._calls, self._waits = 0, False
        self._parts: list[Callable[[], None]] = []
        self._inputs: tuple[Tensor, ...] = ()
        self._result: dict[str, Tensor] = {}

    @property
    def recorded(self) -> bool:
        """Whether calls replay."""
        return bool(self._parts)

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        self._calls += 1
        if self._calls < self.CALLS_BEFORE or self._waits:
            return self._work(*inputs)
        if self._calls == self.CALLS_BEFORE:
            return self._look_for_waits(inputs)
        if not self._parts:
            self._record(inputs)
        self._replay(inputs)
        return dict(self._result)

    def _look_for_waits(self, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        result, places = watch(lambda: self._work(*inputs))
        if places:
            self._waits = True
            warnings.warn(
                f"{self._name} waits for the GPU in {', '.join(dict.fromkeys(places))}, so that it cannot be a CUDA "
                "graph: its operations are launched one by one, which is slower. torch.where, in the place of an index "
                "by a mask, of .item() or of an if, does not wait",
                stacklevel=3,
            )
        return result

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(one.clone() for one in inputs)
        # One for all parts, which are replayed in the order of their recording; and no other's.
        self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(self._device)
        with collected(), torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            try:
                self._begin()
                CudaGraph.recording = self
                self._result = self._work(*self._inputs)
                self._end()
            except BaseException as error:
                with suppress(Exception):  # what has failed within a recording may fail once more at its end
                    self._end()
                self._parts.clear()
                error.add_note(f"This was while {self._name} was recorded as a CUDA graph.")
                raise
            finally:
                CudaGraph.recording = None

    def _begin(self) -> None:
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        self._open = torch.cuda.graph(graph, pool=self._pool, stream=self._stream)  # records, and does nothing
        self._open.__enter__()
        self._parts.append(graph.replay)

    def _end(self) -> None:
        self._open.__exit__(None, None, None)

    def interrupt(self, launch: Callable[[], None]) -> None:
        """While recording: have `launch` called at every replay, between what was recorded and what will be."""
        self._end()
        self._parts.append(launch)
        self._begin()

    def _replay(self, inputs: tuple[Tensor, ...]) -> None:
        for fixed, given in zip(self._inputs, inputs, strict=True):
            if fixed.shape != given.shape or fixed.dtype != given.dtype:
                raise ValueError(
                    f"{self._name} was recorded with a {fixed.dtype} tensor of shape {tuple(fixed.shape)} and got a "
                    f"{given.dtype} one of shape {tuple(given.shape)}"
                )
            fixed.copy_(given)
        for part in self._parts:
            part()


@contextmanager
def collected() -> Iterator[None]:
    """Without garbage, and without its collection: a graph that is freed during a recording would spoil it."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def outside(launch: Callable[[], None]) -> None:
    """Do what no graph of torch's can hold, such as to launch another library's graph; also at every replay."""
    if CudaGraph.recording is None:
        launch()
    else:
        CudaGraph.recording.interrupt(launch)


def to_floats(scalars: Mapping[str, Tensor]) -> dict[str, float]:
    """The values of tensors of one element each, for all of which the device is waited for once."""
    if not scalars:
        return {}
    return dict(zip(scalars, torch.stack([one.double().reshape(()) for one in scalars.values()]).tolist(), strict=True))


def watch(call: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What a call gives, and where it made the host wait for the GPU, by torch's sync debug mode.

    A place is file:line, or "compiled code or torch.ops", of which Python does not know the line.
    """
    before, result = torch.cuda.get_sync_debug_mode(), list[Any]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            _FromCpp.apply(call, result, torch.is_grad_enabled())
        finally:
            torch.cuda.set_sync_debug_mode(before)
    places = []
    for one in caught:
        if WAITED in str(one.message):
            in_compiled = one.filename == torch.autograd.function.__file__  # where _FromCpp was called
            places.append("compiled code or torch.ops" if in_compiled else f"{Path(one.filename).name}:{one.lineno}")
        elif "prototype feature" not in str(one.message):  # what the mode says of itself
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return result[0], places


class _FromCpp(torch.autograd.Function):
    """A call by way of C++, on whose return what compiled code has warned of is warned of in Python, too."""

    @staticmethod
    def forward(_context: Any, call: Callable[[], Any], result: list[Any], with_gradients: bool) -> None:
        with torch.set_grad_enabled(with_gradients):
            result.append(call())

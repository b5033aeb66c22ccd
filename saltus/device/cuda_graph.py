"""CUDA graphs: a function captured once and replayed without its Python."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import ClassVar

import torch
from torch import Tensor

from saltus.device.sync_debug import find_synchronizations
from saltus.errors import SaltusError

WARMUP_CALLS = 2  # the first compiles kernels, the second is searched for synchronizations


class CapturedFunction:
    """A function on a CUDA device, captured as a CUDA graph at its third call and replayed from then on.

    The first `WARMUP_CALLS` calls run eagerly. A replay copies the inputs to the addresses of the captured ones and
    runs no Python. Random generators advance as they do eagerly. The returned tensors are the same ones at every
    replay: clone them to keep them.

    The function must keep its persistent state at fixed addresses, as graph replay requires. A function that
    synchronises with the GPU cannot be captured: it keeps running eagerly, with a warning that names the lines.

    `graph_break` splits the capture into several graphs, with a host call between each two.

    Args:
        function: (tensors) -> tensors by name.
        name: the function's name in messages.
        device: a CUDA device.
        generators: random generators that the function uses, other than torch's default one.

    Raises:
        SaltusError: an input whose shape or dtype differs from the captured one's.
    """

    capturing: ClassVar[CapturedFunction | None] = None

    def __init__(
        self, function: Callable[..., dict[str, Tensor]], name: str, device: torch.device, *generators: torch.Generator
    ):
        self._function, self._name, self._device, self._generators = function, name, device, generators
        self._calls, self._synchronizes = 0, False
        self._parts: list[Callable[[], None]] = []
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._open = ExitStack()  # the capture of the last graph, until it ends
        self._inputs: tuple[Tensor, ...] = ()
        self._result: dict[str, Tensor] = {}

    @property
    def captured(self) -> bool:
        """Whether calls replay a graph."""
        return bool(self._parts)

    def release(self) -> None:
        """Free the graphs, their inputs and their results; the next call captures anew."""
        for graph in self._graphs:
            graph.reset()
        self._graphs, self._parts, self._inputs, self._result = [], [], (), {}

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        self._calls += 1
        if self._calls < WARMUP_CALLS or self._synchronizes:
            return self._function(*inputs)
        if self._calls == WARMUP_CALLS:
            return self._run_and_find_synchronizations(inputs)
        if not self._parts:
            self._capture(inputs)
        self._replay(inputs)
        return dict(self._result)

    def _run_and_find_synchronizations(self, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        result, places = find_synchronizations(lambda: self._function(*inputs))
        if places:
            self._synchronizes = True
            warnings.warn(
                f"{self._name} synchronises with the GPU in {', '.join(dict.fromkeys(places))} and cannot be a CUDA "
                "graph: it runs eagerly, which is slower. Use torch.where instead of boolean indexing, .item() or if",
                stacklevel=3,
            )
        return result

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(one.clone() for one in inputs)
        # One memory pool for all parts, which replay in the order of their capture.
        self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(self._device)
        with gc_paused(), torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            try:
                self._begin()
                CapturedFunction.capturing = self
                self._result = self._function(*self._inputs)
                self._open.close()
            except BaseException as error:
                with suppress(Exception):  # an invalidated capture may also fail to end
                    self._open.close()
                self.release()
                error.add_note(f"This happened while {self._name} was captured as a CUDA graph.")
                raise
            finally:
                CapturedFunction.capturing = None

    def _begin(self) -> None:
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        self._open.enter_context(torch.cuda.graph(graph, pool=self._pool, stream=self._stream))
        self._graphs.append(graph)
        self._parts.append(graph.replay)

    def _split(self, launch: Callable[[], None]) -> None:
        """End the open graph, call `launch` between it and the next at every replay, and begin the next."""
        self._open.close()
        self._parts.append(launch)
        self._begin()

    def _replay(self, inputs: tuple[Tensor, ...]) -> None:
        for fixed, given in zip(self._inputs, inputs, strict=True):
            if fixed.shape != given.shape or fixed.dtype != given.dtype:
                raise SaltusError(
                    f"{self._name} was captured with a {fixed.dtype} tensor of shape {tuple(fixed.shape)} and was "
                    f"called with a {given.dtype} tensor of shape {tuple(given.shape)}: "
                    "keep both, or make another CapturedFunction for them"
                )
            fixed.copy_(given)
        for part in self._parts:
            part()


def graph_break(launch: Callable[[], None]) -> None:
    """Call `launch` now or, while a function is captured, between two of its graphs at every replay.

    For work that a torch capture cannot contain, such as another library's graph.
    """
    if CapturedFunction.capturing is None:
        launch()
    else:
        CapturedFunction.capturing._split(launch)


@contextmanager
def gc_paused() -> Iterator[None]:
    """Disable garbage collection: freeing a graph during capture corrupts it."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

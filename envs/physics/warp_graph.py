"""WarpGraph: Warp kernels as a CUDA graph of Warp's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from envs.physics.warp_model import modules
from saltus.device.cuda_graph import gc_paused


class WarpGraph:
    """A function that launches Warp kernels, captured as a CUDA graph at its second call.

    The first call runs eagerly: it loads and compiles the kernels. A capture that fails raises and is retried at the
    next call. On the CPU every call runs eagerly.

    Attributes:
        load_seconds: duration of the first call.
    """

    def __init__(self, work: Callable[[], None], device: torch.device):
        self._work, self._device = work, device
        self._calls, self._graph = 0, None
        self.load_seconds = 0.0

    def __call__(self) -> None:
        self._calls += 1
        if self._calls == 1:
            start = time.monotonic()
            self._work()
            self.load_seconds = time.monotonic() - start
            return
        if self._device.type == "cuda" and self._graph is None:
            self._graph = self._capture()
        if self._graph is None:
            self._work()
        else:
            modules()[0].capture_launch(self._graph)

    def _capture(self) -> Any:
        wp, _ = modules()
        stream = torch.cuda.Stream(self._device)  # torch's default stream cannot be captured
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with (
            gc_paused(),
            torch.cuda.stream(stream),
            wp.ScopedStream(wp.stream_from_torch(stream)),
            wp.ScopedCapture() as capture,
        ):
            self._work()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        return capture.graph

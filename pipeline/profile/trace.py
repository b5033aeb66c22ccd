"""A trace of some vector steps, with the phases as named ranges."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from pipeline import files
from pipeline.logger import Logger
from pipeline.profile.phases import attached
from pipeline.run import Run


@contextmanager
def traced(run: Run, logger: Logger, path: Path) -> Iterator[None]:
    """Trace the loop with torch.profiler; write a file for Perfetto or chrome://tracing."""
    with torch.profiler.profile() as profiler, attached(run, logger, _as_range):
        yield
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(exported))
        files.write(path, exported.read_bytes())


def _as_range(phase: str, function: Any) -> Any:
    @wraps(function)
    def ranged(*args: Any, **kwargs: Any) -> Any:
        with torch.profiler.record_function(phase):
            return function(*args, **kwargs)

    return ranged

"""A section of the GPU kit in a process of its own, ended at the deadline."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch

from benchmarks.campaign import describe
from benchmarks.gpu.context import Finding, Section, SectionContext
from benchmarks.gpu.sizes import Sizes


def run_isolated(
    section: Section, device: torch.device, sizes: Sizes, deadline: float, keep: Callable[[Finding], None]
) -> str:
    """Run a section in a new process; pass each finding to `keep`; return the outcome.

    The outcome is ``done``, or why the section did not end well. A section that runs past the deadline (by
    time.monotonic()) is killed.
    """
    if time.monotonic() >= deadline:
        return "not run: no time was left"
    here, there = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_run, args=(there, section, device, sizes, deadline))
    process.start()
    there.close()
    try:
        while here.poll(max(0.0, deadline - time.monotonic())):
            received = here.recv()
            if isinstance(received, str):
                return received
            keep(received)
        return "stopped: no time was left"
    except EOFError:
        process.join(10)
        return f"failed: its process ended with exit code {process.exitcode}"
    finally:
        process.kill()


def _run(pipe: Connection, section: Section, device: torch.device, sizes: Sizes, deadline: float) -> None:
    warnings.filterwarnings("ignore", message="the model asks for the PGS solver")
    try:
        context = SectionContext(device, sizes, deadline, pipe.send)
        section(context)
        context.require_success()
        pipe.send("done")
    except Exception as error:  # of any kind: the other sections still run
        traceback.print_exc()
        pipe.send(f"failed: {describe(error)}")

"""The kit's command: run the sections one after another, write one file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks import result
from benchmarks.gpu.context import Finding, Section
from benchmarks.gpu.cores import cores
from benchmarks.gpu.device_tests import device_tests
from benchmarks.gpu.learning import compilation, loop, profile, synchronization, updates
from benchmarks.gpu.process import run_isolated
from benchmarks.gpu.simulation import parity, steps
from benchmarks.gpu.sizes import ON_GPU, REDUCED, Sizes
from benchmarks.gpu.tables import tables
from benchmarks.gpu.training import training
from benchmarks.table import show

SECTIONS: dict[str, Section] = {
    "tests": device_tests,
    "compilation": compilation,
    "synchronization": synchronization,
    "steps": steps,
    "updates": updates,
    "loop": loop,
    "profile": profile,
    "training": training,
    "parity": parity,
    "cores": cores,
}


def gpu(minutes: float = 8.5, sections: tuple[str, ...] = (), output: Path | None = None) -> None:
    """Run every GPU test and benchmark; without a GPU, a reduced form of them.

    Each section runs in a process of its own, which is killed when the time is over. A hang, or a GPU in a bad state,
    does not affect the other sections.

    Args:
        minutes: time limit of all sections together.
        sections: the sections to run; by default all.
        output: the file to write; by default benchmarks/results/gpu-<device>.jsonl.
    """
    unknown = sorted(set(sections) - set(SECTIONS))
    if unknown:
        raise SystemExit(f"no such section: {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    on_gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name().lower().replace(" ", "-") if on_gpu else "reduced"
    path = output or result.RESULTS / f"gpu-{name}{result.SUFFIX}"
    chosen = {section: SECTIONS[section] for section in sections or SECTIONS}
    run_kit(chosen, ON_GPU if on_gpu else REDUCED, minutes, result.replaceable(path, "gpu", output is not None))


def run_kit(sections: Mapping[str, Section], sizes: Sizes, minutes: float, path: Path) -> None:
    """Run sections on the GPU, or on the CPU without one; write each finding to a result file, and show its tables.

    Raises:
        SystemExit: a section failed, or did not run to its end.
    """
    deadline = time.monotonic() + 60 * minutes
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    settings = {"minutes": minutes, "device": str(device), "reduced": not on_gpu}
    found: list[Finding] = []

    def keep(finding: Finding) -> None:
        found.append(finding)
        result.write(path, "gpu", settings, found)

    for name, section in sections.items():
        start = time.monotonic()
        print(f"== {name} ({deadline - start:.0f} s left)", flush=True)
        outcome = run_isolated(section, device, sizes, deadline, keep)
        keep({"section": "outcome", "of": name, "outcome": outcome, "seconds": time.monotonic() - start})
    show(tables(result.read(path)), path)
    if any(one["outcome"] != "done" for one in found if one["section"] == "outcome"):
        raise SystemExit(1)

"""The kit's command: run the sections one after another, write one file."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
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
from benchmarks.hardware import hardware, machine
from benchmarks.table import show
from saltus.errors import SaltusError

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
    does not affect the other sections. The same command on the same machine and commit continues a file: sections that
    are done are kept.

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
    earlier = earlier_findings(path, [*chosen])
    result.replaceable(path, "gpu", output is not None or bool(earlier))
    run_kit(chosen, ON_GPU if on_gpu else REDUCED, minutes, path, earlier)


def earlier_findings(path: Path, sections: Sequence[str]) -> list[Finding]:
    """The findings of the sections that a file shows as done, if this machine and commit made it.

    Empty if all of `sections` are done: the command then starts anew.
    """
    if not path.exists():
        return []
    try:
        found = result.read(path)
    except SaltusError:
        return []  # `result.replaceable` says what is wrong with it
    if (found.benchmark, found.machine, found.commit) != ("gpu", machine(hardware()), result.COMMIT):
        return []
    kept: list[Finding] = []
    section: list[Finding] = []
    for row in found.measurements:
        section.append(row)
        if row["section"] == "outcome":  # the last of its section
            kept += section if row["outcome"] == "done" else []
            section = []
    return [] if _done(kept).issuperset(sections) else kept


def _done(findings: Iterable[Finding]) -> set[str]:
    """The sections that ran to their end."""
    return {row["of"] for row in findings if row["section"] == "outcome" and row["outcome"] == "done"}


def run_kit(
    sections: Mapping[str, Section], sizes: Sizes, minutes: float, path: Path, earlier: Sequence[Finding] = ()
) -> None:
    """Run sections on the GPU, or on the CPU without one; write each finding to a result file, and show its tables.

    Sections that are done in `earlier` are not run again, and the earlier findings are kept.

    Raises:
        SystemExit: a section failed, or did not run to its end.
    """
    deadline = time.monotonic() + 60 * minutes
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    settings = {"minutes": minutes, "device": str(device), "reduced": not on_gpu}
    found = list(earlier)
    done = _done(found)

    def keep(finding: Finding) -> None:
        found.append(finding)
        result.write(path, "gpu", settings, found)

    for name in done:
        print(f"== {name} is done", flush=True)
    for name in [name for name in sections if name not in done]:
        start = time.monotonic()
        print(f"== {name} ({deadline - start:.0f} s left)", flush=True)
        outcome = run_isolated(sections[name], device, sizes, deadline, keep)
        keep({"section": "outcome", "of": name, "outcome": outcome, "seconds": time.monotonic() - start})
    show(tables(result.read(path)), path)
    if any(one["outcome"] != "done" for one in found if one["section"] == "outcome"):
        raise SystemExit(1)

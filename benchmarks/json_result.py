"""Results of benchmarks: one JSON file each, and tables on the screen."""

from __future__ import annotations

import dataclasses
import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import rich.table
import torch
from rich.console import Console
from rich.table import Column

from benchmarks import checkout
from benchmarks.runner import Measurement, summarize
from envs.physics.cpu import available_cores
from pipeline import files
from saltus.versions import versions

RESULTS = Path(__file__).parent / "results"
PEERS = ("envpool", "stable-baselines3", "sbx-rl", "jax")

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """A title, the columns' names, and rows of cells."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def hardware() -> dict[str, Any]:
    """The machine's processor, memory and GPU; cores are those that this process may use."""
    info = Path("/proc/cpuinfo")
    lines = [line.partition(":") for line in info.read_text().splitlines()] if info.exists() else []
    cpu = {name.strip(): value.strip() for name, _, value in lines}  # of the last core; all cores are alike
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "gpu": f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB" if gpu else None,
        "driver": _driver() if gpu else None,
        "cpu": cpu.get("model name", platform.machine()),
        "cpu_family_and_model": f"{cpu.get('cpu family')}, {cpu.get('model')}",
        "cpu_instructions": sorted({"avx2", "avx512f", "avx512_bf16", "amx_bf16"} & {*cpu.get("flags", "").split()}),
        "cores": available_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
    }


def _driver() -> str | None:
    """The version of NVIDIA's driver; None if nvidia-smi does not tell it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


COMMIT = checkout.commit()  # at import: files may change during the minutes that a benchmark takes


def comparison(
    title: str,
    measurements: Sequence[Measurement],
    subject: str,
    missing: Mapping[str, str],
    targets: Mapping[str, float],
) -> Table:
    """The table of a comparison: the rates of all cases, and the subject's rate as a multiple of each.

    Args:
        title: the table's title.
        measurements: from `runner.measure`.
        subject: the case that the others are compared with.
        missing: the reasons why cases were not measured, by case.
        targets: the multiples that the subject should reach, by case.
    """
    rows: list[list[Cell]] = []
    for name, summary in summarize(measurements, subject).items():
        ratios: list[Cell] = [summary.ratio_of_medians, summary.median_of_ratios]
        target = f">= {targets[name]:.2f}" if name in targets else None
        rows.append([name, summary.median, summary.low, summary.high, *ratios, target])
    rows += [[name, reason, *[None] * 5] for name, reason in missing.items()]
    columns = ["case", "median", "lowest", "highest", "ratio of medians", "median of ratios", "target"]
    return Table(f"{title}; ratios: {subject} / case", columns, rows)


def publish(
    command: str,
    output: Path | None,
    settings: Mapping[str, Any],
    measurements: Iterable[Mapping[str, Any]],
    tables: Sequence[Table],
) -> Path:
    """Write a benchmark's result, print its tables, and return the file.

    Args:
        command: the benchmark's name.
        output: the file; by default benchmarks/results/<command>-cpu<cores>.json.
        settings: the benchmark's settings, defaults included.
        measurements: all measurements.
        tables: the summary.
    """
    path = output or default_path(command)
    write(path, settings, measurements, tables)
    show(tables, path)
    return path


def default_path(command: str) -> Path:
    """The result file of a benchmark without ``--output``."""
    return RESULTS / f"{command}-cpu{available_cores()}.json"


def write(
    path: Path, settings: Mapping[str, Any], measurements: Iterable[Mapping[str, Any]], tables: Sequence[Table]
) -> None:
    """Write a result file, as a whole or not at all. See `publish` for the arguments."""
    content = {
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": COMMIT,
        "hardware": hardware(),
        "versions": versions(*PEERS),
        "settings": dict(settings),
        "measurements": list(measurements),
        "summary": [dataclasses.asdict(table) for table in tables],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, json.dumps(content, indent=1) + "\n")


def show(tables: Sequence[Table], path: Path) -> None:
    """Print tables, and the path of the result file."""
    console = Console()
    for table in tables:
        console.print(_rendered(table))
    console.print(str(path), highlight=False, soft_wrap=True)


def rows_of(measurements: Sequence[Measurement], **labels: Any) -> list[dict[str, Any]]:
    """Measurements as dicts for JSON, with their rates, and each with the same labels."""
    return [labels | dataclasses.asdict(item) | {"rate": item.rate} for item in measurements]


def text(cell: Cell) -> str:
    """A cell as text: rounded, with thousands separators."""
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.2f}"
    return "" if cell is None else f"{cell:,}" if isinstance(cell, int) else cell


def _rendered(table: Table) -> rich.table.Table:
    rendered = rich.table.Table(*[Column(name, overflow="fold") for name in table.columns], title=table.title)
    for row in table.rows:
        rendered.add_row(*map(text, row))
    return rendered

"""Campaigns of training runs whose training is a fake."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import result
from benchmarks import training as command

FAKE = (sys.executable, "-S", str(Path(__file__).with_name("fake_training.py")))
TASK = "InvertedPendulum-v5"


class Fake:
    """Campaigns of one result file, with runs that crash or wait for a signal, by seed."""

    def __init__(self, folder: Path):
        self.folder, self.file = folder, folder / "result.jsonl"

    def run(self, tasks: Sequence[str] = (TASK,), options: Sequence[str] = (), **settings: Any) -> dict[str, Any]:
        """Run a campaign, one run at a time by default, and return its result."""
        settings = {"seeds": (0, 1, 2), "output": self.file} | settings
        command.training(tuple(tasks), tuple(options), **settings)
        return self.content

    @property
    def content(self) -> dict[str, Any]:
        found = result.read(self.file)
        return {"measurements": found.measurements, "summary": [vars(table) for table in command.tables(found)]}

    def began(self) -> list[int]:
        """The seeds of the runs that began since the last call."""
        files = sorted(self.folder.glob("began-*"))
        for file in files:
            file.unlink()
        return [int(file.name.split("-")[1]) for file in files]

    def mark(self, name: str) -> Path:
        """Let a seed crash or wait: crash-1, wait-1."""
        (self.folder / name).touch()
        return self.folder / name

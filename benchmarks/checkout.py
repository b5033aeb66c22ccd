"""This checkout of saltus, which benchmarks run from: its folder, its commit, its place on Python's path."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def commit(folder: Path = ROOT) -> str | None:
    """The commit of a checkout, with ``-dirty`` if files differ from it; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def environment(folder: Path = ROOT, /, **variables: str) -> dict[str, str]:
    """Environment variables for a child process that imports saltus and the benchmarks from a checkout."""
    paths = [str(folder.resolve()), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | variables

"""Checkouts of saltus: this one, which benchmarks run from, and others. Commits, and commands that import them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HASH = re.compile(r"\b([0-9a-f]{10})[0-9a-f]{30}\b")


def commit(folder: Path = ROOT) -> str | None:
    """The commit of a checkout, with ``-dirty`` if files differ from it; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def label(commit: str | None) -> str:
    """A commit, or a text with several, in short form for captions and the names of cases."""
    return "an unknown commit" if commit is None else HASH.sub(r"\1", commit)


def environment(folder: Path = ROOT, /, **variables: str) -> dict[str, str]:
    """Environment variables for a child process that imports saltus and the benchmarks from a checkout."""
    paths = [str(folder.resolve()), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | variables


def run(*command: str | int | Path) -> int:
    """Run a command that imports this checkout, with its output on stderr; return its exit code."""
    arguments = [str(part) for part in command]
    return subprocess.run(arguments, env=environment(), stdout=sys.stderr, check=False).returncode

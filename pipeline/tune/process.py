"""A run of a trial, as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

from pipeline import checkpoint
from pipeline.config import Config
from pipeline.file_names import CHECKPOINTS, CONFIG
from pipeline.run_dir import locked
from pipeline.tune.plan import ROOT

COMMAND = (sys.executable, "-P", "-m", "pipeline.tune.child")
POLL = 1.0  # seconds between looks at the evaluations
GRACE = 300.0  # seconds to save, after which a process is killed


class RunError(Exception):
    """A run failed; the message is the last that it printed."""


def unused_directory(folder: Path, name: str) -> Path:
    """A directory of `folder` that does not exist: `name`, with a number appended if need be."""
    paths = (folder / (name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(path for path in paths if not path.exists())


def can_resume(run_dir: Path, config: Config) -> bool:
    """Whether a directory holds a run of a configuration, with a checkpoint, in which no process trains."""
    try:
        if json.loads((run_dir / CONFIG).read_text())["config"] != config.to_dict():
            return False
        with locked(run_dir):
            return bool(checkpoint.find(run_dir / CHECKPOINTS))
    except (OSError, ValueError, KeyError, TypeError):  # ValueError: locked, or no JSON
        return False


def run(command: Sequence[str], watch: Callable[[], bool]) -> None:
    """Run a command of ``saltus`` to its end.

    Args:
        command: its words.
        watch: called every `POLL` seconds; the process saves and stops when it returns False.

    Raises:
        RunError: the process failed.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [*COMMAND, str(os.getpid()), *command], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None and watch():
                _wait(process, POLL)
            stopped = process.poll() is None
        finally:
            _stop(process)
        if process.returncode and not stopped:
            output.seek(0)
            raise RunError(_reason(process.returncode, output.read().decode(errors="replace")))


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Let a process save and stop, if it still runs; a second interruption kills it."""
    try:
        if process.poll() is None:
            process.terminate()
            _wait(process, GRACE)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _reason(exit_code: int, output: str) -> str:
    """The reason of a failure, from the lines that a process printed."""
    if exit_code < 0:
        memory = " (is the memory full?)" if exit_code == -9 else ""
        return f"the process was killed by signal {-exit_code}{memory}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return (lines or [f"exit code {exit_code}"])[-1].removeprefix("saltus: ")

"""Short runs in this process, which the tests of running, resuming and loading share."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from pipeline.config import Config
from pipeline.logger import Logger
from pipeline.run import Run
from pipeline.run_dir import create
from pipeline.train import train


def quiet_console() -> Console:
    return Console(file=io.StringIO(), width=200)


def train_run(config: Config, run_dir: Path, until: int | None = None) -> Run:
    """Train a new run, to its end or until `until` env steps."""
    run = Run(config, run_dir)
    create(config, run_dir, run.env.model)
    continue_run(run, until)
    return run


def continue_run(run: Run, until: int | None = None) -> None:
    """Train a run that exists, to its end or until `until` env steps."""
    with Logger(run.run_dir, run.config, run.env_steps, quiet_console(), run.evaluation_pending) as logger:
        train(run, logger, lambda: until is not None and run.env_steps >= until)

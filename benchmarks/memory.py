"""Peak memory of a run with a full replay buffer."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

from rich.console import Console

from benchmarks import result, runner
from benchmarks.campaign import Campaign, describe, failed, progress
from benchmarks.code import code_hash
from benchmarks.data import random_transitions
from benchmarks.table import Cell, Table, show
from pipeline import presets
from pipeline.logger import Logger
from pipeline.run import Run
from pipeline.run_dir import create
from pipeline.train import train

BUFFERS = (("Hopper-v5", 1_000_000), ("Humanoid-v5", 100_000), ("Humanoid-v5", 500_000))


def memory(
    buffers: tuple[tuple[str, int], ...] = BUFFERS,
    vector_steps: int = 100,
    compile: bool = True,
    output: Path | None = None,
) -> None:
    """Peak resident memory of runs, compared with a limit of 1.2 times the buffer's bytes plus 1.5 GB.

    Each run has a process of its own. With a full buffer it acts, learns, logs, evaluates, and saves a checkpoint at
    the start and at the end. The C++ compiler's processes, about 250 MB each while they run, are not counted. The
    result file is written after each run. The same command, given again, does the runs that are missing or failed.

    Args:
        buffers: tasks, each with the number of transitions in its buffer.
        vector_steps: length of a run.
        compile: whether updates are compiled.
        output: the file to write or to continue; by default benchmarks/results/memory-cpu<cores>.jsonl.
    """
    code = code_hash("saltus", "envs", "pipeline", "benchmarks/memory.py")
    settings = {"vector_steps": vector_steps, "compile": compile, "code": code}
    jobs = [{"task": task, "transitions": size} for task, size in buffers]
    campaign = Campaign(output or result.default_path("memory"), "memory", settings, jobs)
    seconds: list[float] = []

    def describe_progress() -> str:
        left = len(campaign.remaining)
        failures = sum(map(failed, campaign.rows))
        return progress(len(jobs) - left, len(jobs), "runs", failures, left * mean(seconds) if seconds else None)

    with campaign.interruptible(describe_progress):
        campaign.say(describe_progress())
        for job in campaign.remaining:
            start = time.monotonic()
            try:
                run = runner.isolated(partial(_prepare, job["task"], job["transitions"], vector_steps, compile))
                buffer_bytes, peak = run()
                limit = round(1.2 * buffer_bytes + 1.5e9)
                campaign.put({**job, "buffer_bytes": buffer_bytes, "peak_bytes": peak, "limit_bytes": limit})
            except Exception as error:
                traceback.print_exc()
                campaign.put({**job, "error": describe(error)})
            seconds.append(time.monotonic() - start)
            campaign.say(describe_progress())
    show(tables(campaign.result), campaign.path)


def tables(found: result.Result) -> list[Table]:
    """The peaks of all runs, and the limit."""
    columns = ["task", "transitions", "buffer, GB", "peak, GB", "1.2 x buffer + 1.5 GB", "peak ÷ limit"]
    rows: list[list[Cell]] = []
    for row in found.measurements:
        if failed(row):
            rows.append([row["task"], row["transitions"], None, f"failed: {row['error']}", None, None])
            continue
        buffer, peak, limit = (row[f"{name}_bytes"] / 1e9 for name in ("buffer", "peak", "limit"))
        rows.append([row["task"], row["transitions"], buffer, peak, limit, peak / limit])
    return [Table("Peak resident memory of a run", columns, rows)]


def _prepare(task: str, size: int, vector_steps: int, compile: bool) -> Callable[[], tuple[int, int]]:
    return partial(peak_of_run, task, size, vector_steps, compile)


def peak_of_run(task: str, size: int, vector_steps: int, compile: bool) -> tuple[int, int]:
    """Do a short run with a full buffer; return the buffer's bytes and the process's peak resident bytes."""
    config = presets.preset(
        presets.DEFAULT,
        task,
        buffer_size=size,
        total_env_steps=size,
        learning_starts=256,
        compile=compile,
        log_every=800,
        eval_every=800,
    )
    with TemporaryDirectory(prefix="saltus-") as folder:
        run = Run(config, Path(folder))
        create(config, run.run_dir, run.env.model)
        while len(run.buffer) < size:
            run.buffer.extend(random_transitions(config.num_envs, run.env.observation_dim, run.env.action_dim))
        with Logger(run.run_dir, config, 0, Console(quiet=True)) as logger:
            train(run, logger, stopping=lambda: run.vector_steps >= vector_steps)
    return run.buffer.num_bytes, _peak_resident_bytes()


def _peak_resident_bytes() -> int:
    """Peak of this process. (getrusage would include the process that started this one.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

"""Peak memory of a run with a full replay buffer."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from benchmarks import json_result as result
from benchmarks.data import random_transitions
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
    the start and at the end. The C++ compiler's processes, about 250 MB each while they run, are not counted.

    Args:
        buffers: tasks, each with the number of transitions in its buffer.
        vector_steps: length of a run.
        compile: whether updates are compiled.
        output: the file to write; by default benchmarks/results/memory-cpu<cores>.json.
    """
    measurements: list[dict[str, str | int]] = []
    rows: list[list[result.Cell]] = []
    for task, size in buffers:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            buffer_bytes, peak = process.submit(peak_of_run, task, size, vector_steps, compile).result()
        limit = round(1.2 * buffer_bytes + 1.5e9)
        measurements.append({
            "task": task, "transitions": size, "buffer_bytes": buffer_bytes, "peak_bytes": peak, "limit_bytes": limit
        })  # fmt: skip
        rows.append([task, size, buffer_bytes / 1e9, peak / 1e9, limit / 1e9, peak / limit])
    columns = ["task", "transitions", "buffer, GB", "peak, GB", "1.2 x buffer + 1.5 GB", "peak / limit"]
    table = result.Table("Peak resident memory of a run", columns, rows)
    result.publish("memory", output, {"vector_steps": vector_steps, "compile": compile}, measurements, [table])


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
        create(config, run.run_dir, run.env.task.model)
        while len(run.buffer) < size:
            run.buffer.extend(random_transitions(config.num_envs, run.env.observation_dim, run.env.action_dim))
        with Logger(run.run_dir, config, 0, Console(quiet=True)) as logger:
            train(run, logger, stopping=lambda: run.vector_steps >= vector_steps)
    return run.buffer.num_bytes, _peak_resident_bytes()


def _peak_resident_bytes() -> int:
    """Peak of this process. (getrusage would include the process that started this one.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

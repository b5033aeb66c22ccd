"""Returns over wall-clock time of `saltus train` and of other libraries, each seed in a new process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Timer
from typing import Any, Literal

import tyro

from benchmarks import checkout, curves, result
from envs.physics.cpu import available_cores
from pipeline import checkpoint
from pipeline.file_names import CHECKPOINTS, CONFIG, EVALUATION, EVALUATIONS
from pipeline.tables import read_table

SALTUS = (sys.executable, "-m", "saltus")
PEER_TRAINING = (sys.executable, "-m", "benchmarks.peer_training")
System = Literal["saltus", "stable-baselines3", "sbx"]


@dataclass(frozen=True)
class Trained:
    """One training run. Seconds are wall-clock time from the start of its process.

    Attributes:
        system: saltus or another library.
        seed: the run's seed.
        exit_code: of the process.
        seconds: duration.
        curve: the rows of evaluations.csv, each with its time as `wall_seconds`.
        best: the best policy's evaluation.json; None if there was nothing to evaluate, and for other libraries, which
            keep no best policy.
        last: the last policy's evaluation.json.
        output: the printed lines, each with its time.
        config: the run's config.json.
    """

    system: System
    seed: int
    exit_code: int
    seconds: float
    curve: list[dict[str, float]]
    best: dict[str, Any] | None
    last: dict[str, Any] | None
    output: list[tuple[float, str]]
    config: dict[str, Any] | None

    def column(self, name: str) -> list[float]:
        """A column of the curve."""
        return [row[name] for row in self.curve]

    def reached(self, threshold: float) -> float | None:
        """Time of the first evaluation with a mean return of at least `threshold`, or None."""
        times = (row["wall_seconds"] for row in self.curve if row["return_mean"] >= threshold)
        return next(times, None)


def training(
    task: tyro.conf.Positional[str],
    options: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    systems: tuple[System, ...] = ("saltus",),
    seeds: tuple[int, ...] = (0, 1, 2),
    minutes: float = 10.0,
    threshold: float | None = None,
    episodes: int = 100,
    output: Path | None = None,
) -> None:
    """Learning curves of `saltus train TASK` over wall-clock time from process start, compilation included.

    Seeds run one after another, each with an empty compilation cache. A plot of all curves is saved next to the result.

    Args:
        task: the task to train on.
        options: more options for `saltus train`, after a `--`.
        systems: saltus, and other libraries with their default settings, except for 5,000 random actions at the start.
        seeds: the seeds.
        minutes: time limit of each seed; its policies are evaluated after it.
        threshold: a mean return; the time of the first evaluation that reaches it is reported.
        episodes: episodes of the final evaluations, which are independent of the choice of the best policy.
        output: the file to write; by default benchmarks/results/training-<task>-cpu<cores>.json.
    """
    if options and "saltus" not in systems:
        raise SystemExit(f"{' '.join(options)}: options are for saltus, which is not among --systems")
    trained = [
        _train(task, seed, 60 * minutes, episodes, options)
        if system == "saltus"
        else _train_peer(system, task, seed, 60 * minutes, episodes)
        for seed in seeds
        for system in systems
    ]
    settings = {
        "task": task,
        "options": options,
        "systems": systems,
        "seeds": seeds,
        "minutes": minutes,
        "threshold": threshold,
        "episodes": episodes,
    }
    name = task.rpartition(":")[2]
    title = f"{name}: returns after at most {minutes:g} minutes"
    table = _table(title, trained, threshold)
    path = result.publish(f"training-{name}", output, settings, map(asdict, trained), [table])
    drawn: dict[str, list[curves.Points]] = {}
    for run in trained:
        name = f"seed {run.seed}" if len(systems) == 1 else run.system
        drawn.setdefault(name, []).append((run.column("wall_seconds"), run.column("return_mean")))
    curves.draw(path.with_suffix(".png"), title, "wall-clock from process start, s", drawn, threshold)


def _train(task: str, seed: int, limit: float, episodes: int, options: Sequence[str]) -> Trained:
    with _folder() as folder:
        run_dir, cache = Path(folder) / "run", Path(folder) / "cache"
        arguments = [task, "--seed", str(seed), "--run-dir", str(run_dir), *options]
        exit_code, seconds, lines = train_for(limit, arguments, cache)
        best, last = (_evaluate(run_dir, which, episodes) for which in ("best", "last"))
        return _trained("saltus", seed, run_dir, (exit_code, seconds, lines), best, last)


def _train_peer(system: System, task: str, seed: int, limit: float, episodes: int) -> Trained:
    with _folder() as folder:
        run_dir, cache = Path(folder) / "run", Path(folder) / "cache"
        command = [*PEER_TRAINING, "--library", system, "--task", task, "--seed", str(seed), "--run-dir", str(run_dir)]
        command += ["--num-threads", str(available_cores()), "--final-episodes", str(episodes)]
        command += ["--total-env-steps", str(10**9), "--seconds", str(limit)]
        done = run_for(limit + 600.0, command, cache)  # it stops by itself, then evaluates
        return _trained(system, seed, run_dir, done, None, read_json(run_dir / EVALUATION))


def _folder() -> TemporaryDirectory[str]:
    """A temporary folder for a run and its caches. A killed run's compiler may still write there."""
    return TemporaryDirectory(prefix="saltus-", ignore_cleanup_errors=True)


def _trained(
    system: System,
    seed: int,
    run_dir: Path,
    done: tuple[int, float, list[tuple[float, str]]],
    best: dict[str, Any] | None,
    last: dict[str, Any] | None,
) -> Trained:
    exit_code, seconds, lines = done
    output = [(when, line.replace(str(run_dir), "RUN")) for when, line in lines]  # no path of this machine in results
    # Each row of the table is written just before its line is printed.
    times = [when for when, line in output if line.startswith("evaluation at ")]
    rows = read_table(run_dir / EVALUATIONS)
    curve = [row | {"wall_seconds": when} for row, when in zip(rows, times, strict=False)]
    return Trained(system, seed, exit_code, seconds, curve, best, last, output, read_json(run_dir / CONFIG))


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file; None if it does not exist."""
    return json.loads(path.read_text()) if path.exists() else None


def _evaluate(run_dir: Path, which: str, episodes: int) -> dict[str, Any] | None:
    if not checkpoint.find(run_dir / CHECKPOINTS):
        return None
    exit_code = checkout.run(*SALTUS, "evaluate", run_dir, "--policy", which, "--episodes", episodes)
    return read_json(run_dir / EVALUATION) if exit_code == 0 else None


def train_for(
    limit: float, arguments: Sequence[str], cache: Path | None, grace: float = 300.0
) -> tuple[int, float, list[tuple[float, str]]]:
    """Run `saltus train`. See `run_for` for the other arguments and the result."""
    return run_for(limit, [*SALTUS, "train", *arguments], cache, grace)


def run_for(
    limit: float, command: Sequence[str], cache: Path | None, grace: float = 300.0
) -> tuple[int, float, list[tuple[float, str]]]:
    """Run a command; return its exit code, its duration, and its lines of output with their times.

    Args:
        limit: seconds after which it gets SIGTERM, at which saltus saves and ends.
        command: the command and its arguments.
        cache: the folder for torch.compile's cache, and for temporary files, which include Inductor's headers; None:
            those that all processes share.
        grace: seconds after SIGTERM at which it is killed.
    """
    output = []
    folders = {}
    if cache is not None:
        cache.mkdir(exist_ok=True)
        folders = {"TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"), "TMPDIR": str(cache)}
    environment = checkout.environment(PYTHONUNBUFFERED="1", **folders)
    start = time.monotonic()
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        timers = Timer(limit, process.terminate), Timer(limit + grace, process.kill)
        for timer in timers:
            timer.daemon = True
            timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            output.append((time.monotonic() - start, line.rstrip()))
            print(line, end="", flush=True)
        exit_code = process.wait()
        for timer in timers:
            timer.cancel()
    return exit_code, time.monotonic() - start, output


def _table(title: str, trained: Sequence[Trained], threshold: float | None) -> result.Table:
    """One row per run, and the medians of each system over its seeds."""
    columns = ["system", "seed", "ended, s", "exit code", "env steps"]
    columns += ["best policy", "after env steps", "95% interval", "last policy", "95% interval"]
    if threshold is not None:
        columns.append(f"s to {threshold:,g}")
    rows: list[list[result.Cell]] = []
    for system in dict.fromkeys(run.system for run in trained):
        runs = [run for run in trained if run.system == system]
        rows += [_row(run) for run in runs]
        bests, lasts = (_median(returns) for returns in ([run.best for run in runs], [run.last for run in runs]))
        seconds = median(run.seconds for run in runs)
        rows.append([system, "median", seconds, None, None, bests, None, None, lasts, None])
        if threshold is not None:
            times = [run.reached(threshold) for run in runs]
            reached = [when for when in times if when is not None]
            all_reached = len(reached) == len(times)
            cells: list[result.Cell] = ["not reached" if when is None else when for when in times]
            cells.append(median(reached) if all_reached else f"{len(reached)} of {len(times)} reached it")
            for row, cell in zip(rows[-len(cells) :], cells, strict=True):
                row.append(cell)
    return result.Table(title, columns, rows)


def _median(evaluations: Sequence[dict[str, Any] | None]) -> float | None:
    """Median of mean returns; None if one is missing."""
    returns = [found["mean"] for found in evaluations if found is not None]
    return median(returns) if len(returns) == len(evaluations) else None


def _row(run: Trained) -> list[result.Cell]:
    cells: list[result.Cell] = [run.system, str(run.seed), run.seconds, run.exit_code]
    cells.append(run.last["env_steps"] if run.last is not None else None)
    if run.best is not None:
        cells += [run.best["mean"], run.best["env_steps"], _interval(run.best)]
    else:
        cells += ["none", None, None]
    return cells + (["none", None] if run.last is None else [run.last["mean"], _interval(run.last)])


def _interval(evaluation: dict[str, Any]) -> str:
    low, high = evaluation["interval_95"]
    return f"{low:,.0f} to {high:,.0f}"

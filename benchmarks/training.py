"""Returns over wall-clock time of `saltus train`, each seed in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Timer
from typing import Any

import tyro

from benchmarks import curves, result
from pipeline.logger import EVALUATIONS, read_table

SALTUS = (sys.executable, "-c", "from pipeline.cli import main; main()")


@dataclass(frozen=True)
class Trained:
    """What one `saltus train` left behind. Seconds are wall-clock from the start of its process.

    Attributes:
        seed: its seed.
        exit_code: of its process.
        seconds: until it ended.
        curve: the rows of its evaluations.csv, each with `wall_seconds`, when it was there.
        best: what `saltus evaluate` found of the best policy, or None where there was nothing to evaluate.
        last: the same of the last policy.
        output: the lines that it printed, each with the seconds at which it came.
    """

    seed: int
    exit_code: int
    seconds: float
    curve: list[dict[str, float]]
    best: dict[str, Any] | None
    last: dict[str, Any] | None
    output: list[tuple[float, str]]

    def column(self, name: str) -> list[float]:
        """What the evaluations have under a name."""
        return [row[name] for row in self.curve]

    def reached(self, threshold: float) -> float | None:
        """Seconds until the first evaluation with a mean return of `threshold`, or None."""
        times = (row["wall_seconds"] for row in self.curve if row["return_mean"] >= threshold)
        return next(times, None)


def training(
    task: tyro.conf.Positional[str],
    options: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    seeds: tuple[int, ...] = (0, 1, 2),
    minutes: float = 10.0,
    threshold: float | None = None,
    episodes: int = 100,
    output: Path | None = None,
) -> None:
    """Learning curves of `saltus train TASK` over wall-clock seconds from process start, compilation included.

    Seeds follow each other, each with an empty compilation cache. A picture of all curves is saved beside the result.

    Args:
        task: what to train on.
        options: more options for `saltus train`, after a `--`.
        seeds: the seeds.
        minutes: time for each seed, after which it is stopped and its policies evaluated as they are.
        threshold: a mean return whose first time is reported.
        episodes: episodes of the final evaluations, which no choice among policies depends on.
        output: the file to write; by default benchmarks/results/training-<task>-<hardware>.json.
    """
    trained = [_train_and_evaluate(task, seed, 60 * minutes, episodes, options) for seed in seeds]
    settings = {
        "task": task,
        "options": options,
        "seeds": seeds,
        "minutes": minutes,
        "threshold": threshold,
        "episodes": episodes,
    }
    name = task.rpartition(":")[2]
    title = f"{name}: returns after at most {minutes:g} minutes"
    table = _table(title, trained, threshold)
    path = result.publish(f"training-{name}", output, settings, map(asdict, trained), [table])
    drawn = {f"seed {run.seed}": [(run.column("wall_seconds"), run.column("return_mean"))] for run in trained}
    curves.draw(path.with_suffix(".png"), title, "wall-clock from process start, s", drawn, threshold)


def _train_and_evaluate(task: str, seed: int, limit: float, episodes: int, options: Sequence[str]) -> Trained:
    with TemporaryDirectory(prefix="saltus-") as folder:
        run_dir, cache = Path(folder) / "run", Path(folder) / "cache"
        arguments = [task, "--seed", str(seed), "--run-dir", str(run_dir), *options]
        exit_code, seconds, lines = train_for(limit, arguments, cache)
        output = [
            (when, line.replace(str(run_dir), "RUN")) for when, line in lines
        ]  # results name no folder of a machine
        times = [when for when, line in output if line.startswith("evaluation at ")]
        rows = read_table(run_dir / EVALUATIONS)
        curve = [
            row | {"wall_seconds": when} for row, when in zip(rows, times, strict=False)
        ]  # a row comes before its line
        best, last = (_evaluate(run_dir, which, episodes) for which in ("best", "last"))
    return Trained(seed, exit_code, seconds, curve, best, last, output)


def _evaluate(run_dir: Path, which: str, episodes: int) -> dict[str, Any] | None:
    command = [*SALTUS, "evaluate", str(run_dir), "--policy", which, "--episodes", str(episodes)]
    done = subprocess.run(command, check=False).returncode == 0
    return json.loads((run_dir / "evaluation.json").read_text()) if done else None


def train_for(
    limit: float, arguments: Sequence[str], cache: Path, grace: float = 300.0
) -> tuple[int, float, list[tuple[float, str]]]:
    """Run `saltus train`; return exit code, seconds and timed lines of output.

    Args:
        limit: seconds after which it is asked to stop (SIGTERM), and saves.
        arguments: of the command.
        cache: the folder of what compiling keeps, and of temporary files, among which Inductor has its headers.
        grace: seconds that it has to stop, before it is killed.
    """
    output = []
    cache.mkdir(exist_ok=True)
    folders = {"TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"), "TMPDIR": str(cache)}
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | folders
    start = time.monotonic()
    with subprocess.Popen(
        [*SALTUS, "train", *arguments], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
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
    """A row a seed, and the medians over seeds."""
    columns = ["seed", "ended, s", "exit code", "env steps"]
    columns += ["best policy", "after env steps", "95% interval", "last policy", "95% interval"]
    rows = [_row(run) for run in trained]
    bests, lasts = (_median(returns) for returns in ([run.best for run in trained], [run.last for run in trained]))
    rows.append(["median", median(run.seconds for run in trained), None, None, bests, None, None, lasts, None])
    if threshold is not None:
        columns.append(f"s to {threshold:,g}")
        times = [run.reached(threshold) for run in trained]
        reached = [when for when in times if when is not None]
        all_reached = len(reached) == len(times)
        cells: list[result.Cell] = ["not reached" if when is None else when for when in times]
        cells.append(median(reached) if all_reached else f"{len(reached)} of {len(times)} reached it")
        rows = [[*row, cell] for row, cell in zip(rows, cells, strict=True)]
    return result.Table(title, columns, rows)


def _median(evaluations: Sequence[dict[str, Any] | None]) -> float | None:
    """Median of mean returns, if all are there."""
    returns = [found["mean"] for found in evaluations if found is not None]
    return median(returns) if len(returns) == len(evaluations) else None


def _row(run: Trained) -> list[result.Cell]:
    start: list[result.Cell] = [str(run.seed), run.seconds, run.exit_code]
    if run.best is None or run.last is None:
        return [*start, None, "none", None, None, "none", None]
    best, last = (f"{low:,.0f} to {high:,.0f}" for low, high in (one["interval_95"] for one in (run.best, run.last)))
    return [*start, run.last["env_steps"], run.best["mean"], run.best["env_steps"], best, run.last["mean"], last]

"""Rates of one run over its number of ranks."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import tyro

from benchmarks import rates, result
from benchmarks.campaign import Campaign, Row, describe, failed, progress
from benchmarks.code import code_hash
from benchmarks.table import Cell, Table, show, span
from benchmarks.training_run import run_for
from pipeline.file_names import METRICS
from pipeline.tables import read_table

COLUMNS = ("env_steps", "gradient_steps")
NO_EVALUATION = 10**9  # env steps; the run always evaluates at its end


def scaling(
    tasks: tyro.conf.Positional[tuple[str, ...]] = ("Hopper-v5",),
    /,
    options: tyro.conf.Positional[tuple[str, ...]] = (),
    *,
    ranks: tuple[int, ...] = (1, 2),
    num_envs: int = 128,
    batch_size: int = 256,
    per_rank: bool = False,
    minutes: float = 1.0,
    repeats: int = 3,
    output: Path | None = None,
) -> None:
    """Env steps/s and updates/s of one training run on several ranks, which share the machine's cores or GPUs.

    The rates are those of the run's second half, without compilation and evaluation. The numbers of ranks take turns.
    The result file is written after each turn. The same command, given again, does the turns that are missing.

    Args:
        tasks: the tasks to train on.
        options: further options for `saltus train`, after a `--`.
        ranks: numbers of ranks.
        num_envs, batch_size: worlds and transitions per update, of the whole run.
        per_rank: multiply `num_envs` and `batch_size` by the number of ranks.
        minutes: length of a run.
        repeats: turns of each number of ranks.
        output: the file to write or to continue; by default benchmarks/results/scaling-cpu<cores>.jsonl.
    """
    settings = {
        "options": options, "num_envs": num_envs, "batch_size": batch_size, "per_rank": per_rank, "minutes": minutes,
        "repeats": repeats, "code": code_hash("saltus", "envs", "pipeline", "benchmarks/scaling.py"),
    }  # fmt: skip
    jobs = [{"task": task, "ranks": number} for task in tasks for number in ranks]
    campaign = Campaign(
        output or result.default_path("scaling"), "scaling", settings, jobs,
        complete=lambda row: len(row.get("turns", ())) >= repeats,
    )  # fmt: skip

    def describe_progress() -> str:
        done = [len(campaign.find(job).get("turns", ())) for job in jobs]
        left = sum(repeats - len(campaign.find(job).get("turns", ())) for job in campaign.remaining)
        return progress(sum(done), repeats * len(jobs), "turns", sum(map(failed, campaign.rows)), 60 * minutes * left)

    with campaign.interruptible(describe_progress):
        for turn in range(repeats):
            for job in campaign.remaining:
                row = campaign.find(job)
                if len(row.get("turns", ())) > turn:
                    continue
                campaign.say(describe_progress())
                factor = job["ranks"] if per_rank else 1
                sizes = {"--num-envs": num_envs * factor, "--batch-size": batch_size * factor, "--minutes": minutes}
                try:
                    measured = _train(job["task"], job["ranks"], [*_arguments(sizes), *options])
                    row = {**job, "turns": [*row.get("turns", ()), measured]}
                except (OSError, ValueError, RuntimeError) as error:
                    traceback.print_exc()
                    row = {**row, "error": describe(error)}
                campaign.put(row)
    show(tables(campaign.result), campaign.path)


def command(ranks: int, *arguments: object) -> list[str]:
    """The command line of saltus on a number of ranks of this machine."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"] if ranks > 1 else []
    return [sys.executable, "-m", *torchrun, "saltus", *map(str, arguments)]


def rates_of_second_half(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Env steps/s and gradient steps/s of a run's second half, and the share of it that a rank waits at most.

    Args:
        rows: those of metrics.csv.

    Raises:
        ValueError: fewer than two rows lie in the second half.
    """
    half = [row for row in rows if row["seconds"] >= rows[-1]["seconds"] / 2]
    if len(half) < 2:
        raise ValueError("the second half of the run has fewer than two rows of metrics: give more --minutes")
    seconds = half[-1]["seconds"] - half[0]["seconds"]
    waiting = [row["rank_waiting"] for row in half[1:] if "rank_waiting" in row]
    return {
        **{name: (half[-1][name] - half[0][name]) / seconds for name in COLUMNS},
        "waiting": median(waiting) if waiting else 0.0,
    }


def tables(found: result.Result) -> list[Table]:
    """The rates of each task over the number of ranks, compared with the first number."""
    settings = found.settings
    whose = "each rank" if settings["per_rank"] else "all ranks together"
    sizes = f"{settings['num_envs']} worlds and batch {settings['batch_size']} for {whose}"
    both = ["lowest to highest", "updates/s", "lowest to highest"]
    columns = ["ranks", "env steps/s", *both, "env steps ratio", "waiting"]
    return [
        Table(f"{task}, {sizes}", columns, [_cells(row, rows[0]) for row in rows])
        for task, rows in rates.by_task(found).items()
    ]


def _cells(row: Row, first: Row) -> list[Cell]:
    turns = row.get("turns", [])
    if not turns:
        return [row["ranks"], f"failed: {row.get('error', 'not measured')}", *[None] * 5]
    cells: list[Cell] = [row["ranks"]]
    for name in COLUMNS:
        values = [turn[name] for turn in turns]
        cells += [median(values), span(min(values), max(values))]
    pairs = zip(turns, first.get("turns", []), strict=False)
    ratios = [turn[COLUMNS[0]] / before[COLUMNS[0]] for turn, before in pairs]
    waiting = f"{median(turn['waiting'] for turn in turns):.0%}"
    return [*cells, None if row is first or not ratios else median(ratios), None if row["ranks"] == 1 else waiting]


def _arguments(sizes: Mapping[str, Any]) -> list[str]:
    return [text for name, value in sizes.items() for text in (name, str(value))]


def _train(task: str, ranks: int, arguments: Sequence[str]) -> dict[str, float]:
    with TemporaryDirectory(prefix="saltus-", ignore_cleanup_errors=True) as folder:
        run_dir = Path(folder) / "run"
        whole = command(ranks, "train", task, "--run-dir", run_dir, "--eval-every", NO_EVALUATION, *arguments)
        exit_code, _, lines = run_for(None, whole, None)
        if exit_code:
            raise RuntimeError(f"exit code {exit_code}: {lines[-1][1] if lines else 'no output'}")
        return rates_of_second_half(read_table(run_dir / METRICS))

"""Returns over env steps of many seeds and variants of a recipe, trained at once on one device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import tyro

from benchmarks import result, training_run
from benchmarks.installed import require_statistics
from benchmarks.population.evaluation import EvaluationPool
from benchmarks.population.members import Member, make_members
from benchmarks.population.runs import folders, save_runs
from benchmarks.population.saved import SavedState
from benchmarks.population.trainer import Trainer
from benchmarks.seeds import Seeds
from benchmarks.statistics import first_reached, interquartile_mean, median_time, share_below, worst_time
from benchmarks.table import Cell, Table, show
from envs.physics.cpu import available_cores
from pipeline.stop_signal import StopSignal
from saltus.errors import SaltusError


def population(
    task: tyro.conf.Positional[str],
    options: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    seeds: Seeds = tuple(range(8)),
    variants: tuple[str, ...] = ("",),
    threshold: float | None = None,
    processes: int | None = None,
    output: Path | None = None,
    runs: Path | None = None,
) -> None:
    """Returns over env steps of many seeds and variants of a recipe at once, on one device.

    All members share one batch of worlds, one replay buffer and one compiled update, which is mapped over them. Each
    learns from its own transitions only. Evaluations run in other processes, from the initial states of `saltus train`
    with the member's seed; the other random numbers differ from that run's. The file is written at every evaluation.

    At Ctrl-C or SIGTERM, and every --checkpoint-every env steps, the whole state is saved in a folder next to the file,
    with the ending .state. The same command continues from it, bit for bit on the CPU.

    Args:
        task: the task to train on.
        options: options for `saltus train` that all members get, after a `--`. Options of logging and of the run's
            directory have no effect.
        seeds: the seeds of each variant.
        variants: each a list of settings as NAME=VALUE in one string, such as "gamma=0.995 actor_lr=3e-4"; "" is the
            recipe itself. Names are actor_lr, critic_lr, alpha_lr, alpha_init, gamma, target_entropy_scale,
            noise_repeat.
        threshold: a mean return; the env steps to the first evaluation that reaches it are reported.
        processes: processes that evaluate; by default one per core, except for one core.
        output: the file to write; by default benchmarks/results/population-<task>-cpu<cores>.jsonl.
        runs: a directory in which each member is saved at the end, with its best and its last policy, as a run for
            `saltus evaluate`, `saltus play` and `saltus export`; by default none is.
    """
    require_statistics()
    num_processes = max(1, available_cores() - 1) if processes is None else processes
    if num_processes < 1:
        raise SystemExit(f"--processes {processes}: give at least 1")
    try:
        members = make_members(task, options, variants, seeds)
        run_dirs = [] if runs is None else folders(runs, members)
        trainer = Trainer([member.config for member in members])
    except (SaltusError, MemoryError) as error:
        raise SystemExit(str(error)) from None
    name = members[0].config.task_name
    settings = {
        "task": task,
        "options": options,
        "seeds": seeds,
        "variants": [*dict.fromkeys(member.variant for member in members)],
        "threshold": threshold,
        "processes": num_processes,
        "config": members[0].config.to_dict(),
    }
    path = output or result.default_path(f"population-{name}")
    saved = SavedState(path, settings)
    result.replaceable(path, "population", output is not None or bool(saved))
    with (
        EvaluationPool([member.config for member in members], num_processes) as pool,
        StopSignal(partial(print, flush=True)) as stop,
    ):
        if saved:
            saved.restore(trainer, pool)
            print(f"continuing from {trainer.env_steps:,} env steps", flush=True)
        try:
            _train(trainer, pool, partial(_save, path, settings, members, pool), saved, stop)
        except SaltusError as error:
            raise SystemExit(str(error)) from None
    _save(path, settings, members, pool)
    if not trainer.finished:
        raise SystemExit(
            f"stopped at {trainer.env_steps:,} env steps. {path} is up to date; the same command continues"
        )
    if runs is not None:
        save_runs(run_dirs, members, trainer, pool)
    saved.remove()
    show(tables(result.read(path)), path)


def _save(path: Path, settings: Mapping[str, Any], members: Sequence[Member], pool: EvaluationPool) -> None:
    result.write(path, "population", settings, measurements(members, pool))


def tables(found: result.Result) -> list[Table]:
    """The statistics of all variants."""
    task = found.settings["task"].rpartition(":")[2]
    measured = [row for row in found.measurements if row["curve"] or row.get("diverged")]
    steps = max((row["curve"]["env_steps"][-1] for row in measured if row["curve"]), default=0)
    return [summarize(f"{task}: returns up to {steps:,} env steps", measured, found.settings["threshold"])]


def _train(
    trainer: Trainer, pool: EvaluationPool, write: Callable[[], None], saved: SavedState, stopping: Callable[[], bool]
) -> None:
    """Train and evaluate all members to the end, or until `stopping()`; write the result file at each evaluation."""
    start, before = monotonic(), trainer.env_steps
    while not (trainer.finished or stopping()):
        trainer.step()
        if trainer.evaluation_due:
            pool.submit(trainer.env_steps, trainer.agents.policy_state())
            pending = pool.collect()
            write()
            seconds = monotonic() - start
            diverged = sum(steps is not None for steps in pool.diverged)
            left = seconds / (trainer.env_steps - before) * max(0, trainer.total_env_steps - trainer.env_steps)
            print(
                f"{trainer.env_steps:,} of {trainer.total_env_steps:,} env steps, {seconds:,.0f} s, "
                f"about {left:,.0f} s left, {pending} evaluations to do" + f", {diverged} diverged" * bool(diverged),
                flush=True,
            )  # fmt: skip
        if trainer.checkpoint_due:
            saved.save(trainer, pool)
    if trainer.finished:
        pool.collect(wait=True)
    else:
        saved.save(trainer, pool)


def measurements(members: Sequence[Member], pool: EvaluationPool) -> list[dict[str, Any]]:
    """One row for each member: its variant, its seed, the columns of its learning curve, and if it diverged."""
    return [
        {
            "variant": member.variant,
            "seed": member.config.seed,
            "curve": training_run.columns(curve),
            "diverged": diverged,
        }
        for member, curve, diverged in zip(members, pool.curves, pool.diverged, strict=True)
    ]


def summarize(title: str, measured: Sequence[Mapping[str, Any]], threshold: float | None) -> Table:
    """One row of statistics over seeds for each variant.

    Members that diverged count in all columns but the last returns, with their evaluations until then.

    Args:
        title: the table's title.
        measured: from `measurements`.
        threshold: as for `population`.
    """
    columns = ["variant", "seeds", "best, interquartile mean", "last, interquartile mean"]
    if threshold is not None:
        level = f"{threshold:,g}"
        columns += [f"env steps to {level}, median", "worst", "reached", f"below {level} afterwards"]
    any_diverged = any(one.get("diverged") for one in measured)
    columns += ["diverged"] * any_diverged
    rows: list[list[Cell]] = []
    for variant in dict.fromkeys(one["variant"] for one in measured):
        members = [one for one in measured if one["variant"] == variant]
        curves = [one["curve"] for one in members]
        returns = [curve.get("return", []) for curve in curves]
        diverged = [one["diverged"] for one in members if one.get("diverged")]
        last = [one["curve"]["return"][-1] for one in members if not one.get("diverged")]
        cells: list[Cell] = [variant or "the recipe itself", len(curves)]
        cells += [_interquartile_mean([max(one) for one in returns if one]), _interquartile_mean(last)]
        if threshold is not None:
            firsts = [first_reached(one, threshold) for one in returns]
            pairs = zip(curves, firsts, strict=True)
            times = [None if first is None else curve["env_steps"][first] for curve, first in pairs]
            counts = [share_below(one, threshold, threshold) for one in returns]
            below, later = (sum(part) for part in zip(*counts, strict=True))
            reached = sum(first is not None for first in firsts)
            cells += [median_time(times) or "not reached", worst_time(times) or "not reached"]
            cells += [f"{reached} of {len(firsts)}", f"{100 * below / later:.0f}% of {later}" if later else None]
        if any_diverged:
            cells.append(f"{len(diverged)}, the first before {min(diverged):,} env steps" if diverged else 0)
        rows.append(cells)
    return Table(title, columns, rows)


def _interquartile_mean(values: Sequence[float]) -> str | None:
    found = interquartile_mean(values)
    if found is None:
        return None
    interval = "" if found.low is None else f" ({found.low:,.0f} to {found.high:,.0f})"
    return f"{found.value:,.0f}{interval}"

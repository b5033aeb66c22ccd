"""Returns over env steps of many seeds and variants of a recipe, trained at once on one device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import tyro

from benchmarks import json_result as result
from benchmarks.population.evaluation import EvaluationPool
from benchmarks.population.members import Member, make_members
from benchmarks.population.trainer import Trainer
from benchmarks.seeds import Seeds
from benchmarks.statistics import first_reached, interquartile_mean, median_time, share_below, worst_time
from envs.physics.cpu import available_cores
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
) -> None:
    """Returns over env steps of many seeds and variants of a recipe at once, on one device.

    All members share one batch of worlds, one replay buffer and one compiled update, which is mapped over them. Each
    learns from its own transitions only. Evaluations run in other processes, from the initial states of `saltus train`
    with the member's seed; the other random numbers differ from that run's. The file is written at every evaluation.

    Args:
        task: the task to train on.
        options: options for `saltus train` that all members get, after a `--`. Options of logging, checkpoints and the
            run's directory have no effect.
        seeds: the seeds of each variant.
        variants: each a list of settings as NAME=VALUE in one string, such as "gamma=0.995 actor_lr=3e-4"; "" is the
            recipe itself. Names are actor_lr, critic_lr, alpha_lr, alpha_init, gamma, target_entropy_scale,
            noise_repeat.
        threshold: a mean return; the env steps to the first evaluation that reaches it are reported.
        processes: processes that evaluate; by default one per core, except for one core.
        output: the file to write; by default benchmarks/results/population-<task>-cpu<cores>.json.
    """
    num_processes = max(1, available_cores() - 1) if processes is None else processes
    if num_processes < 1:
        raise SystemExit(f"--processes {processes}: give at least 1")
    try:
        members = make_members(task, options, variants, seeds)
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
    path = output or result.RESULTS / f"population-{name}-cpu{available_cores()}.json"
    with EvaluationPool([member.config for member in members], num_processes) as pool:
        _train(trainer, pool, lambda: result.write(path, settings, measurements(members, pool.curves), []))
    measured = measurements(members, pool.curves)
    table = summarize(f"{name}: returns after {trainer.env_steps:,} env steps", measured, threshold)
    result.publish(f"population-{name}", path, settings, measured, [table])


def _train(trainer: Trainer, pool: EvaluationPool, save: Callable[[], None]) -> None:
    """Train and evaluate all members to the end; save at each evaluation."""
    start = monotonic()
    while not trainer.finished:
        trainer.step()
        if trainer.evaluation_due:
            pool.submit(trainer.env_steps, trainer.agents.policy_state())
            pending = pool.collect()
            save()
            seconds = monotonic() - start
            print(f"{trainer.env_steps:,} env steps, {seconds:,.0f} s, {pending} evaluations to do", flush=True)
    pool.collect(wait=True)


def measurements(members: Sequence[Member], curves: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, Any]]:
    """One row for each member: its variant, its seed, and its evaluations as a list for each number."""
    return [
        {
            "variant": member.variant,
            "seed": member.config.seed,
            "curve": {name: [row[name] for row in curve] for name in (curve[0] if curve else ())},
        }
        for member, curve in zip(members, curves, strict=True)
    ]


def summarize(title: str, measured: Sequence[Mapping[str, Any]], threshold: float | None) -> result.Table:
    """One row of statistics over seeds for each variant.

    Args:
        title: the table's title.
        measured: from `measurements`.
        threshold: as for `population`.
    """
    columns = ["variant", "seeds", "best, interquartile mean", "last, interquartile mean"]
    if threshold is not None:
        level = f"{threshold:,g}"
        columns += [f"env steps to {level}, median", "worst", "reached", f"below {level} afterwards"]
    rows: list[list[result.Cell]] = []
    for variant in dict.fromkeys(one["variant"] for one in measured):
        curves = [one["curve"] for one in measured if one["variant"] == variant]
        returns = [curve["return_mean"] for curve in curves]
        cells: list[result.Cell] = [variant or "the recipe itself", len(curves)]
        cells += [_interquartile_mean([max(one) for one in returns]), _interquartile_mean([one[-1] for one in returns])]
        if threshold is not None:
            firsts = [first_reached(one, threshold) for one in returns]
            pairs = zip(curves, firsts, strict=True)
            times = [None if first is None else curve["env_steps"][first] for curve, first in pairs]
            counts = [share_below(one, threshold, threshold) for one in returns]
            below, later = (sum(part) for part in zip(*counts, strict=True))
            reached = sum(first is not None for first in firsts)
            cells += [median_time(times) or "not reached", worst_time(times) or "not reached"]
            cells += [f"{reached} of {len(firsts)}", f"{100 * below / later:.0f}% of {later}" if later else None]
        rows.append(cells)
    return result.Table(title, columns, rows)


def _interquartile_mean(values: Sequence[float]) -> str:
    found = interquartile_mean(values)
    assert found is not None
    interval = "" if found.low is None else f" ({found.low:,.0f} to {found.high:,.0f})"
    return f"{found.value:,.0f}{interval}"

"""Returns over env steps of several recipes: what a step of the worlds is worth to each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from matplotlib.figure import Figure

from benchmarks import result
from benchmarks.training import SALTUS, read_evaluations
from envs.physics.cpu import available_cores
from pipeline.presets import names

LEVELS = (10_000, 15_000, 20_000, 25_000, 50_000, 75_000, 100_000)


@dataclass(frozen=True)
class Curve:
    """What a run has come to.

    Attributes:
        preset: its recipe.
        seed: its seed.
        total_env_steps: for how many it was made; fewer are done where it was stopped.
        rows: of its evaluations.csv.
        final: what `saltus evaluate` found of its last policy, or None where there was nothing to evaluate.
    """

    preset: str
    seed: int
    total_env_steps: int
    rows: list[dict[str, float]]
    final: dict[str, Any] | None

    def at(self, env_steps: int) -> float | None:
        """The mean return of the evaluation after so many env steps, or None."""
        return next((row["return_mean"] for row in self.rows if row["env_steps"] == env_steps), None)


def recipes(
    task: tyro.conf.Positional[str],
    options: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    presets: tuple[str, ...] = ("sac:100000", "crossq:100000", "redq:25000", "droq:25000"),
    seeds: tuple[int, ...] = (0,),
    eval_every: int = 5_000,
    episodes: int = 100,
    folder: Path = Path("runs/recipes"),
    output: Path | None = None,
) -> None:
    """Returns over env steps of `saltus train TASK --preset ...`, one run on each core at a time.

    Runs stay in `folder`, and one that is there already is continued or, if it had come to its end, taken as it is: a
    command that was interrupted goes on where it was.

    Args:
        task: what to train on.
        options: more options for `saltus train`, after a `--`.
        presets: each with the env steps to train for, as PRESET:STEPS.
        seeds: the seeds of each.
        eval_every: env steps between evaluations.
        episodes: episodes of the final evaluation.
        folder: where the runs are.
        output: the file to write; by default benchmarks/results/recipes-<task>-<hardware>.json.
    """
    pairs = [_name_and_steps(one) for one in presets]
    jobs = [(name, seed, steps) for seed in seeds for name, steps in pairs]

    def run(job: tuple[str, int, int]) -> Curve:
        return _run(task, *job, eval_every, episodes, folder, options)

    with ThreadPoolExecutor(available_cores()) as pool:
        curves = sorted(pool.map(run, jobs), key=lambda curve: [name for name, _ in pairs].index(curve.preset))
    settings = {"task": task, "options": options, "presets": presets, "seeds": seeds, "eval_every": eval_every}
    name = task.rpartition(":")[2]
    table = _table(f"{name}: mean return after env steps", curves, episodes)
    path = result.publish(f"recipes-{name}", output, settings, map(asdict, curves), [table])
    _draw(path.with_suffix(".png"), f"{name}: returns over env steps", curves)


def _name_and_steps(text: str) -> tuple[str, int]:
    name, _, steps = text.partition(":")
    if name not in names() or not steps.isdecimal():
        raise SystemExit(f"{text!r} is not PRESET:STEPS, like sac:100000; there are {', '.join(names())}")
    return name, int(steps)


def _run(
    task: str, preset: str, seed: int, steps: int, eval_every: int, episodes: int, folder: Path, options: Sequence[str]
) -> Curve:
    run_dir = folder / f"{preset}-s{seed}"
    # One thread each: the runs share nothing, and their threads would only wait for each other.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    every = ("--eval-every", str(eval_every), "--log-every", str(eval_every), "--checkpoint-every", str(5 * eval_every))
    train = ("train", task, "--preset", preset, "--seed", str(seed), "--total-env-steps", str(steps), *every)
    done = read_evaluations(run_dir)
    if not run_dir.exists():
        _saltus(environment, *train, "--num-threads", "1", "--run-dir", str(run_dir), *options)
    elif not done or done[-1]["env_steps"] < steps:
        _saltus(environment, "resume", str(run_dir))
    _saltus(environment, "evaluate", str(run_dir), "--episodes", str(episodes))
    evaluation = run_dir / "evaluation.json"
    final = json.loads(evaluation.read_text()) if evaluation.exists() else None
    return Curve(preset, seed, steps, read_evaluations(run_dir), final)


def _saltus(environment: dict[str, str], *arguments: str) -> None:
    subprocess.run([*SALTUS, *arguments], env=environment, stdout=sys.stderr, check=False)


def _table(title: str, curves: Sequence[Curve], episodes: int) -> result.Table:
    levels = [level for level in LEVELS if any(curve.at(level) is not None for curve in curves)]
    columns = ["recipe", "seed", *(f"{level:,}" for level in levels), f"last policy, {episodes} episodes", "env steps"]
    rows: list[list[result.Cell]] = []
    for curve in curves:
        final = curve.final or {"mean": None, "env_steps": None}
        cells: list[result.Cell] = [curve.at(level) for level in levels]
        rows.append([curve.preset, str(curve.seed), *cells, final["mean"], final["env_steps"]])
    return result.Table(title, columns, rows)


def _draw(path: Path, title: str, curves: Sequence[Curve]) -> None:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    drawn = list(dict.fromkeys(curve.preset for curve in curves))
    for curve in curves:
        first = curve is next(other for other in curves if other.preset == curve.preset)
        steps, returns = ([row[name] for row in curve.rows] for name in ("env_steps", "return_mean"))
        color, label = f"C{drawn.index(curve.preset)}", curve.preset if first else None
        axes.plot(steps, returns, marker=".", color=color, label=label)
    axes.set(title=title, xlabel="env steps", ylabel="mean return of evaluations")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)

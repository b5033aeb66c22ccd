"""Returns over env steps of several recipes, and of a peer: what a step of the worlds is worth to each."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import tyro

from benchmarks import curves, result
from benchmarks.training import SALTUS
from envs.physics.cpu import available_cores
from pipeline.presets import names

PEER = "stable-baselines3"
LEVELS = (10_000, 15_000, 20_000, 25_000, 50_000, 75_000, 100_000)


@dataclass(frozen=True)
class Curve:
    """What a run has come to.

    Attributes:
        recipe: its preset and what it changes of that, or the peer's name.
        seed: its seed.
        total_env_steps: for how many it was made; fewer are done where it was stopped.
        exit_code: of the process that trained last, 0 for a run that had come to its end before.
        rows: of its evaluations.csv.
        final: what was found of its last policy, or None where there was nothing to evaluate.
        config: its config.json, versions included.
    """

    recipe: str
    seed: int
    total_env_steps: int
    exit_code: int
    rows: list[dict[str, float]]
    final: dict[str, Any] | None
    config: dict[str, Any] | None

    def at(self, env_steps: int) -> float | None:
        """The mean return of the evaluation after so many env steps, or None."""
        return next((row["return_mean"] for row in self.rows if row["env_steps"] == env_steps), None)


@dataclass(frozen=True)
class Recipe:
    """What to train: a preset, or the peer.

    Attributes:
        name: of the preset or the peer.
        total_env_steps: for how long.
        options: what it changes of the preset.
    """

    name: str
    total_env_steps: int
    options: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """From NAME:STEPS and options for `saltus train`, all in one string."""
        first, *options = text.split() or [""]
        name, _, steps = first.partition(":")
        if name not in (PEER, *names()) or not steps.isdecimal():
            raise SystemExit(f"{text!r} is not NAME:STEPS, like sac:100000; there are {', '.join(names())} and {PEER}")
        if name == PEER and options:
            raise SystemExit(f"{text!r}: {PEER} takes no options of saltus: {' '.join(options)}")
        return cls(name, int(steps), tuple(options))

    @property
    def label(self) -> str:
        """Name and options."""
        return " ".join((self.name, *self.options))

    @property
    def slug(self) -> str:
        """Name and options, as a folder can be called."""
        return re.sub(r"[^\w.]+", "-", self.label)


def recipes(
    task: tyro.conf.Positional[str],
    options: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    recipes: tuple[str, ...] = ("sac:100000", "crossq:100000", "redq:25000", "droq:25000"),
    seeds: tuple[int, ...] = (0,),
    eval_every: int = 5_000,
    episodes: int = 100,
    folder: Path = Path("runs/recipes"),
    output: Path | None = None,
) -> None:
    """Returns over env steps of recipes, one run on each core at a time.

    Runs stay in `folder`. One that is there already is continued (the peer's: begun again) or, if it had come to its
    end, taken as it is: a command that was interrupted goes on where it was.

    Args:
        task: what to train on.
        options: options for `saltus train` that all recipes of saltus get, after a `--`.
        recipes: NAME:STEPS each, a preset or stable-baselines3 with the env steps to train for; where a preset is to be
            changed, its options follow: "sac:100000 --critic-lr 1e-3".
        seeds: the seeds of each.
        eval_every: env steps between evaluations.
        episodes: episodes of the final evaluation.
        folder: where the runs are.
        output: the file to write; by default benchmarks/results/recipes-<task>-<hardware>.json.
    """
    parsed = [Recipe.parse(one) for one in recipes]
    jobs = [(recipe, seed) for seed in seeds for recipe in parsed]

    def run(job: tuple[Recipe, int]) -> Curve:
        recipe, seed = job
        run_dir = folder / f"{recipe.slug}-s{seed}"
        train = _train_peer if recipe.name == PEER else _train
        exit_code = train(task, recipe, seed, run_dir, eval_every, episodes, options)
        read = _read_json(run_dir / "evaluation.json"), _read_json(run_dir / "config.json")
        return Curve(recipe.label, seed, recipe.total_env_steps, exit_code, curves.read_evaluations(run_dir), *read)

    with ThreadPoolExecutor(available_cores()) as pool:
        runs = sorted(pool.map(run, jobs), key=lambda curve: [recipe.label for recipe in parsed].index(curve.recipe))
    settings = {"task": task, "options": options, "recipes": recipes, "seeds": seeds, "eval_every": eval_every}
    name = task.rpartition(":")[2]
    table = _table(f"{name}: mean return after env steps", runs, episodes)
    path = result.publish(f"recipes-{name}", output, settings, map(asdict, runs), [table])
    drawn: dict[str, list[curves.Points]] = {}
    for curve in runs:
        points = [row["env_steps"] for row in curve.rows], [row["return_mean"] for row in curve.rows]
        drawn.setdefault(curve.recipe, []).append(points)
    curves.draw(path.with_suffix(".png"), f"{name}: returns over env steps", "env steps", drawn)


def _train(
    task: str, recipe: Recipe, seed: int, run_dir: Path, eval_every: int, episodes: int, options: Sequence[str]
) -> int:
    """Train with saltus, or go on, and evaluate the last policy; return the training's exit code."""
    exit_code, done = 0, curves.read_evaluations(run_dir)
    if not run_dir.exists():
        every = ("--eval-every", eval_every, "--log-every", eval_every, "--checkpoint-every", 5 * eval_every)
        what = (task, "--preset", recipe.name, "--seed", seed, "--total-env-steps", recipe.total_env_steps)
        where = ("--num-threads", 1, "--run-dir", run_dir)
        exit_code = _run(*SALTUS, "train", *what, *every, *where, *recipe.options, *options)
    elif not done or done[-1]["env_steps"] < recipe.total_env_steps:
        exit_code = _run(*SALTUS, "resume", run_dir)
    _run(*SALTUS, "evaluate", run_dir, "--episodes", episodes)
    return exit_code


def _train_peer(
    task: str, recipe: Recipe, seed: int, run_dir: Path, eval_every: int, episodes: int, _options: Sequence[str]
) -> int:
    """Train with Stable-Baselines3, unless that is done; return the exit code."""
    if (run_dir / "evaluation.json").exists():
        return 0
    what = ("--task", task, "--seed", seed, "--total-env-steps", recipe.total_env_steps, "--eval-every", eval_every)
    where = ("--final-episodes", episodes, "--run-dir", run_dir)
    return _run(sys.executable, "-m", "benchmarks.peer_training", *what, *where)


def _run(*command: str | int | Path) -> int:
    # One thread each: the runs share nothing, and their threads would only wait for each other.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([str(part) for part in command], env=environment, stdout=sys.stderr, check=False).returncode


def _read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _table(title: str, runs: Sequence[Curve], episodes: int) -> result.Table:
    """A row a run, and the means over the seeds of each recipe that has several."""
    levels = [level for level in LEVELS if any(curve.at(level) is not None for curve in runs)]
    last = f"last policy, {episodes} episodes"
    columns = ["recipe", "seed", *(f"{level:,}" for level in levels), last, "env steps", "exit code"]
    rows: list[list[result.Cell]] = []
    for recipe in dict.fromkeys(curve.recipe for curve in runs):
        seeds = [curve for curve in runs if curve.recipe == recipe]
        for curve in seeds:
            final = curve.final or {"mean": None, "env_steps": None}
            cells: list[result.Cell] = [curve.at(level) for level in levels]
            rows.append([recipe, str(curve.seed), *cells, final["mean"], final["env_steps"], curve.exit_code])
        if len(seeds) > 1:
            means = [_mean_and_deviation([curve.at(level) for curve in seeds]) for level in levels]
            finals = _mean_and_deviation([curve.final["mean"] if curve.final else None for curve in seeds])
            rows.append([recipe, "all", *means, finals, None, None])
    return result.Table(title, columns, rows)


def _mean_and_deviation(values: Sequence[float | None]) -> str | None:
    known = [value for value in values if value is not None]
    return f"{mean(known):,.0f} +- {stdev(known):,.0f}" if len(known) == len(values) else None

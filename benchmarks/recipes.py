"""Returns over env steps of several recipes, and of a peer: what a step of the worlds is worth to each."""

from __future__ import annotations

import hashlib
import json
import os
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
from benchmarks.training import SALTUS, read_json
from envs.physics.cpu import available_cores
from pipeline import checkpoint
from pipeline.logger import EVALUATIONS, read_table
from pipeline.presets import names

Part = str | int | Path
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
        """The mean return of the first evaluation after so many env steps, or up to a twentieth more; or None."""
        within = (row["return_mean"] for row in self.rows if env_steps <= row["env_steps"] <= 1.05 * env_steps)
        return next(within, None)


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
    labels = [recipe.label for recipe in parsed]
    if len({*labels}) < len(labels):
        raise SystemExit(f"{', '.join(recipes)}: each recipe is trained once, for one number of env steps")
    name = task.rpartition(":")[2]

    def run(job: tuple[Recipe, int]) -> Curve:
        recipe, seed = job
        arguments: list[Part] = ["--seed", seed, "--total-env-steps", recipe.total_env_steps]
        arguments += ["--eval-every", eval_every]
        if recipe.name == PEER:
            arguments = ["--task", task, *arguments, "--final-episodes", episodes]
        else:
            every: list[Part] = ["--log-every", eval_every, "--checkpoint-every", 5 * eval_every, "--num-threads", 1]
            arguments = [task, "--preset", recipe.name, *arguments, *every, *recipe.options, *options]
        # Named after all that decides what it computes, so that it is not taken for another one.
        key = hashlib.sha256(repr(arguments).encode()).hexdigest()[:8]
        run_dir = folder / f"{name}-{recipe.name}-s{seed}-{key}"
        train = _train_peer if recipe.name == PEER else _train
        exit_code = train(run_dir, arguments, recipe.total_env_steps, episodes)
        read = read_json(run_dir / "evaluation.json"), read_json(run_dir / "config.json")
        return Curve(recipe.label, seed, recipe.total_env_steps, exit_code, read_table(run_dir / EVALUATIONS), *read)

    with ThreadPoolExecutor(available_cores()) as pool:
        jobs = [(recipe, seed) for seed in seeds for recipe in parsed]
        runs = sorted(pool.map(run, jobs), key=lambda curve: labels.index(curve.recipe))
    settings = {"task": task, "options": options, "recipes": recipes, "seeds": seeds, "eval_every": eval_every}
    table = _table(f"{name}: mean return after env steps", runs, episodes)
    path = result.publish(f"recipes-{name}", output, settings, map(asdict, runs), [table])
    drawn: dict[str, list[curves.Points]] = {}
    for curve in runs:
        points = [row["env_steps"] for row in curve.rows], [row["return_mean"] for row in curve.rows]
        drawn.setdefault(curve.recipe, []).append(points)
    curves.draw(path.with_suffix(".png"), f"{name}: returns over env steps", "env steps", drawn)


def _train(run_dir: Path, arguments: Sequence[Part], total_env_steps: int, episodes: int) -> int:
    """Train with saltus, or go on, and evaluate the last policy; return the exit code of what failed, or 0."""
    exit_code, done = 0, read_table(run_dir / EVALUATIONS)
    if not checkpoint.find(run_dir / "checkpoints"):
        exit_code = _run(*SALTUS, "train", *arguments, "--run-dir", run_dir)
    elif not done or done[-1]["env_steps"] < total_env_steps:
        exit_code = _run(*SALTUS, "resume", run_dir)
    elif _is_evaluated(run_dir / "evaluation.json", total_env_steps, episodes):
        return 0
    (run_dir / "evaluation.json").unlink(missing_ok=True)  # of another policy, if there is one
    evaluated = _run(*SALTUS, "evaluate", run_dir, "--policy", "last", "--episodes", episodes)
    return exit_code or evaluated


def _is_evaluated(path: Path, env_steps: int, episodes: int) -> bool:
    """Whether a whole evaluation.json is there, of the last policy after so many env steps."""
    try:
        known = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return False
    return (known["policy"], len(known["returns"])) == ("last", episodes) and known["env_steps"] >= env_steps


def _train_peer(run_dir: Path, arguments: Sequence[Part], _total_env_steps: int, _episodes: int) -> int:
    """Train with Stable-Baselines3, unless that is done; return the exit code."""
    if (run_dir / "evaluation.json").exists():
        return 0
    return _run(sys.executable, "-m", "benchmarks.peer_training", *arguments, "--run-dir", run_dir)


def _run(*command: Part) -> int:
    # One thread each: the runs share nothing, and their threads would only wait for each other.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([str(part) for part in command], env=environment, stdout=sys.stderr, check=False).returncode


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

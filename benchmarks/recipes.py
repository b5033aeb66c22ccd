"""Sample efficiency: returns over env steps of several recipes and of Stable-Baselines3."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import tyro

from benchmarks import checkout, pictures, result
from benchmarks.campaign import progress
from benchmarks.cores import core_sets, run_pinned
from benchmarks.seeds import Seeds
from benchmarks.table import Cell, Table, show
from benchmarks.training_run import SALTUS, columns, final, present_names, task_name
from pipeline import checkpoint
from pipeline.file_names import CHECKPOINTS, EVALUATION, EVALUATION_OF_LAST, EVALUATIONS
from pipeline.presets import names
from pipeline.tables import read_table

Part = str | int | Path
PEER = "stable-baselines3"
LEVELS = (10_000, 15_000, 20_000, 25_000, 50_000, 75_000, 100_000)


@dataclass(frozen=True)
class Curve:
    """A run's learning curve and its last policy's evaluation.

    Attributes:
        recipe: the preset and the options that change it, or the peer's name.
        seed: the run's seed.
        total_env_steps: env steps that the run was made for; a run that was stopped has done fewer.
        exit_code: of the process that trained last; 0 for a run that was finished before.
        curve: the columns of evaluations.csv, see `training_run.COLUMNS`.
        last: the last policy's evaluation, see `training_run.FINAL`; None if there was nothing to evaluate.
    """

    recipe: str
    seed: int
    total_env_steps: int
    exit_code: int
    curve: dict[str, list[float]]
    last: dict[str, Any] | None

    def at(self, env_steps: int) -> float | None:
        """Mean return of the first evaluation at `env_steps` or at most 5% later; None if there is none."""
        points = zip(self.curve.get("env_steps", []), self.curve.get("return", []), strict=True)
        within = (value for steps, value in points if env_steps <= steps <= 1.05 * env_steps)
        return next(within, None)


@dataclass(frozen=True)
class Recipe:
    """A preset with options, or the peer.

    Attributes:
        name: of the preset or the peer.
        total_env_steps: env steps to train for.
        options: options for `saltus train` that change the preset.
    """

    name: str
    total_env_steps: int
    options: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Parse NAME:STEPS and options for `saltus train`, in one string."""
        first, *options = text.split() or [""]
        name, _, steps = first.partition(":")
        if name not in (PEER, *names()) or not steps.isdecimal():
            raise SystemExit(f"{text!r} is not NAME:STEPS, like sac:100000; names are {', '.join(names())} and {PEER}")
        if name == PEER and options:
            raise SystemExit(f"{text!r}: {PEER} takes no options of saltus: {' '.join(options)}")
        return cls(name, int(steps), tuple(options))

    @property
    def label(self) -> str:
        """The name and the options."""
        return " ".join((self.name, *self.options))


def recipes(
    task: tyro.conf.Positional[str],
    options: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    recipes: tuple[str, ...] = ("sac:100000", "crossq:100000", "redq:25000", "droq:25000"),
    seeds: Seeds = (0,),
    eval_every: int = 5_000,
    episodes: int = 100,
    folder: Path = Path("runs/recipes"),
    output: Path | None = None,
) -> None:
    """Returns over env steps of recipes, one run per core at a time.

    Runs are kept in `folder`. The same command, given again after an interruption, continues unfinished runs (the
    peer's: restarts them) and does not repeat finished ones.

    Args:
        task: the task to train on.
        options: options for `saltus train` that all recipes of saltus get, after a `--`.
        recipes: each NAME:STEPS, a preset or stable-baselines3 with the env steps to train for. Options that change the
            preset follow: "sac:100000 --critic-lr 1e-3".
        seeds: seeds and ranges of seeds of each recipe: 0 1 2 or 0-9.
        eval_every: env steps between evaluations.
        episodes: episodes of the final evaluation.
        folder: the folder of the runs.
        output: the file to write; by default benchmarks/results/recipes-<task>-cpu<cores>.jsonl.
    """
    parsed = [Recipe.parse(one) for one in recipes]
    labels = [recipe.label for recipe in parsed]
    if len({*labels}) < len(labels):
        raise SystemExit(f"{', '.join(recipes)}: name each recipe once, with one number of env steps")
    name = task_name(task)

    def run(job: tuple[Recipe, int]) -> Curve:
        recipe, seed = job
        arguments: list[Part] = ["--seed", seed, "--total-env-steps", recipe.total_env_steps]
        arguments += ["--eval-every", eval_every]
        if recipe.name == PEER:
            arguments = ["--task", task, *arguments, "--final-episodes", episodes]
        else:
            every: list[Part] = ["--log-every", eval_every, "--checkpoint-every", 5 * eval_every, "--num-threads", 1]
            arguments = [task, "--preset", recipe.name, *arguments, *every, *recipe.options, *options]
        # Named after everything that decides the run, so that no other run is mistaken for it.
        key = hashlib.sha256(repr(arguments).encode()).hexdigest()[:8]
        run_dir = folder / f"{name}-{recipe.name}-s{seed}-{key}"
        train = _train_peer if recipe.name == PEER else _train
        exit_code = train(run_dir, arguments, recipe.total_env_steps, episodes)
        curve = columns(read_table(run_dir / EVALUATIONS))
        last = final(run_dir / (EVALUATION if recipe.name == PEER else EVALUATION_OF_LAST))
        return Curve(recipe.label, seed, recipe.total_env_steps, exit_code, curve, last)

    jobs = [(recipe, seed) for seed in seeds for recipe in parsed]
    settings = {"task": task, "options": options, "recipes": recipes, "seeds": seeds, "eval_every": eval_every}
    path = result.replaceable(output or result.default_path(f"recipes-{name}"), "recipes", output is not None)
    runs: list[Curve] = []

    def add(curve: Curve) -> None:
        runs.append(curve)
        runs.sort(key=lambda curve: (labels.index(curve.recipe), seeds.index(curve.seed)))
        result.write(path, "recipes", settings | {"episodes": episodes}, map(asdict, runs))
        print(progress(len(runs), len(jobs), "runs", sum(bool(one.exit_code) for one in runs), None), flush=True)

    try:
        run_pinned(run, jobs, core_sets(1), add)
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command continues")
    found = result.read(path)
    show(tables(found), path)
    pictures.draw(found)


def tables(found: result.Result) -> list[Table]:
    """The mean returns of all runs."""
    title = f"{task_name(found.settings['task'])}: mean return after env steps"
    return [_table(title, _curves(found), found.settings["episodes"])]


def levels_table(found: result.Result) -> Table:
    """The mean returns of all runs at the same levels, whatever was reached."""
    columns = ["recipe", "seed", *(f"{level:,}" for level in LEVELS), "last policy", "env steps", "exit code"]
    rows: list[list[Cell]] = []
    for curve in _curves(found):
        end = curve.last or {"mean": None, "env_steps": None}
        levels = [_whole(curve.at(level)) for level in LEVELS]
        rows.append(
            [f"`{curve.recipe}`", str(curve.seed), *levels, _whole(end["mean"]), end["env_steps"], curve.exit_code]
        )
    return Table("", columns, rows)


def _curves(found: result.Result) -> list[Curve]:
    """The runs of a result file."""
    return [Curve(**row | {"recipe": present_names(row["recipe"])}) for row in found.measurements]


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _train(run_dir: Path, arguments: Sequence[Part], total_env_steps: int, episodes: int) -> int:
    """Train with saltus, or resume, and evaluate the last policy; return the exit code of the part that failed."""
    exit_code, done = 0, read_table(run_dir / EVALUATIONS)
    if not checkpoint.find(run_dir / CHECKPOINTS):
        exit_code = checkout.run(*SALTUS, "train", *arguments, "--run-dir", run_dir)
    elif not done or done[-1]["env_steps"] < total_env_steps:
        exit_code = checkout.run(*SALTUS, "resume", run_dir)
    elif _is_evaluated(run_dir / EVALUATION_OF_LAST, total_env_steps, episodes):
        return 0
    (run_dir / EVALUATION_OF_LAST).unlink(missing_ok=True)  # it may be of an earlier policy
    if not checkpoint.find(run_dir / CHECKPOINTS):
        return exit_code
    evaluated = checkout.run(*SALTUS, "evaluate", run_dir, "--policy", "last", "--episodes", episodes)
    return exit_code or evaluated


def _is_evaluated(path: Path, env_steps: int, episodes: int) -> bool:
    """Whether a complete evaluation of the last policy exists, after at least `env_steps`."""
    try:
        known = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return False
    return len(known["returns"]) == episodes and known["env_steps"] >= env_steps


def _train_peer(run_dir: Path, arguments: Sequence[Part], _total_env_steps: int, _episodes: int) -> int:
    """Train with Stable-Baselines3, unless the run is finished; return the exit code."""
    if (run_dir / EVALUATION).exists():
        return 0
    return checkout.run(sys.executable, "-m", "benchmarks.peer_training", *arguments, "--run-dir", run_dir)


def _table(title: str, runs: Sequence[Curve], episodes: int) -> Table:
    """One row per run, and the means over the seeds of each recipe with several seeds."""
    levels = [level for level in LEVELS if any(curve.at(level) is not None for curve in runs)]
    last = f"last policy, {episodes} episodes"
    columns = ["recipe", "seed", *(f"{level:,}" for level in levels), last, "env steps", "exit code"]
    rows: list[list[Cell]] = []
    for recipe in dict.fromkeys(curve.recipe for curve in runs):
        seeds = [curve for curve in runs if curve.recipe == recipe]
        for curve in seeds:
            end = curve.last or {"mean": None, "env_steps": None}
            cells: list[Cell] = [curve.at(level) for level in levels]
            rows.append([recipe, str(curve.seed), *cells, end["mean"], end["env_steps"], curve.exit_code])
        if len(seeds) > 1:
            means = [_mean_and_deviation([curve.at(level) for curve in seeds]) for level in levels]
            finals = _mean_and_deviation([curve.last["mean"] if curve.last else None for curve in seeds])
            rows.append([recipe, "all", *means, finals, None, None])
    return Table(title, columns, rows)


def _mean_and_deviation(values: Sequence[float | None]) -> str | None:
    known = [value for value in values if value is not None]
    return f"{mean(known):,.0f} +- {stdev(known):,.0f}" if len(known) == len(values) else None

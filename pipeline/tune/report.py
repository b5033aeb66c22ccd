"""The result of a sweep: lines, a table, the importance of options, commands, a picture."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from envs.environment_ref import resolve_environment
from envs.task_ref import TaskRef
from pipeline import files
from pipeline.console import print_line
from pipeline.tune.picture import draw
from pipeline.tune.plan import Plan
from pipeline.tune.search import flag, show_value, words
from pipeline.tune.sweep import ERROR, OWN, SECONDS, Sweep, original_number

SHOWN = 5  # trials in the table
FEWEST_FOR_IMPORTANCE = 50  # complete trials; with fewer, options without an effect often seem the most important
BEST_QUARTER = 0.25  # the trials that the others are compared with; Optuna's tenth is noisier
CHECKED_SEEDS = 5
PICTURE = "tune.png"


def ranked(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The complete trials, the best first."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return sorted(complete, key=lambda trial: -(trial.value or 0.0))


def describe(trial: FrozenTrial) -> str:
    """The result of a trial in a few words."""
    if trial.state == TrialState.FAIL:
        return f"failed: {trial.user_attrs[ERROR]}"
    after = f"after {trial.user_attrs[SECONDS]:.0f} s"
    if trial.state == TrialState.PRUNED:
        return f"pruned at {max(trial.intermediate_values):,} env steps, {trial.value:,.4g}, {after}"
    return f"score {trial.value:,.4g} {after}"


def report(plan: Plan, sweep: Sweep, console: Console) -> None:
    """Print the best trials, failures, importances and commands, and draw the picture."""
    trials = sweep.done()
    best = ranked(trials)
    if best:
        console.print(_table(plan, sweep, best))
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    for message, number in Counter(trial.user_attrs[ERROR] for trial in failed).items():
        print_line(console, f"{number} of {len(trials)} trials failed: {message}")
    if not best:
        print_line(console, "no trial is complete")
        return
    picture = plan.folder / PICTURE
    files.write(picture, draw(plan, sweep, trials))
    print_line(console, f"picture: {picture}")
    options, new_seed = sweep.options_of(best[0]), plan.seeds[-1] + 1
    again = shlex.join(["saltus", "train", *plan.train_words(options, new_seed)])
    print_line(console, f"the best trial again, with a new seed:\n  {again}")
    if OWN not in best[0].user_attrs and isinstance(resolve_environment(plan.task), TaskRef):
        command = _comparison(plan, options, new_seed)
        print_line(
            console, f"the best of many scores is partly luck; compare with the preset on new seeds:\n  {command}"
        )


def _table(plan: Plan, sweep: Sweep, best: Sequence[FrozenTrial]) -> Table:
    """The best trials in columns, with the preset itself, and the importance of options if enough are complete."""
    shown = [*best[:SHOWN], *(trial for trial in best[SHOWN:] if OWN in trial.user_attrs)]
    runs = "1 run" if len(plan.seeds) == 1 else f"{len(plan.seeds)} runs"
    table = Table(title=f"Best trials. Score: mean return in the last third of {runs}")
    table.add_column("trial")
    for trial in shown:
        name = f"{original_number(trial)}, preset" if OWN in trial.user_attrs else f"{original_number(trial)}"
        table.add_column(name, justify="right")
    shares = _importances(plan, sweep, best)
    if shares:
        table.add_column("importance", justify="right")
    table.add_row("score", *(f"{trial.value:,.4g}" for trial in shown), end_section=True)
    options = [sweep.options_of(trial) for trial in shown]
    for name in plan.space:
        share = [f"{shares[flag(name)]:.0%}"] if shares else []
        table.add_row(flag(name), *(show_value(one[name]) for one in options), *share)
    return table


def _importances(plan: Plan, sweep: Sweep, best: Sequence[FrozenTrial]) -> dict[str, float]:
    """The share of each option in what sets the best quarter of trials apart (PED-ANOVA); empty: unknown."""
    if len(best) < FEWEST_FOR_IMPORTANCE or len(plan.space) < 2:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=BEST_QUARTER)
    return optuna.importance.get_param_importances(sweep.shared.study, evaluator=evaluator)


def _comparison(plan: Plan, options: dict[str, Any], seed: int) -> str:
    limit, fixed = [], [*plan.fixed]
    if "--minutes" in fixed:  # an option of the benchmark itself
        index = fixed.index("--minutes")
        limit, fixed = fixed[index : index + 2], fixed[:index] + fixed[index + 2 :]
    preset = shlex.join([plan.preset, *words(options)])
    command = ["python", "-m", "benchmarks", "training", plan.task, "--presets", plan.preset, preset]
    command += ["--seeds", f"{seed}-{seed + CHECKED_SEEDS - 1}", *limit]
    return shlex.join(command + (["--", *fixed] if fixed else []))

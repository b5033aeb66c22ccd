"""``saltus tune TASK``."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rich.console import Console

from envs.environment_ref import make_environment, options_class, resolve_environment
from envs.simulation import Simulation
from envs.task_options import decode_options
from pipeline.config import Config
from pipeline.logger import require_packages
from pipeline.search_ranges import Range
from pipeline.train_options import parse_options
from pipeline.tune.options import TuneOptions, default_folder, fixed_settings, fixed_words
from pipeline.tune.plan import Plan
from pipeline.tune.search import flag, own_values, search_space, show
from saltus.errors import SaltusError
from saltus.signals import signals_interrupt

if TYPE_CHECKING:
    from pipeline.tune.sweep import Claimed, Sweep

POLL = 2.0  # seconds between looks for a trial whose worker has ended
DATABASE = "tune.db"


def tune(arguments: list[str], console: Console) -> None:
    """Do the trials that no other worker does or has done; print the result of all when all have ended.

    Raises:
        SaltusError: options that do not work, or a database that cannot be used.
        SystemExit: at a signal, after the trial was given back; code 1 if no trial is complete.
    """
    plan = parse_plan(arguments)
    _require_optuna()
    import optuna

    from pipeline.tune.report import ranked, report

    own = _own_values(plan.config, plan.space)
    sweep = _open(plan, own)
    url = sweep.shared.url
    _print(console, _describe(plan, url, bool(own)))
    try:
        with signals_interrupt():
            _work(plan, sweep, console)
    except KeyboardInterrupt:
        sweep.release()
        sys.exit(f"interrupted: the trial of this worker is given back to {url}; the same command continues")
    except optuna.exceptions.StorageInternalError as error:
        raise SaltusError(
            f"--storage {url} cannot be reached any more ({error.__cause__ or error}): the same command continues"
        ) from error
    report(plan, sweep, console)
    if not ranked(sweep.done()):
        sys.exit(1)


def parse_plan(arguments: list[str]) -> Plan:
    """The sweep of a command line.

    Raises:
        SaltusError: options that do not work.
        SystemExit: help was asked for (code 0), or tyro refused an option (code 2).
    """
    parsed = parse_options(
        arguments, "tune", TuneOptions(), "runs/<task>-<preset>-tune, which holds a run for each trial"
    )
    config, options = parsed.config, parsed.extra
    options.check(config)
    require_packages(config)
    fixed = fixed_words(arguments)
    space = search_space(options.search, config, parsed.preset, fixed_settings(fixed))
    folder = parsed.run_dir.expanduser() if parsed.run_dir else default_folder(config, parsed.preset)
    task = next(word for word in arguments if word not in ("--preset", parsed.preset) and not word.startswith("--"))
    return Plan(task, parsed.preset, config, fixed, space, options, folder)


def _require_optuna() -> None:
    if find_spec("optuna") is None:
        raise SaltusError("saltus tune needs optuna: pip install -c constraints.txt optuna")


def _own_values(config: Config, space: Mapping[str, Range]) -> dict[str, Any]:
    """The values of the searched options without a search. Makes the task's environment, which checks the task."""
    reference = resolve_environment(config.task)
    options = decode_options(options_class(reference), config.task_options)
    env = make_environment(reference, 1, options, simulation=Simulation(physics="cpu", num_threads=1))
    return own_values(space, config, env.action_dim, env.dt)


def _open(plan: Plan, own: Mapping[str, Any]) -> Sweep:
    from pipeline.shared_study import SharedStudy
    from pipeline.tune.sweep import SeededSampler, Sweep, make_pruner

    options = plan.options
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise SaltusError(f"--run-dir {plan.folder} is a file: name a directory") from None
    url = options.storage or f"sqlite:///{plan.folder / DATABASE}"
    shared = SharedStudy(
        url,
        "tune",
        plan.identity(),
        options.lease,
        "the trials",
        direction="maximize",
        sampler=SeededSampler(options.sampler, plan.config.seed),
        pruner=make_pruner(plan.pruner, plan.config, len(plan.seeds)),
    )
    return Sweep(shared, plan.space, own, options.trials)


def _describe(plan: Plan, url: str, has_own: bool) -> str:
    """The sweep in some lines of text."""
    lines = [f"{plan.config.task_name}, preset {plan.preset}: {plan.options.trials} trials; storage: {url}"]
    lines += [f"  {flag(name)}: {values}" for name, values in plan.space.items()]
    first = "; the first trial is the preset itself" if has_own else ""
    return "\n".join([*lines, f"sampler {plan.options.sampler}, pruner {plan.pruner}{first}; runs: {plan.folder}"])


def _work(plan: Plan, sweep: Sweep, console: Console) -> None:
    """Do trials until none is left, also those that other workers give back."""
    while True:
        unfinished = sweep.shared.unfinished
        claimed = sweep.claim()
        if claimed is not None:
            _do(plan, sweep, claimed, console)
        elif unfinished:
            time.sleep(POLL)
        else:
            return


def _do(plan: Plan, sweep: Sweep, claimed: Claimed, console: Console) -> None:
    import optuna

    from pipeline.tune.report import describe, ranked
    from pipeline.tune.sweep import original_number
    from pipeline.tune.trial import TrialRuns

    trial, name = claimed.trial, f"trial {claimed.first_number}"
    try:
        options = sweep.options(trial)
        _print(console, f"{name}: {show(options)}")
        outcome = TrialRuns(plan, claimed, options).run()
        kept = sweep.shared.finish(
            trial.number, outcome.state, outcome.value, outcome.attributes, f"the result of {name}"
        )
    except optuna.exceptions.UpdateFinishedTrialError:
        kept = False
    if not kept:
        _print(console, f"{name}: another worker has taken the trial up, after the lease of this one had ended")
        return
    done = sweep.done()
    best = ranked(done)
    progress = f"{len(done)} of {plan.options.trials} done"
    leader = f", best: trial {original_number(best[0])} with {best[0].value:,.4g}" if best else ""
    result = next(one for one in done if one.number == trial.number)
    _print(console, f"{name}: {describe(result)} ({progress}{leader})")


def _print(console: Console, message: str) -> None:
    console.print(message, markup=False, highlight=False, soft_wrap=True)

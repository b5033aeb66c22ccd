"""``saltus tune TASK``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rich.console import Console

from envs.simulation import Simulation
from pipeline.console import print_line
from pipeline.logger import require_packages
from pipeline.stored_task import hash_model
from pipeline.train_options import parse_options
from pipeline.tune.options import (
    FEWEST_EVALUATIONS,
    TuneOptions,
    default_folder,
    fixed_settings,
    fixed_words,
    scored_evaluations,
)
from pipeline.tune.plan import Plan
from pipeline.tune.search import flag, own_values, search_space
from pipeline.worlds import environment_maker
from saltus.errors import SaltusError
from saltus.signals import signals_interrupt

if TYPE_CHECKING:
    from pipeline.tune.sweep import Sweep

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
    from pipeline.tune.worker import Worker

    env = environment_maker(plan.config)(1, simulation=Simulation(physics="cpu", num_threads=1))  # checks the task
    own = own_values(plan.space, plan.config, env.action_dim, env.dt)
    sweep = _open(plan, own, hash_model(env.model))
    url = sweep.shared.url
    print_line(console, _describe(plan, url, bool(own)))
    try:
        with signals_interrupt():
            Worker(plan, sweep, console).run()
    except KeyboardInterrupt:
        sweep.shared.release()
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


def _open(plan: Plan, own: Mapping[str, Any], model_hash: str | None) -> Sweep:
    from pipeline.shared_study import SharedStudy
    from pipeline.tune.sweep import RESULTS, SeededSampler, Sweep, make_pruner

    options = plan.options
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise SaltusError(f"--run-dir {plan.folder} is a file: name a directory") from None
    url = options.storage or f"sqlite:///{plan.folder / DATABASE}"
    shared = SharedStudy(
        url,
        "tune",
        plan.identity(model_hash),
        options.lease,
        "the trials",
        RESULTS,
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
    lines.append(f"sampler {plan.options.sampler}, pruner {plan.pruner}{first}; runs: {plan.folder}")
    if plan.config.minutes is None and (number := scored_evaluations(plan.config)) < FEWEST_EVALUATIONS:
        lines.append(
            f"warning: evaluations in the last third of a run: {number}; lower --eval-every for a less noisy score"
        )
    return "\n".join(lines)

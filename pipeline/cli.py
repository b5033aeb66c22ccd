"""The `saltus` command: train, resume, evaluate, play, export, gradients, tune, profile, warmup, check, new."""

from __future__ import annotations

import ctypes.util
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pipeline import torchrun
from pipeline.display import show_progress, tolerate_lost_output
from pipeline.file_names import CHECKPOINTS, EVALUATION, VIDEO
from pipeline.plain_text import print_plain as _print
from saltus.errors import SaltusError

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.policy import Policy
    from pipeline.run import Run

USAGE = """usage: saltus COMMAND ...

  saltus train TASK [options]   train a policy
  saltus resume RUN             continue a run from its last checkpoint
  saltus evaluate RUN           play episodes with a run's policy, print their returns
  saltus play RUN               write a video of a run's policy
  saltus export RUN             write a run's policy as files that need no saltus
  saltus gradients RUN          compare estimators of the actor's gradient on a run
  saltus tune TASK [options]    search for the options with the highest returns
  saltus profile TASK [options] measure where the time of training goes
  saltus warmup TASK [options]  compile a training's code ahead of it
  saltus check TASK [options]   try a task for mistakes, and report its numbers
  saltus new MODEL              write a task's file for a MuJoCo model
  saltus --version              print the version

TASK is one of {tasks}, or path/to/file.py:ClassName. RUN is a run's directory.
`train`, `tune` and `warmup` also take gym:ID, an environment of Gymnasium, and path/to/file.py:function, which makes an
environment of Gymnasium or TorchRL. MODEL is the path of an MJCF file.
saltus COMMAND --help lists the options.
"""

NOT_EXACT = (
    "another library simulates {name}: a resumed run continues learner, replay buffer and counters, and begins new "
    "episodes"
)

DEALT = (
    "the run had {saved} ranks and continues on {size}: worlds and replay are dealt anew, new episodes begin, and it "
    "does not continue bit for bit"
)


@tolerate_lost_output()
def main() -> None:
    """Run a command of ``sys.argv``.

    Refusals (SaltusError) and errors of the system are printed as one line; any other error shows its traceback.
    """
    command, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    commands = {
        "train": train, "resume": resume, "evaluate": evaluate, "play": play, "export": export,
        "gradients": gradients, "tune": tune, "profile": profile, "warmup": warmup, "check": check, "new": new,
    }  # fmt: skip
    console = Console(quiet=torchrun.rank() > 0)
    warnings_console = Console() if console.quiet else console
    for package in ("torch", "tensordict", "torchrl"):  # their warnings address developers
        warnings.filterwarnings("ignore", module=package)
    warnings.showwarning = lambda message, *_args, **_kwargs: _print(
        warnings_console, f"{torchrun.prefix()}warning: {message}"
    )
    if command == "--version":
        from saltus.versions import versions

        print(f"saltus {versions()['saltus']}")
        return
    from saltus.device.warm_start import ensure_cache_folder

    try:
        ensure_cache_folder()
        if command not in commands:
            from envs import list_tasks

            print(USAGE.format(tasks=", ".join(list_tasks())))
            sys.exit(0 if command in ("-h", "--help") else f"saltus: no command {command!r}" if command else 2)
        commands[command](arguments, console)
    except (SaltusError, OSError, MemoryError) as error:
        sys.exit(f"saltus: {torchrun.prefix()}{error}")
    except KeyboardInterrupt:
        print("saltus: interrupted", file=sys.stderr)
        sys.exit(130)


def train(arguments: list[str], console: Console) -> None:
    """``saltus train TASK``."""
    from pipeline.checkpoint import find
    from pipeline.logger import require_packages
    from pipeline.restarts import begun_run
    from pipeline.run_dir import require_unused
    from pipeline.train_options import parse_train

    config, run_dir = parse_train(arguments)
    begun = begun_run()
    if begun is not None and find(begun / CHECKPOINTS):
        _resume(begun, config.task, True, console, restarted=True)  # the command names the task: it is trusted
        return
    run_dir = begun or run_dir
    if run_dir is not None:
        run_dir = run_dir.expanduser()  # a shell leaves the ~ of --run-dir=~/run
        require_unused(run_dir)
    require_packages(config)
    _run(config, run_dir, console)


def resume(arguments: list[str], console: Console) -> None:
    """``saltus resume RUN``."""
    from pipeline.run_dir import require_run
    from pipeline.run_options import Resume, parse

    options = parse(Resume, arguments)
    require_run(options.run)
    _resume(options.run, options.task, options.trust, console, restarted=torchrun.restarts() > 0)


def evaluate(arguments: list[str], console: Console) -> None:
    """``saltus evaluate RUN``."""
    from pipeline import files
    from pipeline.config_checks import MAXIMA
    from pipeline.evaluate import evaluate as play_episodes
    from pipeline.policy import load_policy
    from pipeline.run_options import Evaluate, parse, require_within

    options = parse(Evaluate, arguments)
    require_within("episodes", options.episodes, 1, MAXIMA["eval_episodes"])
    require_within("seed", options.seed, 0, MAXIMA["seed"])
    with _log_to(console):
        policy = load_policy(options.run, options.policy, task=options.task, trust=options.trust)
        result = play_episodes(policy, policy.make_env(options.episodes, options.seed))
    _print(console, f"{_describe(policy)}: {result.summary()}")
    content = {
        "task": policy.task, "policy": policy.which, "env_steps": policy.env_steps, "seed": options.seed,
        "mean": result.mean, "std": result.std, "interval_95": list(result.interval),
        "failed": result.failed, "returns": result.returns, "lengths": result.lengths,
    }  # fmt: skip
    path = options.run / EVALUATION
    try:
        files.write(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise SaltusError(f"could not write {path}: {error.strerror}. The result is printed above") from error
    _print(console, str(path))


def play(arguments: list[str], console: Console) -> None:
    """``saltus play RUN``."""
    _choose_opengl()
    from envs import BatchEnv
    from envs.external.external_env import ExternalEnv
    from envs.render import choose_camera
    from pipeline.config_checks import MAXIMA
    from pipeline.policy import load_policy
    from pipeline.run_dir import refuse_links
    from pipeline.run_options import Play, parse, refuse_unused, require_within
    from pipeline.video import MAX_STEPS, check_name, parse_size, record, record_video, write_video

    options = parse(Play, arguments)
    require_within("seed", options.seed, 0, MAXIMA["seed"])
    if options.steps is not None:
        require_within("steps", options.steps, 1, MAX_STEPS)
    size = parse_size(options.size)
    path = options.output.expanduser() if options.output else options.run / VIDEO
    check_name(path)
    with _log_to(console):
        policy = load_policy(options.run, options.policy, task=options.task, trust=options.trust)
        if options.output is None:
            refuse_links(options.run)
        env = policy.make_env(1, options.seed, render_mode="rgb_array")
        steps = options.steps or env.max_episode_steps
        if isinstance(env, ExternalEnv):
            refuse_unused(options, env.name)
            with show_progress(console, "playing", steps, "steps") as report:
                recording = record_video(policy, env, path, options.steps, report=report)
            _print(console, f"{_describe(policy)}: {recording.summary()}\n{path}")
            return
        assert isinstance(env, BatchEnv)
        camera = choose_camera(env.physics.model, options.camera)
        with show_progress(console, "playing", steps, "steps") as report:
            recording = record(policy, env, options.steps, report=report)
    _print(console, f"{_describe(policy)}: {recording.summary()} ({recording.length * env.dt:.1f} s)")
    with show_progress(console, "rendering", len(recording.states), "frames") as report:
        write_video(recording, env, path, camera, size, report)
    _print(console, str(path))


def export(arguments: list[str], console: Console) -> None:
    """``saltus export RUN``."""
    from pipeline.export import check_folder, export_policy
    from pipeline.policy import load_policy
    from pipeline.run_dir import refuse_links
    from pipeline.run_options import Export, parse

    options = parse(Export, arguments)
    folder = options.output.expanduser() if options.output else options.run
    check_folder(folder)
    with _log_to(console):
        policy = load_policy(options.run, options.policy, task=options.task, trust=options.trust)
        if options.output is None:
            refuse_links(options.run)
        paths = export_policy(policy, folder)
    _print(console, _describe(policy))
    for path in paths:
        _print(console, str(path))


def gradients(arguments: list[str], console: Console) -> None:
    """``saltus gradients RUN``."""
    from pipeline.gradients.command import gradients as compare_estimators

    with _log_to(console):
        compare_estimators(arguments, console)


def tune(arguments: list[str], console: Console) -> None:
    """``saltus tune TASK``."""
    from pipeline.tune.command import tune as run_sweep

    with _log_to(console):
        run_sweep(arguments, console)


def profile(arguments: list[str], console: Console) -> None:
    """``saltus profile TASK``."""
    from pipeline.profile.command import profile as run_profile

    with _log_to(console):
        run_profile(arguments, console)


def check(arguments: list[str], console: Console) -> None:
    """``saltus check TASK``."""
    _choose_opengl()
    from pipeline.check.command import check_task

    with _log_to(console):
        check_task(arguments, console)


def warmup(arguments: list[str], console: Console) -> None:
    """``saltus warmup TASK``."""
    from pipeline.warmup import warmup as compile_ahead

    with _log_to(console):
        compile_ahead(arguments, console)


def new(arguments: list[str], console: Console) -> None:
    """``saltus new MODEL``."""
    from pipeline.new.command import new_task

    _print(console, new_task(arguments))


def _resume(run_dir: Path, task: str | None, trust: bool, console: Console, restarted: bool) -> None:
    """Continue a run from its last checkpoint."""
    from pipeline.run_dir import compare_versions, describe_checkpoint, locked, open_run

    with locked(run_dir) if torchrun.rank() == 0 else nullcontext():
        with _log_to(console):
            config, content = open_run(run_dir, task, trust)
        _print(console, "restarted by torchrun; " * restarted + describe_checkpoint(content, config))
        compare_versions(content["versions"])
        _run(config, run_dir, console, content)


def _run(config: Config, run_dir: Path | None, console: Console, content: dict[str, Any] | None = None) -> None:
    """Train from the start, or from a checkpoint's `content`; the state is removed from it to free its memory.

    A new run makes its directory and locks it; the directory of a run that resumes is locked by the caller. Of several
    ranks only rank 0 writes to it, except for the others' parts of checkpoints.
    """
    import torch

    from saltus.device.warm_start import warm_start

    on_cpu = config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available())
    if config.compile and on_cpu:
        warm_start()  # in the background of the imports below, which take seconds

    from pipeline.launch import first_does, join, require_shared
    from pipeline.logger import Logger, SilentLogger
    from pipeline.rank_state import take
    from pipeline.restarts import remember_run
    from pipeline.run import Run
    from pipeline.run_dir import (
        compare_task,
        default_path,
        new_run,
        require_same_dimensions,
        require_same_state,
        update_config,
    )
    from pipeline.train import StopSignal
    from pipeline.train import train as train_loop

    with StopSignal(partial(_print, console)) as stop, _log_to(console), join(config) as ranks, ExitStack() as lock:
        run = Run(config, run_dir or default_path(config), ranks)
        model = run.env.model
        if content is None:
            run.run_dir = first_does(ranks, lambda: lock.enter_context(new_run(config, run_dir, model)))
            if ranks.rank == 0:
                remember_run(run.run_dir)
        else:
            require_same_dimensions(content, run.env)
            require_same_state(run.run_dir, model)
            compare_task(config, run.run_dir, model, "resumed, but not bit for bit")
            first_does(ranks, lambda: update_config(config, run.run_dir, content))
            saved = content["state"].get("ranks", 1)
            run.load_state_dict(take(content, ranks))
            if saved != ranks.size:
                _print(console, DEALT.format(saved=saved, size=ranks.size))
        run_dir = run.run_dir
        require_shared(ranks, run_dir)
        if not run.env.resumes_exactly:
            _print(console, NOT_EXACT.format(name=run.env.name))
        entropy = float(run.agent.loss.target_entropy)
        with (
            SilentLogger(run_dir)
            if ranks.rank
            else Logger(run_dir, config, run.env_steps, console, run.evaluation_pending)
        ) as logger:
            logger.say(
                f"{config.task}, seed {config.seed}, on {run.device}, target entropy {entropy:g}; files: {run_dir}"
            )
            train_loop(run, logger, stop)
    if ranks.rank == 0:
        _conclude(run, stop.received, console)


def _conclude(run: Run, signal: str | None, console: Console) -> None:
    """Draw the learning curve of a run that has ended, or was stopped, and say how it went."""
    from pipeline.health import describe_policies
    from pipeline.plot import learning_curve

    config, run_dir = run.config, run.run_dir  # which may have been renamed
    picture = learning_curve(run_dir, f"{config.task_name}, seed {config.seed}")
    if not run.finished and (signal is not None or run.ranks.size > 1):
        start = "" if run.ranks.size == 1 else f", started by torchrun on {run.ranks.size} ranks,"
        _print(console, f"stopped by {signal or 'another rank'} and saved; `saltus resume {run_dir}`{start} continues")
    else:
        curve = "" if picture is None else f"; learning curve: {picture}"
        _print(console, f"finished after {run.seconds:.0f} s{curve}")
    if run.health.nothing_learned:
        _print(console, "nothing could be learned: every world-step failed")
    elif run.finished and run.learner.gradient_steps == 0:
        _print(console, "the run ended before its first update: give it more --minutes")
    elif run.best:
        _print(console, describe_policies(run.best, run.health.last or run.best, run_dir))


def _choose_opengl() -> None:
    """Set MUJOCO_GL for a machine without a display: EGL, else OSMesa (software), unless it is set already.

    MuJoCo reads the variable at its first import, so this must come before it.
    """
    headless = sys.platform == "linux" and not os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY")
    if headless and not os.environ.get("MUJOCO_GL"):
        for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
            if ctypes.util.find_library(library):
                os.environ["MUJOCO_GL"] = name
                return


class _ConsoleHandler(logging.Handler):
    def __init__(self, console: Console):
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        _print(self._console, record.getMessage())


@contextmanager
def _log_to(console: Console) -> Iterator[None]:
    """Print the log messages of saltus on the console."""
    log, handler = logging.getLogger("saltus"), _ConsoleHandler(console)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)


def _describe(policy: Policy) -> str:
    return f"{policy.task}, {policy.which} policy (after {policy.env_steps:,} env steps)"

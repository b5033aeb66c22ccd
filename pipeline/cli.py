"""The `saltus` command: train, resume, evaluate, play, export, gradients, tune, profile, warmup, check, new."""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import TYPE_CHECKING

from rich.console import Console

from pipeline import torchrun
from pipeline.console import log_to, print_line
from pipeline.display import show_progress, tolerate_lost_output
from pipeline.file_names import CHECKPOINTS, EVALUATION, EVALUATION_OF_LAST, VIDEO
from saltus import __version__
from saltus.errors import SaltusError, did_you_mean

if TYPE_CHECKING:
    from pipeline.policy import Policy

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


@tolerate_lost_output()
def main() -> None:
    """Run a command of ``sys.argv``.

    Refusals (SaltusError), errors of the system and a lack of memory are printed as one line; any other error shows
    its traceback.
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
    warnings.showwarning = lambda message, *_args, **_kwargs: print_line(
        warnings_console, f"{torchrun.prefix()}warning: {message}"
    )
    if command == "--version":
        print(f"saltus {__version__}")
        return
    from saltus.device.warm_start import ensure_cache_folder

    try:
        ensure_cache_folder()
        if command not in commands:
            from envs import list_tasks

            print(USAGE.format(tasks=", ".join(list_tasks())))
            if command and command not in ("-h", "--help"):
                raise SaltusError(f"there is no command {command!r}{did_you_mean(command, commands)}")
            sys.exit(0 if command else 2)
        if torchrun.size() > 1 and command not in ("train", "resume"):
            raise torchrun.SharedError(
                f"`saltus {command}` is one process, and torchrun started {torchrun.size()}: start it without torchrun"
            )
        commands[command](arguments, console)
    except torchrun.SharedError as error:
        sys.exit(1 if torchrun.rank() else f"saltus: {error}")
    except (SaltusError, OSError, MemoryError) as error:
        sys.exit(f"saltus: {torchrun.prefix()}{error}")
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0].partition(". GPU ")[0].rstrip(".")
        has_sizes = command in ("train", "tune", "warmup", "profile")
        advice = ". Lower --num-envs, --buffer-size or --batch-size" if has_sizes else ""
        sys.exit(f"saltus: {torchrun.prefix()}{reason}{advice}")
    except KeyboardInterrupt:
        print("saltus: interrupted", file=sys.stderr)
        sys.exit(130)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch, CUDA or Warp raised an error because memory ended. Only some of them have a type of their own."""
    text = str(error).lower()
    return any(phrase in text for phrase in ("out of memory", "can't allocate memory", "failed to allocate"))


def train(arguments: list[str], console: Console) -> None:
    """``saltus train TASK``."""
    from pipeline.checkpoint import find
    from pipeline.restarts import begun_run
    from pipeline.session import resume_run, start_run
    from pipeline.train_options import parse_train

    config, run_dir = parse_train(arguments)
    begun = begun_run()
    if begun is not None and find(begun / CHECKPOINTS):
        resume_run(begun, config.task, True, console, restarted=True)  # the command names the task: it is trusted
        return
    start_run(config, begun or run_dir, console)


def resume(arguments: list[str], console: Console) -> None:
    """``saltus resume RUN``."""
    from pipeline.run_options import Resume, parse
    from pipeline.run_paths import require_run
    from pipeline.session import resume_run

    options = parse(Resume, arguments)
    require_run(options.run)
    resume_run(options.run, options.task, options.trust, console, restarted=torchrun.restarts() > 0)


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
    with log_to(console):
        policy = load_policy(options.run, options.policy, task=options.task, trust=options.trust)
        result = play_episodes(policy, policy.make_env(options.episodes, options.seed))
    print_line(console, f"{_describe(policy)}: {result.summary()}")
    content = {
        "task": policy.task, "policy": policy.which, "env_steps": policy.env_steps, "seed": options.seed,
        "mean": result.mean, "std": result.std, "interval_95": result.interval,
        "failed": result.failed, "returns": result.returns, "lengths": result.lengths,
    }  # fmt: skip
    path = options.run / (EVALUATION if options.policy == "best" else EVALUATION_OF_LAST)
    try:
        files.write(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise SaltusError(f"could not write {path}: {error.strerror}. The result is printed above") from error
    print_line(console, str(path))


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
    with log_to(console):
        policy = load_policy(options.run, options.policy, task=options.task, trust=options.trust)
        if options.output is None:
            refuse_links(options.run)
        env = policy.make_env(1, options.seed, render_mode="rgb_array")
        steps = options.steps or env.max_episode_steps
        if isinstance(env, ExternalEnv):
            refuse_unused(options, env.name)
            with show_progress(console, "playing", steps, "steps") as report:
                recording = record_video(policy, env, path, options.steps, report=report)
            print_line(console, f"{_describe(policy)}: {recording.summary()}\n{path}")
            return
        assert isinstance(env, BatchEnv)
        camera = choose_camera(env.physics.model, options.camera)
        with show_progress(console, "playing", steps, "steps") as report:
            recording = record(policy, env, options.steps, report=report)
    print_line(console, f"{_describe(policy)}: {recording.summary()} ({recording.length * env.dt:.1f} s)")
    with show_progress(console, "rendering", len(recording.states), "frames") as report:
        write_video(recording, env, path, camera, size, report)
    print_line(console, str(path))


def export(arguments: list[str], console: Console) -> None:
    """``saltus export RUN``."""
    from pipeline.export import check_folder, export_policy
    from pipeline.policy import load_policy
    from pipeline.run_dir import refuse_links
    from pipeline.run_options import Export, parse

    options = parse(Export, arguments)
    folder = options.output.expanduser() if options.output else options.run
    check_folder(folder)
    with log_to(console):
        policy = load_policy(options.run, options.policy, task=options.task, trust=options.trust)
        if options.output is None:
            refuse_links(options.run)
        paths = export_policy(policy, folder)
    print_line(console, _describe(policy))
    for path in paths:
        print_line(console, str(path))


def gradients(arguments: list[str], console: Console) -> None:
    """``saltus gradients RUN``."""
    from pipeline.gradients.command import gradients as compare_estimators

    with log_to(console):
        compare_estimators(arguments, console)


def tune(arguments: list[str], console: Console) -> None:
    """``saltus tune TASK``."""
    from pipeline.tune.command import tune as run_sweep

    with log_to(console):
        run_sweep(arguments, console)


def profile(arguments: list[str], console: Console) -> None:
    """``saltus profile TASK``."""
    from pipeline.profile.command import profile as run_profile

    with log_to(console):
        run_profile(arguments, console)


def check(arguments: list[str], console: Console) -> None:
    """``saltus check TASK``."""
    _choose_opengl()
    from pipeline.check.command import check_task

    with log_to(console):
        check_task(arguments, console)


def warmup(arguments: list[str], console: Console) -> None:
    """``saltus warmup TASK``."""
    from pipeline.warmup import warmup as compile_ahead

    with log_to(console):
        compile_ahead(arguments, console)


def new(arguments: list[str], console: Console) -> None:
    """``saltus new MODEL``."""
    from pipeline.new.command import new_task

    print_line(console, new_task(arguments))


def _choose_opengl() -> None:
    """Set MUJOCO_GL for a machine without a display. MuJoCo and Gymnasium read it when they are imported."""
    from saltus.device.opengl import headless_opengl

    if (name := headless_opengl()) is not None:
        os.environ["MUJOCO_GL"] = name


def _describe(policy: Policy) -> str:
    return f"{policy.task}, {policy.which} policy (after {policy.env_steps:,} env steps)"

"""The `saltus` command: train, resume, evaluate, play."""

from __future__ import annotations

import argparse
import ctypes.util
import dataclasses
import json
import logging
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from pipeline import presets
from pipeline.config import Config
from saltus.errors import SaltusError

if TYPE_CHECKING:
    from envs import Task
    from pipeline.policy import Policy

USAGE = """usage: saltus COMMAND ...

  saltus train TASK [options]   train a policy
  saltus resume RUN             continue a run where its last checkpoint stands
  saltus evaluate RUN           returns of a run's policy over whole episodes
  saltus play RUN               a video of a run's policy

TASK is one of {tasks}, or path/to/file.py:ClassName; RUN is a run's directory.
saltus COMMAND --help lists the options.
"""


@dataclass(frozen=True)
class Resume:
    """Continue a run where its last checkpoint stands, as if it had never stopped."""

    run: tyro.conf.Positional[Path]
    """The run's directory."""


@dataclass(frozen=True)
class Evaluate:
    """Play whole episodes with a run's deterministic policy; writes evaluation.json into its directory."""

    run: tyro.conf.Positional[Path]
    """The run's directory."""
    episodes: int = 100
    """Episodes, all played side by side."""
    seed: int = 0
    """Seeds the starts of the episodes."""
    policy: Literal["best", "last"] = "best"
    """best: of those that were evaluated in training, the one with the highest mean return. last: the last."""


@dataclass(frozen=True)
class Play:
    """Record one episode of a run's deterministic policy as an mp4."""

    run: tyro.conf.Positional[Path]
    """The run's directory."""
    output: Path | None = None
    """The file to write; by default play.mp4 in the run's directory."""
    seed: int = 0
    """Seeds the start of the episode."""
    policy: Literal["best", "last"] = "best"
    """best: of those that were evaluated in training, the one with the highest mean return. last: the last."""


class _ConsoleHandler(logging.Handler):
    """Prints log records of saltus on the console."""

    def __init__(self, console: Console):
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        _print(self._console, record.getMessage())


def main() -> None:
    """Run a command. Deliberate refusals and errors of the system are printed as one line; others show a traceback."""
    command, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    commands = {"train": train, "resume": resume, "evaluate": evaluate, "play": play}
    console = Console()
    for package in ("torch", "tensordict", "torchrl"):  # their notes to developers are not for users of saltus
        warnings.filterwarnings("ignore", module=package)
    warnings.showwarning = lambda message, *_args, **_kwargs: _print(console, f"warning: {message}")
    log = logging.getLogger("saltus")
    log.setLevel(logging.INFO)
    log.addHandler(_ConsoleHandler(console))
    if command not in commands:
        from envs import list_tasks

        print(USAGE.format(tasks=", ".join(list_tasks())))
        sys.exit(0 if command in ("-h", "--help") else f"saltus: no command {command!r}" if command else 2)
    try:
        commands[command](arguments, console)
    except (SaltusError, OSError, MemoryError) as error:
        sys.exit(f"saltus: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _print(console: Console, message: str) -> None:
    """Print a line without markup, colours, or breaks that would cut a path in two."""
    console.print(message, markup=False, highlight=False, soft_wrap=True)


def train(arguments: list[str], console: Console) -> None:
    """``saltus train TASK``."""
    from pipeline import run_dir as run_dirs
    from pipeline.logger import require_packages

    config, run_dir = _parse_train(arguments)
    run_dir = run_dir or run_dirs.default_path(config)
    run_dirs.require_unused(run_dir)
    require_packages(config)
    _run(config, run_dir, console)


def resume(arguments: list[str], console: Console) -> None:
    """``saltus resume RUN``."""
    from pipeline.run_dir import open_run

    run_dir = tyro.cli(Resume, args=arguments, prog="saltus resume").run
    config, content = open_run(run_dir)
    _compare_versions(content["versions"])
    _run(config, run_dir, console, content)


def _run(config: Config, run_dir: Path, console: Console, content: dict[str, Any] | None = None) -> None:
    """Train, from the state in a checkpoint's `content` if there is one, which is taken out of it."""
    import torch

    from saltus.device.warm_start import warm_start

    on_cpu = config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available())
    if config.compile and on_cpu:
        warm_start()  # it goes on beside what follows, which takes seconds even to import

    from pipeline.logger import Logger
    from pipeline.plot import learning_curve
    from pipeline.run import Run
    from pipeline.run_dir import create, locked
    from pipeline.train import StopSignal
    from pipeline.train import train as train_loop

    with StopSignal() as stop:
        run = Run(config, run_dir)
        if content is None:
            create(config, run_dir)
        else:
            run.load_state_dict(content.pop("state"))
        entropy = float(run.agent.loss.target_entropy)
        _print(
            console,
            f"{config.task}, seed {config.seed}, on {run.device}, target entropy {entropy:g}; files in {run_dir}",
        )
        with locked(run_dir), Logger(run_dir, config, run.env_steps, console) as logger:
            train_loop(run, logger, stop)
    picture = learning_curve(run_dir, f"{config.task.rpartition(':')[2]}, seed {config.seed}")
    if stop.received is not None and run.env_steps < config.total_env_steps:
        _print(console, f"stopped by {stop.received} and saved: `saltus resume {run_dir}` continues")
    else:
        _print(console, f"finished after {run.seconds:.0f} s; learning curve: {picture}")
    if run.best:
        best = f"{run.best['return_mean']:.1f} after {run.best['env_steps']:,} env steps"
        _print(console, f"best evaluation: {best}; `saltus evaluate {run_dir}` plays that policy for more episodes")


def evaluate(arguments: list[str], console: Console) -> None:
    """``saltus evaluate RUN``."""
    from pipeline.evaluate import evaluate as play_episodes
    from pipeline.policy import load_policy

    options = tyro.cli(Evaluate, args=arguments, prog="saltus evaluate")
    if options.episodes < 1:
        raise SaltusError(f"episodes is {options.episodes}; at least 1 is needed")
    policy = load_policy(options.run, options.policy)
    result = play_episodes(policy, policy.make_env(options.episodes, options.seed))
    low, high = result.interval
    content = {
        "task": policy.task, "policy": policy.which, "env_steps": policy.env_steps, "seed": options.seed,
        "mean": result.mean, "std": result.std, "interval_95": [low, high],
        "unstable": result.unstable, "returns": result.returns, "lengths": result.lengths,
    }  # fmt: skip
    path = options.run / "evaluation.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    _print(console, f"{_describe(policy)}: {result.summary()}\n{path}")


def play(arguments: list[str], console: Console) -> None:
    """``saltus play RUN``."""
    _choose_opengl()
    from pipeline.policy import load_policy
    from pipeline.video import record

    options = tyro.cli(Play, args=arguments, prog="saltus play")
    policy = load_policy(options.run, options.policy)
    env = policy.make_env(1, options.seed)
    path = options.output or options.run / "play.mp4"
    total, steps = record(policy, env, path)
    _print(console, f"{_describe(policy)}: return {total:.1f} in {steps} steps ({steps * env.task.dt:.1f} s)\n{path}")


def _describe(policy: Policy) -> str:
    return f"{policy.task}, {policy.which} policy (after {policy.env_steps:,} env steps)"


def _choose_opengl() -> None:
    """Choose an OpenGL for a machine without a display: EGL, or else OSMesa (software).

    MuJoCo reads the environment variable MUJOCO_GL at its first import, so this has to come before it. A value that is
    set already is left as it is.
    """
    headless = sys.platform == "linux" and not os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY")
    if headless and not os.environ.get("MUJOCO_GL"):
        for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
            if ctypes.util.find_library(library):
                os.environ["MUJOCO_GL"] = name
                return


def _parse_train(arguments: list[str]) -> tuple[Config, Path | None]:
    """What ``saltus train`` is asked for: the preset's settings, then the options', the task's own among them."""
    import envs

    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset", default=presets.DEFAULT)
    known, rest = first.parse_known_args(arguments)
    if not rest or (rest[0].startswith("-") and not {"-h", "--help"} & set(rest)):
        raise SaltusError(
            f"name the task first, as in `saltus train Hopper-v5 ...`: {', '.join(envs.list_tasks())} or "
            "path/to/file.py:ClassName"
        )
    if rest[0].startswith("-"):
        rest = ["Hopper-v5", "--help"]
    task = envs.find_task(rest[0])
    if ".py:" in rest[0]:  # a run can be resumed from another folder
        file, _, name = rest[0].rpartition(":")
        rest[0] = f"{Path(file).expanduser().resolve()}:{name}"
    default = presets.preset(known.preset, task=rest[0])
    options: Any = tyro.cli(
        _train_options(task, default),
        args=rest,
        prog="saltus train",
        description="Train a policy. Defaults are those of the preset: " + ", ".join(presets.names()) + ".",
    )
    for name, what in options.config.unused_settings().items():
        if getattr(options.config, name) != getattr(default, name):
            raise SaltusError(f"--{name.replace('_', '-')} has no effect here: it goes with {what}")
    fields: Any = dataclasses.fields(task) if dataclasses.is_dataclass(task) else ()
    task_options = {
        item.name: getattr(options.task, item.name)
        for item in fields
        if getattr(options.task, item.name) != _default(item)
    }
    return dataclasses.replace(options.config, task_options=task_options), options.run_dir


def _default(option: dataclasses.Field[Any]) -> Any:
    factory = option.default_factory
    return option.default if factory is dataclasses.MISSING else factory()


def _train_options(task: type[Task], default: Config) -> type:
    """A dataclass for tyro: the configuration, the run's directory, and the task's options as ``--task.name``."""
    preset_help = tyro.conf.arg(help="The recipe that all other options start from: " + ", ".join(presets.names()))
    run_dir_help = tyro.conf.arg(help="The run's directory; by default one in runs/, named after task, seed and time.")
    fields: list[Any] = [
        ("config", Annotated[Config, tyro.conf.arg(name="")], dataclasses.field(default=default)),
        ("preset", Annotated[str, preset_help], dataclasses.field(default=presets.DEFAULT)),
        ("run_dir", Annotated[Path | None, run_dir_help], dataclasses.field(default=None)),
    ]
    if dataclasses.is_dataclass(task):
        fields.insert(0, ("task", task))
    return dataclasses.make_dataclass("Train", fields)


def _compare_versions(written_by: dict[str, str]) -> None:
    from saltus.versions import versions

    changed = [
        f"{name} {written_by.get(name)} -> {now}" for name, now in versions().items() if written_by.get(name) != now
    ]
    if changed:
        warnings.warn(f"the run continues, but not bit for bit: versions differ ({', '.join(changed)})", stacklevel=2)

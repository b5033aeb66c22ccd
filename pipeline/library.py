"""Training from Python: `train` and `resume`, as the commands of these names."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from envs import Task


def train(
    task: str | type[Task],
    *,
    preset: str = "fast",
    run_dir: Path | str | None = None,
    progress: bool = True,
    task_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """Train a new run, as ``saltus train`` does: the same files, and on the CPU the same bits.

    Ctrl-C, SIGTERM and SIGHUP save the run and take effect then: Ctrl-C raises KeyboardInterrupt. In a thread other
    than the main one, signals are left alone. The state of torch's global generators is restored, on CUDA if it was in
    use before.

    Args:
        task: a registered name (``"Hopper-v5"``), ``gym:ID``, ``path/to/file.py:ClassName``, or a Task class of a file.
            Later processes execute that file: a script that trains does so under ``if __name__ == "__main__":``.
        preset: the recipe that sets the other defaults.
        run_dir: the run's directory. None: ``runs/<task>-s<seed>-<time>``.
        progress: whether to print what the command prints; the run's messages.txt has its messages.
        task_options: the task's own options, by name.
        **settings: settings of the recipe that change, by their names in docs/recipes.md (``seed=1, minutes=10``).

    Returns:
        The run's directory, for `load_policy` and `resume`.

    Raises:
        SaltusError: an unknown task, preset or option, settings that do not work or have no effect, a directory that
            holds a run, or learning that diverged.
        CheckpointError: the first or the last checkpoint could not be written.
        MemoryError: worlds or replay buffer do not fit.
        KeyboardInterrupt: Ctrl-C; the run is saved, unless it was pressed twice.
    """
    with _session(progress) as console:
        from envs.task_ref import name_task
        from pipeline.session import start_run
        from pipeline.train_options import configure

        config = configure(name_task(task), preset, settings, {} if task_options is None else task_options)
        path, stopped_by = start_run(config, run_dir, console)
    return _deliver(stopped_by, path)


def resume(
    run_dir: Path | str, *, task: str | type[Task] | None = None, trust: bool = False, progress: bool = True
) -> Path:
    """Continue a run from its last checkpoint to its end, as ``saltus resume`` does.

    Args:
        run_dir: the run's directory.
        task: the task, if its file has moved since the run started.
        trust: execute a task's file that lies in the run's directory, or the run's copy of a missing one.
        progress: as of `train`. Signals and torch's generators are treated as there.

    Returns:
        The run's directory.

    Raises:
        SaltusError: not a run's directory, a run of another version, or a task's file that is missing or not trusted.
        CheckpointError: no checkpoint, one that cannot be used, or a last one that could not be written.
        KeyboardInterrupt: as `train`.
    """
    with _session(progress) as console:
        from envs.task_ref import name_task
        from pipeline.run_paths import require_run, to_path
        from pipeline.session import resume_run

        path = to_path(run_dir)
        require_run(path)
        moved = None if task is None else name_task(task)
        path, stopped_by = resume_run(path, moved, trust, console, restarted=False)
    return _deliver(stopped_by, path)


@contextmanager
def _session(progress: bool) -> Iterator[Console]:
    """The console of a training, after which torch's global generators continue as before.

    Refusals within name Python's arguments in place of options.

    Raises:
        SaltusError: torchrun started several processes, or saltus executes a task's file.
    """
    from saltus.device.warm_start import ensure_cache_folder

    ensure_cache_folder()  # before tensordict is imported
    import torch

    from envs.task_files import executing
    from pipeline import torchrun
    from pipeline.display import tolerant_console
    from saltus.errors import SaltusError

    if torchrun.size() > 1:
        raise SaltusError(f"torchrun started {torchrun.size()} processes: several ranks train with `saltus train`")
    if (file := executing()) is not None:
        raise SaltusError(
            f'{file} trains while saltus executes it for its task: put the training under if __name__ == "__main__":'
        )
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        try:
            yield tolerant_console(quiet=not progress)
        except SaltusError as error:
            error.args = (_name_arguments(str(error)),)
            raise


def _name_arguments(message: str) -> str:
    """A message with arguments in place of options, ``compile=False`` for ``--no-compile``.

    Options that the message repeats as an argument stay: ``--trust (trust=True)``.
    """
    option = re.compile(r"(?<![\w-])--(no-)?(?!no-)([a-z][a-z0-9-]*)(?![a-z0-9-])(?!(?: [^\s(]+)? \(\2=)")
    return option.sub(lambda found: found[2].replace("-", "_") + ("=False" if found[1] else ""), message)


def _deliver(stopped_by: str | None, run_dir: Path) -> Path:
    """The directory, after the signal that stopped the run has had its effect, so that loops end."""
    if stopped_by is not None:
        signal.raise_signal(signal.Signals[stopped_by])
    return run_dir

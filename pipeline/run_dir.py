"""A run's directory: its name, its lock, its configuration and task, its last checkpoint."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import mujoco

from envs.environment import Environment
from envs.task_ref import task_file
from pipeline import checkpoint, files, stored_task
from pipeline.config import Config
from pipeline.file_names import CHECKPOINTS, CONFIG, LOCK, OWN_NAMES
from pipeline.run_paths import require_run
from pipeline.trust import choose_task, is_inside
from saltus.errors import SaltusError
from saltus.versions import versions

_OWN_STEMS = frozenset(Path(name).stem for name in OWN_NAMES)
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)  # a file system without flock


class _DamagedConfigError(Exception):
    """A config.json that is missing or damaged."""


def default_path(config: Config) -> Path:
    """``runs/<task>-s<seed>-<time>``."""
    return Path("runs") / f"{config.task_name.replace('/', '-')}-s{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def require_unused(run_dir: Path) -> None:
    """Check that a new run may use a directory: it may hold other files, or a run that never saved a checkpoint.

    Raises:
        SaltusError: a file, a directory with a run in it, or one with other files under the names of a run's files.
    """
    if not run_dir.exists():
        return
    if not run_dir.is_dir():
        raise SaltusError(f"{run_dir} is a file, not a directory: choose another --run-dir")
    if checkpoint.find(run_dir / CHECKPOINTS):
        raise SaltusError(
            f"{run_dir} exists: `saltus resume {run_dir}` continues the run in it; a new run needs another --run-dir"
        )
    taken = _own_entries(run_dir)
    # A run makes its lock first. Runs of earlier versions made config.json first.
    if taken and LOCK not in taken and not _holds_config(run_dir / CONFIG):
        raise SaltusError(
            f"{run_dir} holds no run, but {', '.join(taken)}, which a run would overwrite: choose another --run-dir"
        )


def _own_entries(run_dir: Path) -> list[str]:
    """Names in a directory that are those of a run's files, whole or partial."""
    return sorted(
        name
        for name in os.listdir(run_dir)
        if name in OWN_NAMES or (name.endswith(".partial") and Path(name).stem in _OWN_STEMS)
    )


def _holds_config(file: Path) -> bool:
    try:
        return {"config", "versions"} <= json.loads(file.read_text()).keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


@contextmanager
def new_run(config: Config, run_dir: Path | None, model: mujoco.MjModel | None) -> Iterator[Path]:
    """Make and lock the directory of a new run; yield its path.

    Args:
        config: the run's configuration.
        run_dir: the directory; None: `default_path`, with a number appended if it exists.
        model: the task's compiled model, if there is one.

    Raises:
        SaltusError: the directory is in use (see `require_unused` and `locked`).
    """
    if run_dir is None:
        run_dir = _make_default(config)
    else:
        _make(run_dir)
    with locked(run_dir):
        require_unused(run_dir)  # again: another process may have trained in it meanwhile
        create(config, run_dir, model)
        yield run_dir


def _make(run_dir: Path) -> None:
    """Make a directory; of two processes that do so at once, the second is refused, also without locks."""
    require_unused(run_dir)
    existed = run_dir.exists()
    try:
        run_dir.mkdir(parents=True, exist_ok=existed)
    except FileExistsError:
        raise SaltusError(f"another process has just made {run_dir}: choose another --run-dir") from None
    except OSError as error:
        raise _cannot_make(run_dir, error) from error


def _cannot_make(run_dir: Path, error: OSError) -> SaltusError:
    return SaltusError(f"could not make the run's directory {run_dir}: {error.strerror}. Choose another --run-dir")


def _make_default(config: Config) -> Path:
    """Make a directory that no other run has: mkdir decides between runs started in the same second."""
    path = default_path(config)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            candidate = path if number == 1 else path.with_name(f"{path.name}-{number}")
            with suppress(FileExistsError):
                candidate.mkdir()
                return candidate
    except OSError as error:
        raise _cannot_make(path, error) from error
    raise AssertionError


def create(config: Config, run_dir: Path, model: mujoco.MjModel | None) -> None:
    """Write the task's files and config.json to a run's directory, which is made if it does not exist."""
    run_dir.mkdir(parents=True, exist_ok=True)
    record = stored_task.store(run_dir, config.task, model)
    _write_config(run_dir, {"config": config.to_dict(), "versions": versions(), "task": record})


def _write_config(run_dir: Path, content: dict[str, Any]) -> None:
    files.write(run_dir / CONFIG, json.dumps(content, indent=2) + "\n")


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Lock a run's directory against other processes; the lock ends with the process.

    Warns and continues on a file system without locks.

    Raises:
        SaltusError: another process holds the lock, or a file of the run is a symbolic link.
    """
    refuse_links(run_dir)
    descriptor = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        _lock(descriptor, run_dir)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, run_dir: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise SaltusError(f"another process is training in {run_dir}: wait for it to end, or stop it") from None
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"the file system of {run_dir} has no locks ({error.strerror}): make sure that no other process trains in "
            "it, because saltus cannot",
            stacklevel=2,
        )


def refuse_links(run_dir: Path) -> None:
    """Check that no file of a run is a symbolic link, through which saltus would write to another file, or a device.

    The run's directory itself may be a link.

    Raises:
        SaltusError: a link, a named pipe or the like; the message names it.
    """
    for path in (run_dir / name for name in _own_entries(run_dir)):
        if path.is_symlink():
            raise SaltusError(
                f"{path} is a symbolic link, and saltus writes through none: delete it, or put the file or folder "
                "itself there (the run's directory may be a link)"
            )
        if not (path.is_file() or path.is_dir()):
            raise SaltusError(f"{path} is neither a file nor a folder, and saltus would wait for it: delete it")


def open_run(run_dir: Path, task: str | None = None, trust: bool = False) -> tuple[Config, dict[str, Any]]:
    """Read a run's configuration and the content of its last checkpoint that is intact (see `checkpoint.load_last`).

    Nothing is executed. A damaged or missing config.json is replaced by the configuration in the checkpoint, with a
    warning.

    Args:
        run_dir: the run's directory.
        task: the task to use instead of the one in config.json, which may have moved.
        trust: allow a task's file that lies in the run's directory, or the copy that the run keeps.

    Returns:
        The configuration, with the task to use, and the checkpoint's content.

    Raises:
        SaltusError: not a run's directory, a run of another version, or a task's file that is missing or not trusted.
        CheckpointError: no checkpoint, or one that cannot be used.
    """
    require_run(run_dir)
    found = checkpoint.find(run_dir / CHECKPOINTS)
    config = _read_config(run_dir, recover=bool(found))
    if not found:
        raise checkpoint.CheckpointError(f"{run_dir} has no checkpoint: start the run again")
    content = checkpoint.load_last(run_dir / CHECKPOINTS, None if config is None else config.to_dict())
    if config is None:
        config = Config.from_dict(content["config"])
    _require_same_class(run_dir, config, content)
    name = choose_task(run_dir, config.task, task, trust)
    return dataclasses.replace(config, task=name), content


def _read_config(run_dir: Path, recover: bool) -> Config | None:
    """The configuration in config.json; with `recover`, None and a warning if it is missing or damaged."""
    file = run_dir / CONFIG
    try:
        return _parse_config(file)
    except _DamagedConfigError as error:
        if not recover:
            raise SaltusError(f"{file} is damaged ({error}), and there is no checkpoint: start the run again") from None
        warnings.warn(f"{file} is missing or damaged ({error}): the checkpoint's copy is used", stacklevel=3)
        return None


def _parse_config(file: Path) -> Config:
    """The configuration in a config.json.

    Raises:
        SaltusError: it is one of another version.
        _DamagedConfigError: it is missing or damaged.
    """
    try:
        content = dict(json.loads(file.read_text()))
        values, version = dict(content["config"]), str(dict(content["versions"])["saltus"])
        return Config.from_dict(values)
    except SaltusError as error:
        current = versions()["saltus"]
        if version == current:
            raise SaltusError(f"{file}: {error}") from None
        raise SaltusError(
            f"{file.parent} was written by saltus {version}, and saltus {current} cannot read it: use saltus {version} "
            f"for it. Reason: {error}"
        ) from None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise _DamagedConfigError(reason) from error


def _require_same_class(run_dir: Path, config: Config, content: dict[str, Any]) -> None:
    """The task's file may move, but a checkpoint of another task is another run's."""
    known = {config.task_name, *_read_record(run_dir).get("former", ())}
    written = str(content["config"].get("task")).rpartition(":")[2]
    if written not in known:
        raise checkpoint.CheckpointError(
            f"checkpoint {content['file']} belongs to another run: it was written with task {written!r} instead of "
            f"{config.task_name!r}"
        )


def _read_record(run_dir: Path) -> dict[str, Any]:
    """The task's record in config.json, or the one it would have; empty for a run without one."""
    if _holds_config(run_dir / CONFIG):
        record = json.loads((run_dir / CONFIG).read_text()).get("task")
        if isinstance(record, dict) and _is_record(record):
            return record
    return stored_task.find_record(run_dir)


def _is_record(record: dict[str, Any]) -> bool:
    """Whether a record is one of `stored_task.store`, perhaps with former names."""
    former = record.get("former", [])
    names = [value for name, value in record.items() if name != "former"]
    pairs = (("file" in record) == ("sha256" in record)) and (("model" in record) == ("model_sha256" in record))
    return pairs and isinstance(former, list) and all(isinstance(name, str) for name in [*former, *names])


def require_same_dimensions(content: dict[str, Any], env: Environment) -> None:
    """Check that a checkpoint fits the task.

    Raises:
        SaltusError: the task has observations, privileged observations or actions of other widths, or other choices of
            discrete actions.
    """
    stored = content["state"]["buffer"]["stored"]
    run = (stored[name].shape[1] if name in stored else 0 for name in ("observation", "privileged", "action"))
    choices = content["state"]["environment"].get("action_choices")  # absent of tasks, and in old checkpoints
    found = _describe_dimensions(env.action_choices, env.observation_dim, env.privileged_dim, env.action_dim)
    expected = _describe_dimensions(() if choices is None else choices.tolist(), *run)
    if found != expected:
        raise SaltusError(
            f"task {env.name} has {found}, and the run has {expected}: it is not the run's task, or its "
            "file has changed. Name the run's with --task (task=...)"
        )


def _describe_dimensions(choices: Sequence[int], observation_dim: int, privileged_dim: int, action_dim: int) -> str:
    privileged = f", {privileged_dim} privileged observations" if privileged_dim else ""
    discrete = f" of {', '.join(map(str, choices))} choices" if choices else ""
    return f"{observation_dim} observations{privileged} and {action_dim} actions{discrete}"


def require_same_state(run_dir: Path, model: mujoco.MjModel | None) -> None:
    """Raise SaltusError if the model of a run that resumes has a state of another size than the stored one."""
    if model is not None:
        stored_task.require_same_state(run_dir, _read_record(run_dir), model)


def compare_task(config: Config, run_dir: Path, model: mujoco.MjModel | None, effect: str) -> None:
    """Warn of each difference between a run's present task and the stored one.

    Args:
        config: the run's configuration, with the present task.
        run_dir: the run's directory.
        model: the present task's compiled model, if there is one.
        effect: the consequence of a difference, which the warning states.
    """
    changed = stored_task.changes(run_dir, _read_record(run_dir), config.task, model)
    if changed:
        warnings.warn(f"{effect}: its task has changed ({'; '.join(changed)})", stacklevel=2)


def compare_versions(written_by: dict[str, str]) -> None:
    """Warn if a run that resumes was written by other versions."""
    changed = [
        f"{name} {written_by.get(name)} -> {now}" for name, now in versions().items() if written_by.get(name) != now
    ]
    if changed:
        warnings.warn(f"resumed, but not bit for bit: versions differ ({', '.join(changed)})", stacklevel=2)


def update_config(config: Config, run_dir: Path, content: dict[str, Any]) -> None:
    """Keep a new name of the run's task in config.json, and restore the file if it is missing or damaged.

    The path of a task's file in the run's directory is not kept: it is executed only where the user asks for it.

    Args:
        config: the run's configuration, with the present task.
        run_dir: the run's directory.
        content: that of the run's last checkpoint.
    """
    file = task_file(config.task)
    record = _read_record(run_dir)
    try:
        recorded = _parse_config(run_dir / CONFIG)
        kept = json.loads((run_dir / CONFIG).read_text())
    except _DamagedConfigError:
        recorded = Config.from_dict(content["config"])
        kept = {"config": recorded.to_dict(), "versions": content["versions"], "task": record}
        _write_config(run_dir, kept)
    if recorded.task == config.task or (file is not None and is_inside(file, run_dir)):
        return
    former = sorted({*record.get("former", ()), recorded.task_name})
    kept["config"]["task"] = config.task
    _write_config(run_dir, {**kept, "task": {**record, "former": former}})


def describe_checkpoint(content: dict[str, Any], config: Config) -> str:
    """Where a run continues, given the content of its last checkpoint."""
    file, state = content["file"], content["state"]
    if state["ended"] and not state["evaluation_pending"]:
        return f"the run is complete: {file} holds its last env step, {state['env_steps']:,}"
    if config.minutes is None:
        return f"continuing from {file}, at {state['env_steps']:,} of {config.total_env_steps:,} env steps"
    minutes = f"{state['seconds'] / 60:.1f} of {config.minutes:g} minutes"
    return f"continuing from {file}, at {state['env_steps']:,} env steps and {minutes}"

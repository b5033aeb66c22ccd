"""A stored run: its configuration and last checkpoint, compared with the present task and versions."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import mujoco

from envs.environment import Environment
from envs.task_ref import task_file
from pipeline import checkpoint, stored_task
from pipeline.config import Config
from pipeline.dimensions import Dimensions
from pipeline.file_names import CHECKPOINTS, CONFIG
from pipeline.run_dir import holds_config, write_config
from pipeline.run_paths import require_run
from pipeline.trust import choose_task, is_inside
from saltus.errors import SaltusError
from saltus.versions import versions


class _DamagedConfigError(Exception):
    """A config.json that is missing or damaged."""


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
    config = read_config(run_dir, recover=bool(found))
    if not found:
        raise checkpoint.CheckpointError(f"{run_dir} has no checkpoint: start the run again")
    content = checkpoint.load_last(run_dir / CHECKPOINTS, None if config is None else config.to_dict())
    if config is None:
        config = Config.from_dict(content["config"])
    _require_same_class(run_dir, config, content)
    name = choose_task(run_dir, config.task, task, trust)
    return dataclasses.replace(config, task=name), content


def read_config(run_dir: Path, recover: bool) -> Config | None:
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
    if holds_config(run_dir / CONFIG):
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
    choices = content["state"]["environment"].get("action_choices")  # absent of tasks, and in old checkpoints
    found = Dimensions.of(env)
    expected = Dimensions(
        observation_dim=stored["observation"].shape[1],
        action_dim=stored["action"].shape[1],
        privileged_dim=stored["privileged"].shape[1] if "privileged" in stored else 0,
        action_choices=() if choices is None else tuple(choices.tolist()),
    )
    if found != expected:
        raise SaltusError(
            f"task {env.name} has {found}, and the run has {expected}: it is not the run's task, or its "
            "file has changed. Name the run's with --task (task=...)"
        )


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
        write_config(run_dir, kept)
    if recorded.task == config.task or (file is not None and is_inside(file, run_dir)):
        return
    former = sorted({*record.get("former", ()), recorded.task_name})
    kept["config"]["task"] = config.task
    write_config(run_dir, {**kept, "task": {**record, "former": former}})


def describe_checkpoint(content: dict[str, Any], config: Config) -> str:
    """A line that says from which checkpoint and env step a run continues, given the checkpoint's content."""
    file, state = content["file"], content["state"]
    if state["ended"] and not state["evaluation_pending"]:
        return f"the run is complete: {file} holds its last env step, {state['env_steps']:,}"
    if config.minutes is None:
        return f"continuing from {file}, at {state['env_steps']:,} of {config.total_env_steps:,} env steps"
    minutes = f"{state['seconds'] / 60:.1f} of {config.minutes:g} minutes"
    return f"continuing from {file}, at {state['env_steps']:,} env steps and {minutes}"

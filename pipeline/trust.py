"""Which task's file a run may execute."""

from __future__ import annotations

import logging
from pathlib import Path

from envs.task_ref import GYMNASIUM, split_name, task_file
from pipeline.file_names import TASK
from saltus.errors import SaltusError

_log = logging.getLogger("saltus")


def choose_task(run_dir: Path, recorded: str, given: str | None, trust: bool) -> str:
    """The name of the task to load for a run: `given`, else the recorded one, else the run's copy of its file.

    Executes nothing. Logs the path of the file that will be executed, or the module that will be imported.

    Args:
        run_dir: the run's directory.
        recorded: the task in config.json.
        given: the task that the user named, if any.
        trust: whether the user trusts Python files in the run's directory.

    Raises:
        SaltusError: a recorded file is missing, or its path is relative or leads through links; a file needs `trust`.
    """
    name = recorded if given is None else given
    parts, file = split_name(name), task_file(name)
    if parts is None or file is None:
        module, separator, _ = name.removeprefix(GYMNASIUM).rpartition(":")
        if name.startswith(GYMNASIUM) and separator:
            _log.info(f"importing the module {module}, which registers {name}")
        return name
    recorded_path, class_name = parts
    if given is None and recorded_path != str(file):
        raise SaltusError(
            f"config.json names the task's file by the path {recorded_path}, which leads to {file} here. saltus "
            f"records absolute paths without links only: {_name_it(class_name)}"
        )
    if given is None and not file.is_file():
        file = _copy(run_dir, file, class_name, trust)
    if is_inside(file, run_dir) and not trust:
        raise SaltusError(
            f"the task's file {file} lies in the run's directory, and saltus would execute it: read it, then repeat "
            "with --trust (trust=True) if you trust whoever wrote it"
        )
    if file.is_file():  # else `resolve_task` says that it is missing
        _log.info(f"executing the task's file {file}")
    return f"{file}:{class_name}"


def _copy(run_dir: Path, file: Path, class_name: str, trust: bool) -> Path:
    """The run's copy of a file that is missing; SaltusError if there is none, or it needs `trust`."""
    copy = run_dir.resolve() / TASK / file.name
    if not copy.is_file():
        raise SaltusError(f"the task's file {file} is missing: {_name_it(class_name)}")
    if not trust:
        raise SaltusError(
            f"the task's file {file} is missing: {_name_it(class_name)}. Or execute the run's own copy, {copy}, "
            "with --trust (trust=True), if you trust whoever wrote it; files that it reads must lie beside it"
        )
    return copy


def is_inside(file: Path, run_dir: Path) -> bool:
    """Whether a file lies in a run's directory; links are followed."""
    return file.resolve().is_relative_to(run_dir.resolve())


def _name_it(class_name: str) -> str:
    return f"name it with --task path/to/file.py:{class_name} (task=...)"

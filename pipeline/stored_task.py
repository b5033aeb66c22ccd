"""The task of a run: its file's text and compiled model, kept with the run and compared with the present ones."""

from __future__ import annotations

import difflib
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from envs.task_ref import resolve_task, task_file
from pipeline import files
from pipeline.file_names import TASK as FOLDER
from saltus.errors import SaltusError

MODEL = "model.mjb"
_LISTED = 8  # lines or arrays that a message names

_log = logging.getLogger("saltus")


def store(run_dir: Path, task: str, model: mujoco.MjModel) -> dict[str, Any]:
    """Write ``task/<name>.py`` and ``task/model.mjb`` to a run's directory.

    Returns:
        Their names and SHA-256, as config.json keeps them.
    """
    folder, ref = run_dir / FOLDER, resolve_task(task)
    folder.mkdir(exist_ok=True)
    record: dict[str, Any] = {}
    if ref.file is not None and ref.text is not None:
        files.write(folder / ref.file.name, ref.text)
        record |= {"file": f"{FOLDER}/{ref.file.name}", "sha256": _hash(ref.text.encode())}
    binary = _to_binary(model)
    files.write(folder / MODEL, binary)
    return {**record, "model": f"{FOLDER}/{MODEL}", "model_sha256": _hash(binary)}


def choose(run_dir: Path, recorded: str, given: str | None, trust: bool) -> str:
    """The name of the task to load for a run: `given`, else the recorded one, else the run's copy of its file.

    Executes nothing. Logs the path of the file that will be executed.

    Args:
        run_dir: the run's directory.
        recorded: the task in config.json.
        given: the task that the user named, if any.
        trust: whether the user trusts Python files in the run's directory.

    Raises:
        SaltusError: the file is missing or named by a relative path, or it needs `trust`.
    """
    name = given or recorded
    file = task_file(name)
    if file is None:
        return name
    class_name = name.rpartition(":")[2]
    if given is None and not Path(name.rpartition(":")[0]).is_absolute():
        raise SaltusError(
            f"config.json names the task's file by a relative path, {name}, as saltus never does: "
            f"{_name_it(class_name)}"
        )
    if given is None and not file.is_file():
        copy = run_dir.resolve() / FOLDER / file.name
        if not copy.is_file():
            raise SaltusError(f"the task's file {file} is missing: {_name_it(class_name)}")
        if not trust:
            raise SaltusError(
                f"the task's file {file} is missing: {_name_it(class_name)}. Or execute the run's own copy, {copy}, "
                "with --trust (trust=True), if you trust whoever wrote it"
            )
        file = copy
    if is_inside(file, run_dir) and not trust:
        raise SaltusError(
            f"the task's file {file} lies in the run's directory, and saltus would execute it: read it, then repeat "
            "with --trust (trust=True) if you trust whoever wrote it"
        )
    _log.info(f"executing the task's file {file}")
    return f"{file}:{class_name}"


def is_inside(file: Path, run_dir: Path) -> bool:
    """Whether a file lies in a run's directory; links are followed."""
    return file.resolve().is_relative_to(run_dir.resolve())


def _name_it(class_name: str) -> str:
    return f"name it with --task path/to/file.py:{class_name} (task=...)"


def changes(run_dir: Path, record: dict[str, Any], task: str, model: mujoco.MjModel) -> list[str]:
    """What differs between a run's stored task and the present one, in words; empty if nothing does.

    Args:
        run_dir: the run's directory.
        record: the result of `store`; empty for a run without a stored task.
        task: the present task.
        model: its compiled model.

    Raises:
        SaltusError: the model has another state than the run's.
    """
    return [*_text_changes(run_dir, record, task), *_model_changes(run_dir, record, model)]


def _text_changes(run_dir: Path, record: dict[str, Any], task: str) -> Iterator[str]:
    ref = resolve_task(task)
    if "sha256" not in record or ref.text is None or _hash(ref.text.encode()) == record["sha256"]:
        return
    stored = _read(run_dir / record["file"], record["sha256"])
    if stored is None:
        yield f"{ref.file} has another text than at the start of the run"
    else:
        lines = _listed(_changed_lines(stored.decode(), ref.text))
        yield f"{ref.file} differs from {run_dir / record['file']} in {lines}"


def _changed_lines(before: str, after: str) -> list[str]:
    """Line numbers in `after`, such as "lines 3-5" or "after line 7" where lines are missing."""
    found = []
    matcher = difflib.SequenceMatcher(None, before.splitlines(), after.splitlines(), autojunk=False)
    for kind, _, _, start, end in matcher.get_opcodes():
        if kind == "delete":
            found.append(f"lines removed after line {start}")
        elif kind != "equal":
            found.append(f"line {end}" if end == start + 1 else f"lines {start + 1}-{end}")
    return found or ["line ends"]


def _model_changes(run_dir: Path, record: dict[str, Any], model: mujoco.MjModel) -> Iterator[str]:
    if "model_sha256" not in record or _hash(_to_binary(model)) == record["model_sha256"]:
        return
    stored = _read_model(run_dir / record["model"], record["model_sha256"])
    if stored is None:
        yield "the compiled model differs from that at the start of the run"
        return
    sizes = [mujoco.mj_stateSize(one, mujoco.mjtState.mjSTATE_INTEGRATION) for one in (stored, model)]
    if sizes[0] != sizes[1]:
        raise SaltusError(
            f"the task's model has changed since the start of the run: its state has {sizes[1]} numbers, and the run's "
            f"has {sizes[0]}. Restore the model ({run_dir / record['model']} is the run's), or train a new run"
        )
    different = _different_arrays(stored, model)
    if different:
        yield f"the compiled model differs from {run_dir / record['model']} in {_listed(different)}"


def _different_arrays(left: mujoco.MjModel, right: mujoco.MjModel) -> list[str]:
    """Names of the arrays, such as "body_mass" and "opt.timestep", that differ between two models."""
    others = _arrays(right)
    return [
        name
        for name, array in _arrays(left).items()
        if not np.array_equal(array, others[name], equal_nan=array.dtype.kind == "f")
    ]


def _arrays(model: mujoco.MjModel) -> dict[str, np.ndarray]:
    """A model's arrays, and the numbers in ``opt`` and ``stat``, by name."""
    found = {name: value for name in dir(model) if isinstance(value := getattr(model, name), np.ndarray)}
    for part in ("opt", "stat"):
        values = getattr(model, part)
        found |= {
            f"{part}.{name}": np.asarray(value)
            for name in dir(values)
            if isinstance(value := getattr(values, name), np.ndarray | int | float)
        }
    return found


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _to_binary(model: mujoco.MjModel) -> bytes:
    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer.tobytes()


def _read_model(path: Path, sha256: str) -> mujoco.MjModel | None:
    """A stored model; None if it is not the one stored, or not readable by this version of MuJoCo."""
    binary = _read(path, sha256)
    try:
        return binary and mujoco.MjModel.from_binary_path(MODEL, {MODEL: binary})
    except ValueError:
        return None


def _read(path: Path, sha256: str) -> bytes | None:
    """The content of a stored file; None if it is missing or another."""
    content = path.read_bytes() if path.is_file() else b""
    return content if _hash(content) == sha256 else None


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

"""The task of a run: its file's text and compiled model, kept with the run and compared with the present ones."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from envs.environment_ref import resolve_environment
from pipeline import files
from pipeline.file_names import TASK as FOLDER
from saltus.errors import SaltusError

MODEL = "model.mjb"
_LISTED = 8  # lines or arrays that a message names


def store(run_dir: Path, task: str, model: mujoco.MjModel | None) -> dict[str, Any]:
    """Write ``task/<name>.py`` and ``task/model.mjb`` to a run's directory, as far as there are such.

    Returns:
        Their names and SHA-256, as config.json keeps them.
    """
    folder, ref = run_dir / FOLDER, resolve_environment(task)
    folder.mkdir(exist_ok=True)
    record: dict[str, Any] = {}
    if ref.file is not None and ref.text is not None:
        files.write(folder / ref.file.name, ref.text)
        record |= {"file": f"{FOLDER}/{ref.file.name}", "sha256": _hash(ref.text.encode())}
    if model is None:
        return record
    binary = to_binary(model)
    files.write(folder / MODEL, binary)
    return {**record, "model": f"{FOLDER}/{MODEL}", "model_sha256": _hash(binary)}


def find_record(run_dir: Path) -> dict[str, Any]:
    """The result of `store`, from the files in a run's ``task/``; without a task's file if there are several."""
    folder = run_dir / FOLDER
    record: dict[str, Any] = {}
    texts = [path for path in folder.glob("*.py") if path.is_file()]
    if len(texts) == 1:
        record |= {"file": f"{FOLDER}/{texts[0].name}", "sha256": _hash(texts[0].read_bytes())}
    if (folder / MODEL).is_file():
        record |= {"model": f"{FOLDER}/{MODEL}", "model_sha256": _hash((folder / MODEL).read_bytes())}
    return record


def changes(run_dir: Path, record: dict[str, Any], task: str, model: mujoco.MjModel | None) -> list[str]:
    """Differences between a run's stored task and the present one, in words; empty if there are none.

    Args:
        run_dir: the run's directory.
        record: the result of `store`; empty for a run without a stored task.
        task: the present task.
        model: its compiled model, if it has one.
    """
    found = list(_text_changes(run_dir, record, task))
    return found if model is None else [*found, *_model_changes(run_dir, record, model)]


def hash_model(model: mujoco.MjModel | None) -> str | None:
    """SHA-256 of a compiled model; None if there is none."""
    return None if model is None else _hash(to_binary(model))


def require_same_state(run_dir: Path, record: dict[str, Any], model: mujoco.MjModel) -> None:
    """Raise SaltusError if a model's state has another size than that of the run's stored model."""
    stored = _read_model(run_dir / record["model"], record["model_sha256"]) if "model" in record else None
    if stored is None:
        return
    now, run = (mujoco.mj_stateSize(one, mujoco.mjtState.mjSTATE_INTEGRATION) for one in (model, stored))
    if now != run:
        raise SaltusError(
            f"the task's model has changed since the start of the run: its state has {now} numbers, and the run's "
            f"has {run}. Restore the model ({run_dir / record['model']} is the run's), or train a new run"
        )


def _text_changes(run_dir: Path, record: dict[str, Any], task: str) -> Iterator[str]:
    ref = resolve_environment(task)
    if "sha256" not in record or ref.text is None or _hash(ref.text.encode()) == record["sha256"]:
        return
    stored = _read(run_dir / record["file"], record["sha256"])
    if stored is None:
        yield f"{ref.file} has another text than at the start of the run"
    else:
        lines = _listed(_changed_lines(stored.decode(errors="replace"), ref.text))
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
    if "model_sha256" not in record or _hash(to_binary(model)) == record["model_sha256"]:
        return
    stored = _read_model(run_dir / record["model"], record["model_sha256"])
    if stored is None:
        yield "the compiled model differs from that at the start of the run"
        return
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
    """A model's arrays, and the numbers in ``opt`` and ``stat``, by name.

    Without those that depend on the paths of its meshes and other files, which change when the files move.
    """
    names = [name for name in dir(model) if not name.startswith("_") and not name.endswith("_pathadr")]
    found = {name: value for name in names if isinstance(value := getattr(model, name), np.ndarray)}
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


def to_binary(model: mujoco.MjModel) -> bytes:
    """A compiled model as the content of an mjb file."""
    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer.tobytes()


def _read_model(path: Path, sha256: str) -> mujoco.MjModel | None:
    """A stored model; None if it is not the one stored, or not readable by this version of MuJoCo."""
    binary = _read(path, sha256)
    try:
        return binary and mujoco.MjModel.from_binary_path(MODEL, {MODEL: binary})
    except Exception:  # a forged file: mujoco.FatalError
        return None


def _read(path: Path, sha256: str) -> bytes | None:
    """The content of a stored file; None if it is missing or another."""
    content = path.read_bytes() if path.is_file() else b""
    return content if _hash(content) == sha256 else None


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

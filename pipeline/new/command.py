"""``saltus new MODEL``."""

from __future__ import annotations

import builtins
import keyword
import os
import re
import shlex
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import mujoco
import tyro

from envs.object_names import one_line
from envs.package_files import find_in_package, is_in_package
from envs.task import Task, load_model
from pipeline.new.plan import make_plan
from pipeline.new.template import task_file
from saltus.errors import SaltusError


@dataclass(frozen=True)
class New:
    """Write a task's file for a MuJoCo model: a start that trains at once, to be changed."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """The path of an MJCF file, or package:NAME/PATH of one inside an installed package."""
    output: Path | None = None
    """File to write. None: the model's name as <name>.py, in the current folder."""
    name: str | None = None
    """Name of the task's class. None: the model's name."""


def new_task(arguments: list[str]) -> str:
    """Write a task's file; returns what to print.

    Raises:
        SaltusError: no such model, a model that cannot be used, an impossible name, or an existing output.
        SystemExit: help was asked for (code 0), or tyro refused an option (code 2).
    """
    if "" in arguments:
        raise SaltusError("an argument is empty: name the file of a model (is a shell variable unset?)")
    options = tyro.cli(New, args=arguments, prog="saltus new")
    reference = str(options.model)
    model_file = find_in_package(reference) if is_in_package(reference) else options.model.expanduser()
    if not model_file.is_file():
        found = "is a folder" if model_file.is_dir() else "does not exist"
        raise SaltusError(f"the model {model_file} {found}; expected the path of an MJCF file: saltus new robot.xml")
    stem = unicodedata.normalize("NFKC", model_file.stem)  # as Python reads names
    words = [word for word in re.split(r"[\W_]+|(?<=[a-z0-9])(?=[A-Z])", stem) if word]
    name = _class_name(words) if options.name is None else _checked_name(options.name)
    output = _output(options.output, words)
    model = _load(model_file, name)
    try:
        mjcf = reference if is_in_package(reference) else _path_from(output, model_file)
        text = task_file(make_plan(model, name), mjcf, name)
    except SaltusError as error:
        raise SaltusError(f"no task was written for {model_file}: {error}") from error
    _write(output, text)
    task = shlex.quote(f"{output}:{name}")
    return f"{output}\nNext: look at its reward, then\n  saltus check {task}\n  saltus train {task}"


def _class_name(words: list[str]) -> str:
    name = "".join(word[0].upper() + word[1:] for word in words)
    return next((one for one in (name, f"Model{name}") if _is_free(one)), "Model")


def _checked_name(given: str) -> str:
    name = unicodedata.normalize("NFKC", given)
    if not _is_free(name):
        raise SaltusError(f"--name is {given!r}; expected the name of a class, such as MyRobot")
    return name


def _is_free(name: str) -> bool:
    """Whether a class of this name can be written, and hides nothing that its file uses."""
    taken = {*dir(builtins), Task.__name__, "dataclass", "torch"}
    return name.isidentifier() and not keyword.iskeyword(name) and name not in taken


def _write(output: Path, text: str) -> None:
    """Write a new file, whole or not at all."""
    try:
        with output.open("x", encoding="utf-8") as file:
            try:
                file.write(text)
                file.flush()
            except OSError:
                output.unlink()
                raise
    except OSError as error:
        raise SaltusError(f"could not write {output}: {error.strerror}. Choose another file by --output") from error


def _output(given: Path | None, words: list[str]) -> Path:
    """The file to write, which does not exist yet."""
    path = Path("_".join(words or ["model"]).lower() + ".py") if given is None else given.expanduser()
    if path.suffix != ".py":
        raise SaltusError(f"--output is {str(path)!r}; expected the name of a Python file, such as robot.py")
    if not path.parent.is_dir():
        raise SaltusError(f"--output {path}: there is no folder {path.parent}; make it first")
    if path.exists() or path.is_symlink():
        raise SaltusError(f"{path} exists already, and is not overwritten: choose another file by --output")
    return path


def _load(file: Path, name: str) -> mujoco.MjModel:
    """Compile a model as the task will; MuJoCo's message becomes one line."""
    task = type(name, (Task,), {"mjcf": file.absolute()})()
    try:
        return load_model(task)
    except SaltusError as error:
        reason = f"MuJoCo does not compile it: {error.__cause__}" if error.__cause__ else str(error)
        raise SaltusError(f"{file} cannot be used: {one_line(reason)}") from error


def _path_from(output: Path, model_file: Path) -> str:
    """The model's path in the task's file: relative if both lie in the current folder, or the model in the task's."""
    folder, current = output.parent.resolve(), Path.cwd().resolve()
    model = model_file.parent.resolve() / model_file.name
    together = model.is_relative_to(current) and folder.is_relative_to(current)
    if together or model.is_relative_to(folder):
        return Path(os.path.relpath(model, folder)).as_posix()
    return model.as_posix()

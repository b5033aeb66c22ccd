"""GymnasiumTask: a base class for Gymnasium's tasks, with the models of the installed package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from envs.package_files import find_in_package, is_in_package
from envs.task import Task
from saltus.errors import SaltusError, warn_once


class GymnasiumTask(Task):
    """A task of Gymnasium's.

    `xml_file` is the name of one of Gymnasium's models, ``package:NAME/PATH`` of a file inside an installed package, or
    the path of an XML file; a relative path starts at the current folder. A subclass that sets `mjcf` does not use it.
    Derived fields lag one physics step, as in Gymnasium.
    """

    xml_file: str
    recompute_derived: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.mjcf is None:
            self.mjcf = _find_model(self.xml_file)
        elif self.xml_file != getattr(type(self), "xml_file", None):
            raise SaltusError(
                f"xml_file has no effect: task {type(self).__name__} has a model of its own, set as `mjcf`"
            )


def is_gymnasium_model(xml_file: str) -> bool:
    """Whether an `xml_file` is the plain name of one of Gymnasium's models."""
    return not xml_file.startswith((".", "/", "~")) and (_gymnasium_assets() / xml_file).is_file()


def _find_model(xml_file: str) -> Path:
    """The absolute path of a model: Gymnasium's by a plain name, else the user's.

    Raises:
        SaltusError: there is no such file.
    """
    if is_in_package(xml_file):
        return find_in_package(xml_file)
    own, gymnasium = Path(xml_file).expanduser().absolute(), _gymnasium_assets() / xml_file
    if is_gymnasium_model(xml_file):
        if own.is_file() and own.read_bytes() != gymnasium.read_bytes():
            warn_once(
                f"xml_file {xml_file} is Gymnasium's model; for the file in the current folder write ./{xml_file}"
            )
        return gymnasium
    if not own.is_file():
        names = ", ".join(sorted(file.name for file in _gymnasium_assets().glob("*.xml")))
        raise SaltusError(
            f"xml_file is {xml_file!r}: there is no file {own}, and no such model of Gymnasium's; expected the path of "
            f"an XML file, or one of {names}"
        )
    return own


def _gymnasium_assets() -> Path:
    spec = find_spec("gymnasium")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the model files of the built-in tasks are Gymnasium's: pip install gymnasium")
    return Path(spec.origin).parent / "envs" / "mujoco" / "assets"

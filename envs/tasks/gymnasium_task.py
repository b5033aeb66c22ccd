"""GymnasiumTask: a base class for Gymnasium's tasks, with the models of the installed package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from envs.task import Task


class GymnasiumTask(Task):
    """A task of Gymnasium's.

    `xml_file` is the name of one of Gymnasium's models, or a path that starts with ``/``, ``.`` or ``~``. Derived
    fields lag one physics step, as in Gymnasium.
    """

    xml_file: str
    recompute_derived: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.xml_file.startswith((".", "/", "~")):
            # Absolute, so that a run resumed from another folder finds the same file.
            self.xml_file = str(Path(self.xml_file).expanduser().absolute())
        self.mjcf = _gymnasium_assets() / self.xml_file


def _gymnasium_assets() -> Path:
    spec = find_spec("gymnasium")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the model files of the built-in tasks are Gymnasium's: pip install gymnasium")
    return Path(spec.origin).parent / "envs" / "mujoco" / "assets"

"""Gymnasium's own model files, read from the installed package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def asset(xml_file: str) -> Path:
    """The path of `xml_file`: as it stands if it starts with ``/``, ``.`` or ``~``, else among Gymnasium's models."""
    if xml_file.startswith((".", "/", "~")):
        return Path(xml_file).expanduser().absolute()
    spec = find_spec("gymnasium")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{xml_file} is one of Gymnasium's models: pip install gymnasium")
    return Path(spec.origin).parent / "envs" / "mujoco" / "assets" / xml_file

"""Files inside installed Python packages: ``package:dm_control/suite/quadruped.xml``."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from saltus.errors import SaltusError, did_you_mean

PREFIX = "package:"


def is_in_package(reference: object) -> bool:
    """Whether a path names a file inside an installed package."""
    return isinstance(reference, str) and reference.startswith(PREFIX)


def find_in_package(reference: str) -> Path:
    """Find a file inside an installed package, which is not imported.

    Args:
        reference: ``package:``, the package's name as in an import statement, and the file's path inside the package.

    Raises:
        SaltusError: a reference of another form, no such package, or no such file in it.
    """
    package, _, inside = reference.removeprefix(PREFIX).partition("/")
    if not (package.isidentifier() and inside):
        raise SaltusError(
            f"{reference!r} names no file: expected package:NAME/PATH, such as package:dm_control/suite/quadruped.xml, "
            "with the name by which Python imports the package"
        )
    folders = [Path(folder) for folder in _folders(package)]
    if not folders:
        raise SaltusError(
            f"{reference!r}: there is no package {package!r} for {sys.executable}. Install it there; its name here is "
            "the one by which Python imports it, which may differ from the one by which pip installs it"
        )
    for folder in folders:
        if (folder / inside).is_file():
            return (folder / inside).absolute()
    raise SaltusError(f"{reference!r}: there is no file {folders[0] / inside}{_similar(folders[0], inside)}")


def _folders(package: str) -> list[str]:
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):  # of a module without a specification, such as __main__
        return []
    return list(spec.submodule_search_locations or []) if spec else []


def _similar(folder: Path, inside: str) -> str:
    """Files of the package with the same name, or a similar path."""
    ending = Path(inside).suffix
    files = [path.relative_to(folder).as_posix() for path in folder.rglob(f"*{ending}")] if ending else []
    if same_name := [file for file in files if Path(file).name == Path(inside).name]:
        return f"; the package has {', '.join(same_name[:3])}"
    return did_you_mean(inside, files) or f"; the package has no {ending} file of a similar name"

"""Execute the files of tasks: once per path. Modules in their folder are importable.

The Python files of a folder with tasks become modules of a package that exists in this process only. So two folders
can have modules of one name, and Python's path stays unchanged. ``import rewards`` in such a file finds the file
rewards.py in its folder, unless an installed package has that name.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import importlib.util
import os
import sys
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
)
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from saltus.errors import SaltusError

PACKAGE = "saltus_tasks_"
OWN = ("saltus", "envs", "pipeline")

_texts: dict[Path, str] = {}
_executing: list[Path] = []


def execute(path: Path) -> ModuleType:
    """The module of a file, which is executed once per process.

    Its folder is the current one meanwhile. A file that was edited since is not executed again, because there would be
    two of each class in it; a warning says so.

    Args:
        path: absolute, without symbolic links.

    Raises:
        SaltusError: a file of that folder imports a module that does not exist.
    """
    module = _find_module(path)
    if module is not None:
        if path in _texts and _texts[path] != _read(path):
            warnings.warn(
                f"{path} was edited after this process executed it; start Python again to use it", stacklevel=2
            )
        return module
    name = f"{_package(path.parent)}.{path.stem.replace('.', '%')}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_Loader(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module by name
    _executing.append(path)
    try:
        with _working_in(path.parent):
            spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        del sys.modules[name]
        if place := _own_import(path.parent, error):
            raise SaltusError(
                f"{place} imports {error.name}, which is neither installed nor in {path.parent}: was it renamed or "
                "moved? A run whose task has moved finds it by --task path/to/file.py:ClassName (task=...)"
            ) from error
        raise
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        _executing.pop()
    return module


def _own_import(folder: Path, error: ModuleNotFoundError) -> str | None:
    """``file:line`` of the import that failed, if it is in a file of `folder`; other packages' errors are their own."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = [one for one in frames if not one.filename.startswith(("<frozen importlib", __file__))][-1:]
    return f"{frame[0].filename}:{frame[0].lineno}" if frame and Path(frame[0].filename).parent == folder else None


def executing() -> Path | None:
    """The file that `execute` executes at the moment, if any."""
    return _executing[-1] if _executing else None


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """Make a folder the current one.

    "" in Python's path keeps its meaning, so that files in the folder do not shadow installed modules.
    """
    before = os.getcwd()
    is_listed = "" in sys.path
    if is_listed:
        sys.path[sys.path.index("")] = before
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        if is_listed and before in sys.path:
            sys.path[sys.path.index(before)] = ""


def text_of(path: Path) -> str:
    """The text of a file, as it was executed."""
    return _texts[path] if path in _texts else _read(path)


def _read(path: Path) -> str:
    return importlib.util.decode_source(path.read_bytes())


def _find_module(path: Path) -> ModuleType | None:
    """The module of a file in this process, also one that a program has imported by itself."""
    for module in list(sys.modules.values()):
        file = getattr(module, "__dict__", {}).get("__file__")
        if isinstance(file, str) and os.path.basename(file) == path.name and Path(file).resolve() == path:
            return module
    return None


def _package(folder: Path) -> str:
    """The name of the package whose modules are the files of a folder."""
    name = f"{PACKAGE}{zlib.crc32(bytes(folder)):08x}"
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    return name


class _Loader(SourceFileLoader):
    """Executes the text of a file, never a compiled copy, with the import statement of `_importer`."""

    def get_code(self, fullname: str) -> CodeType:
        path = Path(self.path)
        source = self.get_data(self.path)
        _texts[path] = importlib.util.decode_source(source)
        return self.source_to_code(source, self.path)

    def exec_module(self, module: ModuleType) -> None:
        package = module.__name__.partition(".")[0]
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _importer(package)}
        super().exec_module(module)


class _Finder(MetaPathFinder):
    """Finds the modules of the packages of tasks' folders."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return _find_in(path or (), name) if name.startswith(PACKAGE) else None


sys.meta_path.insert(0, _Finder())


def _find_in(folders: Sequence[str], name: str) -> ModuleSpec | None:
    for folder in folders:
        spec = FileFinder(folder, (ExtensionFileLoader, EXTENSION_SUFFIXES), (_Loader, SOURCE_SUFFIXES)).find_spec(name)
        if spec is not None:
            return spec
    return None


def _importer(package: str) -> Callable[..., Any]:
    """``__import__`` for the files of a folder: the modules of that folder, and all that other files can import."""

    def import_(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        head = name.partition(".")[0]
        if level or not _is_beside(package, head):
            return builtins.__import__(name, globals, locals, fromlist, level)
        module = builtins.__import__(f"{package}.{name}", globals, locals, fromlist)
        return module if fromlist else sys.modules[f"{package}.{head}"]

    return import_


@functools.cache
def _is_beside(package: str, name: str) -> bool:
    """Whether a top-level name is a module in the folder of `package`, and not one that is installed."""
    spec = _find_in(sys.modules[package].__path__, f"{package}.{name}")
    if spec is None or name in (*OWN, *sys.stdlib_module_names):
        return False
    elsewhere = importlib.util.find_spec(name)
    if elsewhere is None:
        return True
    if name in sys.modules and elsewhere.origin == spec.origin:  # a program has imported it by itself
        return False
    # The first entry of Python's path is the current folder or that of the program: not where packages are installed.
    return _folder_of(elsewhere) in (_folder_of(spec), Path(sys.path[0]).resolve())


def _folder_of(spec: ModuleSpec) -> Path:
    """The folder that contains a module's file or a package's folder."""
    locations = list(spec.submodule_search_locations or ())
    return Path(locations[0] if locations else spec.origin or "").resolve().parent

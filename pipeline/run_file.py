"""Files of a run that only grow: written whole or not at all, never the end of a run."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Folder:
    """A directory that is followed when it is renamed.

    Args:
        path: the directory; it need not exist yet.
    """

    def __init__(self, path: Path):
        self._path = path
        self._descriptor: int | None = None

    @property
    def path(self) -> Path:
        """The directory's current path; the first path if it was removed."""
        if self._descriptor is None and self._path.is_dir():
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
        if self._descriptor is not None and not _is_same(self._path, self._descriptor):
            now = Path(f"/proc/self/fd/{self._descriptor}")
            moved = Path(os.readlink(now)) if now.is_symlink() else self._path
            if _is_same(moved, self._descriptor):
                warnings.warn(f"the run's directory {self._path} is now {moved}: the run continues there", stacklevel=2)
                self._path = moved
        return self._path

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


class RunFile(Generic[Item]):
    """A file of a run. Items that cannot be written wait for the next attempt.

    A subclass writes items in `_write`, which raises OSError if it wrote none of them.

    Args:
        folder: the file's folder.
        name: the file's name.
    """

    def __init__(self, folder: Folder, name: str):
        self._folder, self._name = folder, name
        self._waiting: list[Item] = []
        self._failing = False

    @property
    def path(self) -> Path:
        """The file's current path."""
        return self._folder.path / self._name

    def append(self, *items: Item) -> None:
        """Write the items that wait and `items`. Warn if that fails."""
        self._waiting += items
        self.flush()

    def flush(self) -> None:
        """Write the items that wait. Warn if that fails."""
        if not self._waiting:
            return
        try:
            self._write(self._waiting)
        except OSError as error:
            if not self._failing:
                warnings.warn(
                    f"{self.path} cannot be written: {error.strerror or error}. The run continues, and writes the rows "
                    "later if it can",
                    stacklevel=2,
                )
            self._failing = True
        else:
            self._waiting, self._failing = [], False

    def sync(self) -> None:
        """Write the items that wait, and make the file survive a power cut."""
        self.flush()
        try:
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())
        except OSError:
            pass  # not there, or reported by `flush`

    def close(self) -> None:
        """Write the items that wait, or warn that they are lost."""
        self.flush()
        if self._waiting:
            warnings.warn(f"{len(self._waiting)} rows of {self.path} are lost", stacklevel=2)

    def _write(self, items: list[Item]) -> None:
        raise NotImplementedError


def _is_same(path: Path, descriptor: int) -> bool:
    """Whether a path leads to an open directory."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False

"""Write files whole or not at all, and through no symbolic link."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file to disk as a whole, or not at all.

    The content is written to ``<stem>.partial`` in the same folder, synced and renamed. A symbolic link at either name
    is replaced, not followed. After an error `path` is unchanged.

    Raises:
        OSError: the file, which it names, could not be written.
    """
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    try:
        with open(partial, "xb") as file:  # x: fails on a link that appears meanwhile
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync(path.parent)
    except Exception as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # a failed write names no file
        raise


def write(path: Path, content: str | bytes) -> None:
    """Write text or bytes with `replacing`."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_together(folder: Path, contents: Mapping[str, bytes | None]) -> None:
    """Write files of a folder, by name, and remove those without content: all of them, or none.

    All files are on disk, as ``.<name>.saltus-partial``, before the first is renamed. After an error the folder is as
    before. Only a process that is killed between the renames leaves new files beside old ones, and an error whose
    undoing fails as well, which names the copies of the former files that it keeps.

    Raises:
        OSError: a file could not be written.
    """
    partial = {name: folder / f".{name}.saltus-partial" for name, content in contents.items() if content is not None}
    former = {name: folder / f".{name}.saltus-former" for name in contents if os.path.lexists(folder / name)}
    renamed: list[str] = []
    try:
        for name, path in partial.items():
            path.unlink(missing_ok=True)
            with open(path, "xb") as file:
                file.write(contents[name] or b"")
                file.flush()
                os.fsync(file.fileno())
        for name, path in former.items():
            path.unlink(missing_ok=True)
            shutil.copy2(folder / name, path, follow_symlinks=False)
        for name in contents:
            renamed.append(name)
            if name in partial:
                os.replace(partial[name], folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
        _sync(folder)
    except BaseException as error:
        if left := _restore(folder, renamed, former):
            raise OSError(f"{error}; undoing it failed for {', '.join(left)}") from error
        raise
    finally:
        for path in (*partial.values(), *former.values()):
            path.unlink(missing_ok=True)


def _restore(folder: Path, names: list[str], former: dict[str, Path]) -> list[str]:
    """Put former files back, and remove those that are new.

    Returns:
        A description of each file of which this fails. Its former copy leaves `former`, so that it is kept.
    """
    left = []
    for name in names:
        try:
            if name in former:
                os.replace(former[name], folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
        except OSError:
            left.append(f"{name} (the former one is {former.pop(name)})" if name in former else f"{name} (new)")
    return left


def append(path: Path, data: bytes) -> None:
    """Append all of `data` to a file, made if it does not exist, or nothing.

    Raises:
        OSError: nothing was written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        end = os.fstat(descriptor).st_size
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except OSError:
            os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

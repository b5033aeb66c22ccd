"""Files that are written together: all of them, or none."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline import files

CONTENTS: dict[str, bytes | None] = {"a.json": b"new a", "b.bin": b"new b", "c.bin": None, "d.bin": b"new d"}
NEW = {"a.json": "new a", "b.bin": "new b", "d.bin": "new d", "notes.txt": "old notes.txt"}


def folder_with(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    for name in (*names, "notes.txt"):
        (folder / name).write_text(f"old {name}")
    return texts(folder)


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("earlier", [(), ("a.json", "c.bin"), ("a.json", "b.bin", "d.bin")])
@pytest.mark.parametrize(("module", "name"), [(os, "fsync"), (os, "replace"), (shutil, "copy2")])
def test_after_an_error_the_folder_is_as_before(
    tmp_path: Path, module: Any, name: str, earlier: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the calls fails."""
    original, calls = getattr(module, name), 0
    before = folder_with(tmp_path, earlier)
    expected = {"fsync": 4, "replace": 3, "copy2": len(earlier)}[name]
    for failing in range(1, expected + 1):
        calls = 0

        def fail(*arguments: Any, failing: int = failing, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == failing:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*arguments, **options)

        with monkeypatch.context() as patched:
            patched.setattr(module, name, fail)
            with pytest.raises(OSError, match="No space left"):
                files.write_together(tmp_path, CONTENTS)
        assert texts(tmp_path) == before, failing
    files.write_together(tmp_path, CONTENTS)
    assert texts(tmp_path) == NEW


def test_former_files_that_cannot_be_put_back_are_kept_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = folder_with(tmp_path, ("a.json", "b.bin"))
    original, calls = os.replace, 0

    def fail(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls in (2, 3):  # the second new file, and the first former one
            raise OSError(errno.EIO, "Input/output error")
        original(*arguments)

    monkeypatch.setattr(os, "replace", fail)
    copy = tmp_path / ".a.json.saltus-former"
    with pytest.raises(OSError, match=re.escape(f"error; undoing it failed for a.json (the former one is {copy})")):
        files.write_together(tmp_path, {"a.json": b"new a", "b.bin": b"new b"})
    assert texts(tmp_path) == {**before, "a.json": "new a", copy.name: "old a.json"}


def test_the_rests_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    rests = ".a.json.saltus-partial", ".b.bin.saltus-partial", ".a.json.saltus-former"
    folder_with(tmp_path, (*rests, "a.json"))
    files.write_together(tmp_path, CONTENTS)
    assert texts(tmp_path) == NEW


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    folder_with(other, ())
    (tmp_path / ".a.json.saltus-partial").symlink_to(other / "notes.txt")
    (tmp_path / "b.bin").symlink_to(other / "notes.txt")
    files.write_together(tmp_path, CONTENTS)
    assert (other / "notes.txt").read_text() == "old notes.txt"
    assert (tmp_path / "b.bin").read_text() == "new b"
    assert not (tmp_path / "b.bin").is_symlink()

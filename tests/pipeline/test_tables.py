"""The tables of a run: no row is lost without a word, or goes under a wrong column, whatever happened to the file."""

from __future__ import annotations

import errno
import os
import resource
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.file_names import EVALUATIONS, METRICS
from pipeline.run_file import Folder
from pipeline.tables import Table, read_table

HEADER = "env_steps,loss,alpha"
LINES = [HEADER, "10,1.5,0.5", "20,2.5,0.25", "30,3.5,nan"]
ROWS = [{"env_steps": 10.0, "loss": 1.5, "alpha": 0.5}, {"env_steps": 20.0, "loss": 2.5, "alpha": 0.25}]
NEXT = {"env_steps": 30, "loss": 4.0, "alpha": 8.0}


def text(*lines: str) -> bytes:
    return "".join(line + "\r\n" for line in lines).encode()


def table(folder: Path, env_steps: int = 20) -> Table:
    return Table(Folder(folder), "metrics.csv", env_steps)


def copies(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*damaged*")}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.csv"
    path.write_bytes(text(*LINES))
    return path


BAD_LINES = {
    "open quote": '"10,1.5,0.5',
    "quote in a cell": '10,"1.5,0.5',
    "NUL bytes": "\0\0\0\0",
    "NUL in a cell": "10,1.5\0,0.5",
    "a word": "10,hello,0.5",
    "a comment": "# here I changed the reward",
    "too few cells": "10,1.5",
    "too many cells": "10,1.5,0.5,7",
    "no env steps": ",1.5,0.5",
    "decimal commas": "10,1,5,0,5",
    "another delimiter": "10;1.5;0.5",
    "no UTF-8": "10,\udcff,0.5",
    "a long field": "1" * 200_000,
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_damaged_line_is_named_kept_in_a_copy_and_harms_no_other_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"

    damaged = text(HEADER) + line.encode(errors="surrogateescape") + b"\r\n" + text(LINES[2])
    path.write_bytes(damaged)
    with pytest.warns(UserWarning, match=r"metrics.csv is damaged: 1 lines are not 3 numbers: 2"):
        assert read_table(path) == ROWS[1:]
    with pytest.warns(UserWarning, match=r"was damaged: 1 lines.*kept as .*metrics.damaged-1.csv"):
        continued = table(tmp_path)
    assert copies(tmp_path) == {"metrics.damaged-1.csv": damaged}
    continued.append(NEXT)
    assert read_table(path) == [ROWS[1], NEXT]


@pytest.mark.parametrize(
    "content",
    [
        text(*LINES[1:]), text("hello", *LINES[1:]), text("env_steps,a,a", *LINES[1:]), text(HEADER.replace(",", ";")),
        b"\0\n",
    ],
    ids=["no header", "a word", "a column twice", "another delimiter", "NUL"],
)  # fmt: skip
def test_lost_header_starts_a_new_table_and_keeps_the_old_one(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="first line does not name the columns"):
        assert read_table(path) == []
    with pytest.warns(UserWarning, match=r"first line does not name the columns.*kept as .*metrics.damaged-1.csv"):
        continued = table(tmp_path)
    assert read_table(path) == []
    assert copies(tmp_path) == {"metrics.damaged-1.csv": content}
    continued.append(NEXT)
    assert read_table(path) == [NEXT]


HARMLESS: dict[str, Callable[[bytes], bytes]] = {
    "byte order mark": lambda content: b"\xef\xbb\xbf" + content,
    "Unix line ends": lambda content: content.replace(b"\r\n", b"\n"),
    "Mac line ends": lambda content: content.replace(b"\r\n", b"\r"),
    "empty lines": lambda content: content.replace(b"\r\n", b"\r\n\r\n"),
    "quoted cells": lambda content: content.replace(b"1.5", b'"1.5"'),
    "no last line end": lambda content: content.removesuffix(b"\r\n"),
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
@pytest.mark.parametrize("during", [False, True], ids=["before", "during the run"])
def test_what_an_editor_changes_harmlessly_loses_no_row(
    change: Callable[[bytes], bytes], during: bool, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.csv"
    content = text(*LINES[:3])
    path.write_bytes(content if during else change(content))
    continued = table(tmp_path)
    if during:
        path.write_bytes(change(content))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        continued.append(NEXT)
        assert read_table(path) == [*ROWS, NEXT]
    assert copies(tmp_path) == {}


def test_rows_follow_the_columns_by_name(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(text("alpha,env_steps", "0.5,10", "0.25,20", "0.1,30"))
    table(tmp_path).append(NEXT)
    first, second, third = read_table(path)
    assert (first["env_steps"], first["alpha"], second["alpha"]) == (10, 0.5, 0.25)
    assert first["loss"] != first["loss"], "a number that is missing is NaN"
    assert third == NEXT


@pytest.mark.parametrize(
    ("during", "expected"),
    [
        (lambda path: path.unlink(), [NEXT]),
        (lambda path: path.write_bytes(b""), [NEXT]),
        (lambda path: path.write_bytes(text(*LINES[1:3])), [NEXT]),
        (lambda path: path.write_bytes(text("loss,env_steps,alpha", "1.5,10,0.5")), [ROWS[0], NEXT]),
        (lambda path: os.replace(path, path.with_name("mine.csv")), [NEXT]),
    ],
    ids=["deleted", "emptied", "header lost", "columns in another order", "renamed"],
)
@pytest.mark.filterwarnings("ignore:.*was damaged")
def test_file_changed_during_a_run_gets_the_next_row_under_its_columns(
    during: Callable[[Path], object], expected: list[dict[str, float]], file: Path, tmp_path: Path
) -> None:
    continued = table(tmp_path)
    during(file)
    continued.append(NEXT)
    assert read_table(file) == expected


def test_rows_that_the_run_writes_again_are_dropped(file: Path, tmp_path: Path) -> None:
    table(tmp_path, env_steps=10)
    assert read_table(file) == ROWS[:1]


def test_symbolic_link_is_replaced_and_its_target_unchanged(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.csv"
    file.rename(target)
    file.symlink_to(target)
    table(tmp_path).append(NEXT)
    assert target.read_bytes() == text(*LINES)
    assert read_table(file) == [*ROWS, NEXT]


@pytest.mark.parametrize("name", [METRICS, EVALUATIONS])
@pytest.mark.parametrize("dangling", [False, True])
def test_damaged_table_is_copied_through_no_symbolic_link(name: str, dangling: bool, tmp_path: Path) -> None:
    """A run that was downloaded may hold links to any file, also to one that does not exist yet."""
    run_dir, target = tmp_path / "run", tmp_path / "target"
    run_dir.mkdir()
    if not dangling:
        target.write_bytes(b"mine")
    damaged = text(HEADER, "any bytes")
    (run_dir / name).write_bytes(damaged)
    stem = name.removesuffix(".csv")
    links = [run_dir / f"{stem}.damaged-1.csv", run_dir / f"{stem}.damaged-2.partial"]
    for link in links:
        link.symlink_to(target)
    with pytest.warns(UserWarning, match=rf"kept as .*{stem}.damaged-2.csv"):
        Table(Folder(run_dir), name, 20)
    assert target.exists() != dangling
    assert dangling or target.read_bytes() == b"mine"
    assert (run_dir / f"{stem}.damaged-2.csv").read_bytes() == damaged


@contextmanager
def full_disk(free: int) -> Iterator[None]:
    """Limit the size of files; Python ignores the signal SIGXFSZ."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_delays_rows_and_leaves_no_part_of_one(file: Path, tmp_path: Path) -> None:
    continued = table(tmp_path)
    before = file.read_bytes()
    with full_disk(len(before) + 5):
        with pytest.warns(UserWarning, match=r"metrics.csv cannot be written: File too large. The run continues"):
            continued.append(NEXT)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # said once
            continued.append({**NEXT, "env_steps": 40})
        assert file.read_bytes() == before
    continued.append({**NEXT, "env_steps": 50})
    assert [row["env_steps"] for row in read_table(file)] == [10, 20, 30, 40, 50]


def test_rows_that_can_never_be_written_are_counted_at_the_end(file: Path, tmp_path: Path) -> None:
    continued = table(tmp_path)
    with full_disk(1):
        with pytest.warns(UserWarning, match="cannot be written"):
            continued.append(NEXT)
        with pytest.warns(UserWarning, match=r"1 rows of .*metrics.csv are lost"):
            continued.close()


def test_file_that_cannot_be_read_at_the_start_is_repaired_later(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        continued = table(tmp_path)
        with pytest.warns(UserWarning, match="Input/output error"):
            continued.append(NEXT)
    continued.flush()
    assert read_table(file) == [*ROWS, NEXT]


def test_renamed_directory_is_followed(file: Path, tmp_path: Path) -> None:
    run_dir, moved = tmp_path / "run", tmp_path / "moved"
    run_dir.mkdir()
    file.rename(run_dir / file.name)
    continued = table(run_dir)
    run_dir.rename(moved)
    with pytest.warns(UserWarning, match=f"{run_dir} is now {moved}: the run continues there"):
        continued.append(NEXT)
    assert read_table(moved / file.name) == [*ROWS, NEXT]
    assert not run_dir.exists()

"""The tables of a run, such as metrics.csv: read and continued even if they were damaged."""

from __future__ import annotations

import csv
import io
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from pipeline import files
from pipeline.run_file import Folder, RunFile

_STEPS = "env_steps"

Row = Mapping[str, float | str]


def read_table(path: Path) -> list[dict[str, float]]:
    """The rows of a run's table; none if there is no file. A missing number is NaN.

    Safe while a run is writing the file: an incomplete last line is left out. Warns about lines that are not rows.
    """
    content = _read(path)
    if content.damage:
        warnings.warn(f"{path} is damaged: {content.damage}", stacklevel=2)
    return [{name: float(cell or "nan") for name, cell in row.items()} for row in content.rows]


class Table(RunFile[Row]):
    """A CSV file with a row of numbers per line.

    A damaged file is kept under another name, and its rows are continued in a new file.

    Args:
        folder, name: the file.
        env_steps: rows after it are dropped, because the run writes them again.
    """

    def __init__(self, folder: Folder, name: str, env_steps: int):
        super().__init__(folder, name)
        self._columns: list[str] = []
        self._keep_until: float = env_steps
        self._seen: tuple[int, ...] | None = None
        with suppress(OSError):  # `append` tries again, and warns
            self._check()

    def _write(self, items: list[Row]) -> None:
        if self._status() != self._seen:
            self._check()
        columns = list(dict.fromkeys([*self._columns, *(name for row in items for name in row)]))
        if columns == self._columns:
            files.append(self.path, _lines(columns, items))
        else:
            self._replace(columns, [*_read(self.path).rows, *items])
        self._seen = self._status()

    def _check(self) -> None:
        """Read the file that someone else wrote; repair it, and drop the rows that the run writes again."""
        content = _read(self.path, incomplete_line=True)
        if content.damage:
            copy = _keep_copy(self.path)
            warnings.warn(f"{self.path} was damaged: {content.damage}. The file is kept as {copy}", stacklevel=2)
        self._columns = content.columns
        if content.columns or content.damage:
            self._replace(content.columns, [row for row in content.rows if float(row[_STEPS]) <= self._keep_until])
        self._keep_until, self._seen = math.inf, self._status()

    def _replace(self, columns: list[str], rows: list[Row]) -> None:
        header = [dict(zip(columns, columns, strict=True))] if columns else []
        files.write(self.path, _lines(columns, [*header, *rows]))
        self._columns = columns

    def _status(self) -> tuple[int, ...] | None:
        """A value that changes when someone else writes the file; None if there is no file."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class _Content:
    """A table's columns (none if it has no header) and rows, as text; its damage in words, or ""."""

    columns: list[str]
    rows: list[Row]
    damage: str = ""


def _read(path: Path, incomplete_line: bool = False) -> _Content:
    """Read a table; with `incomplete_line` also a last line without an end, if it is a row.

    Raises:
        OSError: the file exists and cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
    except FileNotFoundError:
        return _Content([], [])
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    last = lines.pop()
    if not lines:
        return _Content([], [])
    columns = _cells(lines[0])
    if _STEPS not in columns or len(set(columns)) < len(columns):
        return _Content([], [], f"its first line does not name the columns, so its {len(lines)} lines are not used")
    rows: list[Row] = []
    bad = []
    for number, line in enumerate(lines[1:], start=2):
        cells = _cells(line)
        if _is_row(columns, cells):
            rows.append(dict(zip(columns, cells, strict=True)))
        elif line.strip():
            bad.append(str(number))
    if incomplete_line and _is_row(columns, cells := _cells(last)):
        rows.append(dict(zip(columns, cells, strict=True)))
    numbers = ", ".join(bad[:10]) + (", ..." if len(bad) > 10 else "")
    return _Content(columns, rows, (bad and f"{len(bad)} lines are not {len(columns)} numbers: {numbers}") or "")


def _cells(line: str) -> list[str]:
    """The cells of one line. A quote that is not closed ends with the line."""
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def _is_row(columns: Sequence[str], cells: Sequence[str]) -> bool:
    """Whether cells are numbers, one for each column, and ``env_steps`` is one of them."""
    try:
        numbers = [float(cell or "nan") for cell in cells]
    except ValueError:
        return False
    return len(cells) == len(columns) and math.isfinite(numbers[columns.index(_STEPS)])


def _lines(columns: Sequence[str], rows: Iterable[Row]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([row.get(name, "") for name in columns] for row in rows)
    return text.getvalue().encode()


def _keep_copy(path: Path) -> Path:
    """Copy a file to a name that no file or link has; return the copy's path."""
    names = (path.with_name(f"{path.stem}.damaged-{number}{path.suffix}") for number in count(1))
    copy = next(name for name in names if not os.path.lexists(name))
    files.write(copy, path.read_bytes())
    return copy

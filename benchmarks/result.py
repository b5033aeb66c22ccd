"""Result files of benchmarks: a header, then a measurement per line.

The first line is the header: format, benchmark, command, date, commit, hardware, versions and settings. Each
other line is one measurement. All lines are JSON. Tables are not stored: `benchmarks.report` computes them.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import checkout
from benchmarks.hardware import hardware, machine
from envs.physics.cpu import available_cores
from pipeline import files
from pipeline.passwords import without_password
from saltus.errors import SaltusError
from saltus.versions import versions

FORMAT = "saltus benchmark 1"
RESULTS = Path(__file__).parent / "results"
SUFFIX = ".jsonl"
PEERS = ("envpool", "stable-baselines3", "sbx-rl", "jax")
DIGITS = 6  # significant digits of numbers that are not whole
COMMIT = checkout.commit()  # at import: files may change during the minutes that a benchmark takes

_HEADER: dict[str, type | tuple[type, ...]] = {
    "benchmark": str, "command": str, "date": str, "commit": (str, type(None)), "hardware": dict, "versions": dict,
    "settings": dict,
}  # fmt: skip
# Names that every measurement of a benchmark has.
_NAMES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("environment", "update"), ("task", "case")),
    **dict.fromkeys(("gpu", "probes"), ("section",)),
    "memory": ("task", "transitions"),
    "population": ("variant", "seed", "curve"),
    "recipes": ("recipe", "seed", "total_env_steps", "exit_code", "curve", "last"),
    "scaling": ("task", "ranks"),
    "search": ("task", "label", "seed", "changed", "curve"),
    "training": (
        "system", "task", "preset", "options", "seed", "minutes", "episodes", "cores", "at_once", "code", "machine",
        "exit_code", "seconds", "curve", "best", "last", "output",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """A result file.

    Attributes:
        benchmark: the name of the benchmark's command, or of another measurement: search, probes.
        command: the command line.
        date: when the file was last written, in ISO format.
        commit: the commit of the code, with those of sections that had others; None if it is not recorded.
        hardware: from `benchmarks.hardware.hardware`.
        versions: versions of packages, by name.
        settings: the settings of all measurements.
        measurements: one dict each. A learning curve is a dict of columns: ``env_steps``, ``wall_seconds``, ``return``,
            ``return_low``, ``return_high``, ``length``.
        path: the file.
    """

    benchmark: str
    command: str
    date: str
    commit: str | None
    hardware: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    measurements: list[dict[str, Any]]
    path: Path

    @property
    def machine(self) -> str:
        """The machine in a few words."""
        return machine(self.hardware)

    @property
    def commit_label(self) -> str:
        """The commit's first digits, or ``not recorded``."""
        return "not recorded" if self.commit is None else checkout.label(self.commit)


def read(path: Path) -> Result:
    """Read a result file.

    Raises:
        SaltusError: the file does not exist or cannot be read, has another format, or is damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SaltusError(f"{path} does not exist: name a result file, such as one of {RESULTS}") from error
    except UnicodeDecodeError as error:
        raise SaltusError(f"{path} is no result file: it is not text") from error
    except OSError as error:
        raise SaltusError(f"{path} cannot be read: {error.strerror}") from error
    first, *rest = text.split("\n")
    header = _header(path, first, text)
    if not text.endswith("\n"):
        raise SaltusError(f"{path} is damaged: its last line, {len(rest) + 1}, has no end. {_again(header['command'])}")
    rest.pop()  # the empty string after the last end of a line
    measurements = []
    for number, line in enumerate(rest, start=2):
        row = parse(line)
        wrong = [] if isinstance(row, dict) else ["no measurement, which is a JSON object"]
        if not wrong and "missing" not in row:
            wrong = [f"a measurement without {name}" for name in _NAMES.get(header["benchmark"], ()) if name not in row]
        if wrong:
            raise SaltusError(f"{path} is damaged: line {number} is {wrong[0]}. {_again(header['command'])}")
        measurements.append(row)
    return Result(**{name: header[name] for name in _HEADER}, measurements=measurements, path=path)


def _header(path: Path, line: str, text: str) -> dict[str, Any]:
    header = parse(line)
    if not isinstance(header, dict) or "format" not in header:
        older = parse(text)
        if isinstance(older, dict) and "measurements" in older:
            raise SaltusError(
                f"{path} was written by saltus 0.3.0 or older, and this saltus reads the format {FORMAT!r} only. "
                f"{_again(older.get('command'))}"
            )
        raise SaltusError(f"{path} is no result file: its first line is not a header with the format {FORMAT!r}")
    if header["format"] != FORMAT:
        raise SaltusError(
            f"{path} has the format {header['format']!r}, and this saltus reads {FORMAT!r} only. "
            f"{_again(header.get('command'))}"
        )
    wrong = [name for name, kind in _HEADER.items() if not isinstance(header.get(name, ...), kind)]
    if wrong:
        raise SaltusError(f"{path} is damaged: its header, line 1, has no valid {', '.join(wrong)}")
    return header


def parse(text: str) -> Any:
    """A JSON value; None if it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def plain(value: Any) -> Any:
    """A value as it is read from a result file."""
    return parse(encode({"value": value}))["value"]


def _again(command: object) -> str:
    return f"To measure anew, run: {command}" if isinstance(command, str) else "Measure anew"


def read_all(folder: Path = RESULTS) -> list[Result]:
    """Read the result files of a folder, sorted by name.

    Raises:
        SaltusError: a file has another format or is damaged.
    """
    return [read(path) for path in sorted(folder.glob(f"*{SUFFIX}"))]


def write(path: Path, benchmark: str, settings: Mapping[str, Any], measurements: Iterable[Mapping[str, Any]]) -> Result:
    """Write a result file, as a whole or not at all, and return its content.

    Args:
        path: the file; it is replaced.
        benchmark: the benchmark's name.
        settings: the benchmark's settings, defaults included.
        measurements: all measurements. Numbers that are not whole are rounded to `DIGITS` significant digits.

    Raises:
        OSError: the file cannot be written.
    """
    installed = {name: number for name, number in versions(*PEERS).items() if number != "not installed"}
    header = {
        "format": FORMAT,
        "benchmark": benchmark,
        "command": without_password(shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": COMMIT,
        "hardware": hardware(),
        "versions": installed,
        "settings": dict(settings),
    }
    lines = [encode(header), *map(encode, measurements)]
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, "".join(f"{line}\n" for line in lines))
    return read(path)


def require_name(path: Path) -> None:
    """Raise SystemExit unless a path is one of a result file, next to which a picture may be drawn."""
    if path.suffix != SUFFIX:
        raise SystemExit(f"{path}: the name of a result file ends in {SUFFIX}")


def replaceable(path: Path, benchmark: str, named: bool) -> Path:
    """Return a path whose file, if there is one, is a result of the same benchmark, and was named.

    Args:
        path: the file.
        benchmark: the benchmark that is to replace it.
        named: the user named the file.

    Raises:
        SystemExit: it is another file, or one that would be replaced without having been named.
    """
    require_name(path)
    if path.exists() and not named:
        raise SystemExit(f"{path} exists: name it with --output to replace it, or name another file")
    if path.exists():
        try:
            found = read(path)
        except SaltusError as error:
            raise SystemExit(f"{error}. To keep the file, name another one with --output") from error
        if found.benchmark != benchmark:
            raise SystemExit(
                f"{path} is a result of {found.benchmark}, not of {benchmark}: name another file with --output"
            )
    return path


def encode(value: Mapping[str, Any]) -> str:
    """One line of a result file."""
    return json.dumps(_rounded(value), separators=(",", ":"), ensure_ascii=False)


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    if isinstance(value, float) and math.isfinite(value):
        rounded = value if value.is_integer() else float(f"{value:.{DIGITS}g}")
        return int(rounded) if rounded.is_integer() else rounded
    return str(value) if isinstance(value, Path) else value


def default_path(name: str) -> Path:
    """The result file of a benchmark without ``--output``."""
    return RESULTS / f"{name}-cpu{available_cores()}{SUFFIX}"

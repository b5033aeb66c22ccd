"""Published values of other systems, which the page shows as marks."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from saltus.errors import SaltusError

PUBLISHED = Path(__file__).parent / "published.csv"
COLUMNS = (
    "system", "task", "metric", "value", "deviation", "env_steps", "seconds", "hardware", "seeds", "source"
)  # fmt: skip
METRICS = ("return", "env steps/s", "updates/s")
OPTIONAL = ("deviation", "env_steps", "seconds", "seeds")  # empty where the source does not state it


@dataclass(frozen=True)
class Published:
    """One published value.

    Attributes:
        system: the software, and the recipe.
        task: the task's id with its version.
        metric: one of `METRICS`.
        value: the mean over seeds.
        deviation: population standard deviation over seeds; None if not stated, as all that follow.
        env_steps: env steps at which a return was reached.
        seconds: wall-clock seconds at which it was reached.
        hardware: the machine, or "not stated".
        seeds: number of seeds.
        source: who published it, and where.
    """

    system: str
    task: str
    metric: str
    value: float
    deviation: float | None
    env_steps: float | None
    seconds: float | None
    hardware: str
    seeds: int | None
    source: str

    def __str__(self) -> str:
        deviation = "" if self.deviation is None else f" ± {self.deviation:,.0f}"
        steps = "" if self.env_steps is None else f" after {short(self.env_steps)} env steps"
        time = "" if self.seconds is None else f" in {self.seconds / 60:,.1f} min"
        unit = "" if self.metric == "return" else f" {self.metric}"
        seeds = "seeds not stated" if self.seeds is None else f"{self.seeds} seed{'s' if self.seeds > 1 else ''}"
        value = f"{self.value:,.0f}{deviation}{unit}{time}{steps}"
        return f"published: {self.system}, {self.task}: {value}; {seeds}, hardware {self.hardware}"


def short(number: float) -> str:
    """A count with k or M, such as 300k and 148M."""
    scale, unit = (1e6, "M") if number >= 1e6 else (1e3, "k") if number >= 1e3 else (1, "")
    return f"{number / scale:.3g}{unit}"


def read(path: Path = PUBLISHED) -> list[Published]:
    """Read the published values.

    Raises:
        SaltusError: a column or an entry is missing, or an entry is not what its column holds.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, restkey="", restval="")
        if tuple(rows.fieldnames or ()) != COLUMNS:
            found = ", ".join(rows.fieldnames or ()) or "nothing"
            raise SaltusError(f"{path}: the first line must be {','.join(COLUMNS)}, and is {found}")
        return [_parse(row, f"{path}, line {rows.line_num}") for row in rows]


def _parse(row: dict[str, str], where: str) -> Published:
    if "" in row:
        raise SaltusError(f"{where}: more than {len(COLUMNS)} entries; quote an entry that holds a comma")
    empty = [name for name in COLUMNS if name not in OPTIONAL and not row[name].strip()]
    if empty:
        raise SaltusError(f"{where}: {', '.join(empty)} is empty; write 'not stated' for unknown hardware")
    if row["metric"] not in METRICS:
        raise SaltusError(f"{where}: the metric is {row['metric']!r}, and must be one of {', '.join(METRICS)}")
    if "-v" not in row["task"] and row["task"] != "not stated":
        raise SaltusError(f"{where}: the task {row['task']!r} has no version, such as Hopper-v5; or write 'not stated'")
    value, deviation, env_steps, seconds, seeds = (
        _number(row[name], name, where) for name in ("value", "deviation", "env_steps", "seconds", "seeds")
    )
    assert value is not None  # an empty one is refused above
    return Published(
        system=row["system"], task=row["task"], metric=row["metric"], value=value, deviation=deviation,
        env_steps=env_steps, seconds=seconds, hardware=row["hardware"], seeds=None if seeds is None else int(seeds),
        source=row["source"],
    )  # fmt: skip


def _number(text: str, name: str, where: str) -> float | None:
    try:
        number = float(text) if text.strip() else None
    except ValueError:
        number = math.nan
    if number is not None and not (math.isfinite(number) and (number > 0 or name == "value")):
        raise SaltusError(f"{where}: {name} is {text!r}, and must be a positive number without separators, or empty")
    return number

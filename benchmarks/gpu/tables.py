"""The tables of the GPU kit, of its measurements."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.rates import comparison
from benchmarks.result import Result
from benchmarks.statistics import first_reached
from benchmarks.table import Cell, Table

LEVELS = (1000, 3000, 5000, 8000)
QUANTILES = ("median", "99%", "worst")
Rows = Sequence[dict[str, Any]]


def tables(found: Result) -> list[Table]:
    """The tables of all sections that were measured, and the sections' outcomes."""
    sections: dict[str, list[dict[str, Any]]] = {}
    for row in found.measurements:
        sections.setdefault(row["section"], []).append(row)
    made = []
    for section, rows in sections.items():
        make = TABLES.get(section)
        made += make(rows) if make else comparisons(rows)
    return sorted(made, key=lambda table: table.title == OUTCOMES)  # the outcomes last


def comparisons(rows: Rows) -> list[Table]:
    """The rates of the cases with the same title."""
    titles = dict.fromkeys(row["title"] for row in rows if "title" in row)
    groups = [(title, [row for row in rows if row.get("title") == title]) for title in titles]
    return [comparison(title, group, str(group[0].get("subject", group[0]["case"]))) for title, group in groups]


def _tests(rows: Rows) -> list[Table]:
    lines = [line for row in rows for line in (row["summary"], *row["failed"], *row.get("cut_short", ()))]
    return [Table("GPU tests", ["result"], [[line] for line in lines])]


def _compilation(rows: Rows) -> list[Table]:
    cells: list[list[Cell]] = [[f"{row['table']}: {row['case']}", row["seconds"]] for row in rows]
    return [Table("Compilation, all at once", ["case", "seconds"], cells)]


def _synchronization(rows: Rows) -> list[Table]:
    cells: list[list[Cell]] = [[row["work"], row["count"], "; ".join(row["places"][:3])] for row in rows]
    return [Table("Host synchronizations, by torch's sync debug mode", ["in a", "found", "where"], cells)]


def _profile(rows: Rows) -> list[Table]:
    cells: list[list[Cell]] = [[row["preset"], row["kernels_per_update"], row["busy_share"]] for row in rows]
    return [Table("Profile of rounds", ["preset", "kernels an update", "share of time busy"], cells)]


def _loop(rows: Rows) -> list[Table]:
    cells: list[list[Cell]] = []
    for row in rows:
        milliseconds = [1e3 * row[name] for name in ("stepping", "learning", "both")]
        title = f"{row['task']}, {row['worlds']} worlds, {row['updates_a_step']} updates a step"
        cells.append([title, *milliseconds, row["ratio"], row["worlds"] / row["both"]])
    columns = ["loop", "stepping, ms", "learning, ms", "both, ms", "sum of parts ÷ both", "env steps/s"]
    return [Table("The loop on the device", columns, cells)]


def _training(rows: Rows) -> list[Table]:
    cells: list[list[Cell]] = []
    for row in rows:
        seconds, returns = row["curve"]["wall_seconds"], row["curve"]["return"]
        firsts = [first_reached(returns, level) for level in LEVELS]
        reached = [None if first is None else seconds[first] for first in firsts]
        cells.append([f"{row['task']} {row['options']}", len(returns), max(returns, default=None), *reached])
    columns = ["run", "evaluations", "best return", *[f"s to {level:,}" for level in LEVELS]]
    return [Table("Short training runs, seconds from process start", columns, cells)]


def parity(rows: Rows) -> list[Table]:
    """Differences of the observations after one control step."""
    cells: list[list[Cell]] = [
        [row["task"], row["solver"], *[f"{row[name]:.1e}" if name in row else None for name in QUANTILES]]
        for row in rows
    ]
    title = "One control step of Warp and of the CPU engine: relative difference of the observation"
    return [Table(title, ["task", "solver of the CPU engine", *QUANTILES], cells)]


def rollouts(rows: Rows) -> list[Table]:
    """Statistics of random episodes."""
    found = ("return", "length", "height")
    cells: list[list[Cell]] = [
        [row["task"], row["engine"], *["{:.4g} +- {:.2g}".format(*row[name]) for name in found]] for row in rows
    ]
    columns = ["task", "engine", "return", "length", "height (InvertedPendulum: angle)"]
    return [Table("Random episodes: mean, and half of its 95% interval", columns, cells)]


def probes(rows: Rows) -> list[Table]:
    """Measurements of scripts, with the columns that they recorded."""
    columns = dict.fromkeys(name for row in rows for name in row if name not in ("section", "rates"))
    title = f"{rows[0]['section'].capitalize()}, by scripts"
    if any("rates" in row for row in rows):
        values = [[*map(row.get, columns), round(median(row["rates"]))] for row in rows]
        return [Table(title, [*map(_spoken, columns), "updates/s"], values)]
    return [Table(title, [*map(_spoken, columns)], [[*map(row.get, columns)] for row in rows])]


def _spoken(name: str) -> str:
    return name.replace("_us", ", µs").replace("_ms", ", ms").replace("_", " ")


def _memory(rows: Rows) -> list[Table]:
    cells: list[list[Cell]] = [[row["task"], row["worlds"], row["announced"] / 1e6, row["taken"] / 1e6] for row in rows]
    return [Table("Memory of two environments", ["task", "worlds", "announced, MB", "taken, MB"], cells)]


def _solver(rows: Rows) -> list[Table]:
    cells: list[list[Cell]] = [[row["task"], row["worlds"], row["most_iterations"]] for row in rows]
    return [Table("Iterations of Warp's solver", ["task", "worlds", "most"], cells)]


def _outcomes(rows: Rows) -> list[Table]:
    cells: list[list[Cell]] = [[row["of"], row["outcome"], row["seconds"]] for row in rows]
    return [Table(OUTCOMES, ["section", "outcome", "seconds"], cells)]


OUTCOMES = "Sections"
TABLES = {
    "tests": _tests, "compilation": _compilation, "synchronization": _synchronization, "profile": _profile,
    "loop": _loop, "training": _training, "parity": parity, "rollouts": rollouts, "memory": _memory,
    "solver": _solver, "outcome": _outcomes,
}  # fmt: skip

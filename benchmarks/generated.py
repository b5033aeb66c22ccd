"""The generated parts of the documents: Markdown of tables, with machine, commit and date."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import environment, headlines, memory, recipes, scaling, search_tables, training, update
from benchmarks.gpu import tables as gpu_tables
from benchmarks.population import population
from benchmarks.result import Result
from benchmarks.table import Cell, Table, markdown
from benchmarks.training_run import task_name

# Packages besides torch and mujoco whose versions captions name.
PEERS = {
    "environment": ("envpool",), "update": ("stable-baselines3", "sbx-rl"), "training": ("stable-baselines3", "sbx-rl"),
    "gpu": ("mujoco-warp",), "probes": ("mujoco-warp",),
}  # fmt: skip


@dataclass(frozen=True)
class Page:
    """A document, and the results that its tables are made of.

    Attributes:
        folder: the document's folder, from which links lead.
        results: all results.
    """

    folder: Path
    results: Sequence[Result]

    def of(self, *benchmarks: str, gpu: bool | None = None) -> list[Result]:
        """The results of benchmarks, the newest first; with `gpu`, of machines with or without one only."""
        found = [one for one in self.results if one.benchmark in benchmarks]
        if gpu is not None:
            found = [one for one in found if bool(one.hardware.get("gpu")) == gpu]
        return sorted(found, key=lambda one: (one.date, one.path.name), reverse=True)

    def link(self, result: Result) -> str:
        """A link to a result file."""
        return f"[file]({Path(os.path.relpath(result.path, self.folder)).as_posix()})"

    def origin(self, result: Result) -> list[Cell]:
        """The cells of `ORIGIN`."""
        return [result.machine, result.commit_label, result.date[:10], self.link(result)]

    def caption(self, result: Result, title: str) -> str:
        """A line above a table: its title, machine, commit, date and versions."""
        named = ("torch", "mujoco", *PEERS.get(result.benchmark, ()))
        named = named if result.commit is not None else ("saltus", *named)
        versions = [f"{name} {result.versions[name]}" for name in named if name in result.versions]
        parts = [result.machine, f"commit {result.commit_label}", result.date[:10], *versions, self.link(result)]
        return f"**{title}**: {', '.join(parts)}"

    def render(self, result: Result, tables: Iterable[Table]) -> list[str]:
        """Captions and tables of one result."""
        return [part for table in tables for part in (self.caption(result, table.title), markdown(table))]

    def with_origin(self, rows: Iterable[tuple[Result, Table]]) -> str:
        """One table of tables with the same columns, of several results; each row has its origin."""
        columns, cells = [], []
        for result, table in rows:
            columns = [*table.columns, *ORIGIN]
            cells += [[*row, *self.origin(result)] for row in table.rows]
        return markdown(Table("", columns, cells)) if cells else NOTHING


ORIGIN = ("machine", "commit", "date", "file")
NOTHING = "No result file has this measurement yet."


def _all(benchmark: str, tables: Callable[[Result], list[Table]]) -> Callable[[Page, str], str]:
    """The tables of every result of a benchmark."""

    def generate(page: Page, _argument: str) -> str:
        parts = [part for result in page.of(benchmark) for part in page.render(result, tables(result))]
        return "\n\n".join(parts) or NOTHING

    return generate


def _training(page: Page, task: str) -> str:
    """The tables of every training result of a task, without those on a GPU."""
    parts: list[str] = []
    for result in page.of("training", gpu=False):
        if task in map(task_name, result.settings["tasks"]):
            tables = [table for table in training.tables(result) if table.title.startswith((task, "Failed"))]
            parts += page.render(result, tables)
    return "\n\n".join(parts) or NOTHING


def _recipes(page: Page, task: str) -> str:
    """One table of the returns of every recipe and seed."""
    results = [one for one in page.of("recipes") if task_name(one.settings["task"]) == task]
    return page.with_origin((result, recipes.levels_table(result)) for result in reversed(results))


def _parity(page: Page, _argument: str) -> str:
    parts: list[str] = []
    for result in page.of("gpu"):
        for section, tables in (("parity", gpu_tables.parity), ("rollouts", gpu_tables.rollouts)):
            rows = [row for row in result.measurements if row["section"] == section]
            parts += page.render(result, tables(rows)) if rows else []
    return "\n\n".join(parts) or NOTHING


def _gpu(page: Page, section: str) -> str:
    """A section of the GPU kit, and of other measurements, on GPUs."""
    parts: list[str] = []
    for result in page.of("gpu", "probes", gpu=True):
        rows = [row for row in result.measurements if row["section"] == section]
        if not rows:
            continue
        make = gpu_tables.probes if result.benchmark == "probes" else gpu_tables.TABLES.get(section, _rates)
        parts += page.render(result, make(rows))
    return "\n\n".join(parts) or NOTHING


def _rates(rows: gpu_tables.Rows) -> list[Table]:
    """The rates of cases with any title, in one table."""
    tables = gpu_tables.comparisons(rows)
    if not tables:
        return []
    cells = [[table.title, *row] for table in tables for row in table.rows]
    return [replace(tables[0], title="Rates", columns=["measurement", *tables[0].columns], rows=cells)]


def _gpu_training(page: Page, _argument: str) -> str:
    results = page.of("training", gpu=True)
    return page.with_origin((result, training.curves_table(result)) for result in results)


def _search(page: Page, question: str) -> str:
    parts: list[str] = []
    for result in reversed(page.of("search")):
        if result.settings["question"] == question:
            parts += page.render(result, search_tables.tables(result))
    return "\n\n".join(parts) or NOTHING


def _longest(page: Page, _argument: str) -> str:
    return page.with_origin(
        (result, table) for result in page.of("training", "recipes") if (table := headlines.longest(result)).rows
    )


def _readme(page: Page, _argument: str) -> str:
    rows: list[list[Cell]] = []
    for measurement, result, value in headlines.headlines(page.of):
        rows.append([measurement, result.machine, result.commit_label, result.date[:10], value])
    return markdown(Table("", ["measurement", "machine", "commit", "date", "result"], rows))


GENERATED: dict[str, Callable[[Page, str], str]] = {
    "environment": _all("environment", environment.tables),
    "update": _all("update", update.tables),
    "memory": _all("memory", memory.tables),
    "scaling": _all("scaling", scaling.tables),
    "population": _all("population", population.tables),
    "training": _training,
    "recipes": _recipes,
    "parity": _parity,
    "gpu": _gpu,
    "gpu-training": _gpu_training,
    "search": _search,
    "longest-training": _longest,
    "readme": _readme,
}


def generate(page: Page, text: str) -> str:
    """The text of a marker: a name of `GENERATED`, and an argument.

    Raises:
        KeyError: there is no such name.
    """
    name, _, argument = text.partition(" ")
    return GENERATED[name](page, argument)

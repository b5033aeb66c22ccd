"""The tables of any result file."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

from benchmarks import environment, memory, recipes, scaling, search_tables, training, update
from benchmarks.gpu import tables as gpu_tables
from benchmarks.population import population
from benchmarks.result import Result
from benchmarks.table import Table
from saltus.errors import SaltusError


def _probes(result: Result) -> list[Table]:
    sections = groupby(result.measurements, key=lambda row: row["section"])
    return [table for _, rows in sections for table in gpu_tables.probes([*rows])]


TABLES: dict[str, Callable[[Result], list[Table]]] = {
    "environment": environment.tables,
    "gpu": gpu_tables.tables,
    "memory": memory.tables,
    "population": population.tables,
    "probes": _probes,
    "recipes": recipes.tables,
    "scaling": scaling.tables,
    "search": search_tables.tables,
    "training": training.tables,
    "update": update.tables,
}


def tables(result: Result) -> list[Table]:
    """The tables of a result file.

    Raises:
        SaltusError: the file is of an unknown benchmark.
    """
    if result.benchmark not in TABLES:
        raise SaltusError(
            f"{result.path} is of the benchmark {result.benchmark!r}; there are tables of {', '.join(TABLES)}"
        )
    return TABLES[result.benchmark](result)

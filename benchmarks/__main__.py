"""``python -m benchmarks COMMAND``, from the checkout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tyro

from benchmarks.compare import compare
from benchmarks.environment import environment
from benchmarks.gpu.kit import gpu
from benchmarks.memory import memory
from benchmarks.population.population import population
from benchmarks.recipes import recipes
from benchmarks.report import report
from benchmarks.scaling import scaling
from benchmarks.training import training
from benchmarks.update import update

COMMANDS: dict[str, Callable[..., Any]] = {
    "environment": environment,
    "update": update,
    "training": training,
    "recipes": recipes,
    "population": population,
    "scaling": scaling,
    "memory": memory,
    "gpu": gpu,
    "report": report,
    "compare": compare,
}


def main() -> None:
    """Run the benchmark that the command line names."""
    tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="python -m benchmarks")


if __name__ == "__main__":
    main()

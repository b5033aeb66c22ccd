"""A sweep over the values of an option: rates, and the knee of their curve."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline import files
from pipeline.config import Config
from pipeline.profile.measure import measure
from pipeline.profile.options import require_rounds
from pipeline.profile.result import summarize
from saltus.errors import SaltusError

NEAR_BEST = 0.9
Parse = Callable[[list[str]], Config]


@dataclasses.dataclass
class Sweep:
    """An option, its values, and the configuration of each."""

    option: str
    values: list[str]
    configs: list[Config]


def parse_sweep(text: str, arguments: list[str], parse: Parse) -> Sweep:
    """Parse ``option=value,value,...`` and check each configuration.

    Args:
        text: the argument of ``--sweep``.
        arguments: the command's other arguments.
        parse: the configuration of a list of arguments.

    Raises:
        SaltusError: not of that form, no option of training, or values that do not work.
    """
    option, _, listed = text.partition("=")
    option = option.strip().removeprefix("--").replace("-", "_")
    values = [value.strip() for value in listed.split(",")]
    if not option or len(values) < 2 or not all(values) or len({*values}) < len(values):
        raise SaltusError(f"--sweep {text}: give an option and several different values, as in num_envs=32,64,128")
    known = {item.name for item in dataclasses.fields(Config)} - {"task", "task_options"} | {"preset"}
    if option not in known and not option.startswith("task."):
        raise SaltusError(f"--sweep: {option!r} is no option of `saltus train`; it has {', '.join(sorted(known))}")
    configs = []
    for value in values:
        try:
            config = parse([*arguments, *_flag(option, value)])
            require_rounds(config)
        except SaltusError as error:
            raise SaltusError(f"--sweep {option}={value}: {error}") from None
        configs.append(config)
    return Sweep(option, values, configs)


def _flag(option: str, value: str) -> list[str]:
    flag = option.replace("_", "-")
    if value.lower() in ("true", "false"):
        return [f"--{flag}" if value.lower() == "true" else f"--no-{flag}"]
    return [f"--{flag}", *value.split()]


def run_sweep(sweep: Sweep, seconds: float, console: Console) -> list[dict[str, Any]]:
    """Profile each configuration, without roofs; return the results."""
    results = []
    for value, config in zip(sweep.values, sweep.configs, strict=True):
        console.print(f"{sweep.option} = {value}", markup=False, highlight=False)
        results.append(summarize(measure(config, seconds, console, time.monotonic(), with_roofs=False)))
    return results


def knee(rates: list[float]) -> int:
    """Index of the first rate within a tenth of the highest."""
    return next(index for index, rate in enumerate(rates) if rate >= NEAR_BEST * max(rates))


def print_sweep(sweep: Sweep, results: list[dict[str, Any]], console: Console) -> None:
    """Print the rates of a sweep, with the knee marked."""
    best = knee(_rates(results, "env_steps_per_second"))
    table = Table(sweep.option, title=f"Knee: first value within {1 - NEAR_BEST:.0%} of the highest env steps/s")
    for column in ("env steps/s", "updates/s", ""):
        table.add_column(column, justify="right")
    for index, (value, result) in enumerate(zip(sweep.values, results, strict=True)):
        env_steps, updates = result["rates"].values()
        table.add_row(value, f"{env_steps:,.0f}", f"{updates:,.1f}", "knee" if index == best else "")
    console.print(table)


def _rates(results: list[dict[str, Any]], name: str) -> list[float]:
    return [result["rates"][name] for result in results]


def picture_path(task_name: str, option: str) -> Path:
    """A name that no file has: profile-<task>-<option>.png, with a number if need be."""
    stem = f"profile-{task_name}-{option}"
    paths = (Path(f"{stem}.png" if number == 1 else f"{stem}-{number}.png") for number in count(1))
    return next(path for path in paths if not path.exists())


def plot_sweep(sweep: Sweep, results: list[dict[str, Any]], path: Path) -> None:
    """Write a picture of both rates over the values, with the knee marked."""
    rates = {name: _rates(results, name) for name in ("env_steps_per_second", "updates_per_second")}
    best = knee(rates["env_steps_per_second"])
    with _figure() as (figure, axes):
        for one, (name, values) in zip(axes, rates.items(), strict=True):
            one.plot(sweep.values, values, marker="o")
            one.axvline(best, color="0.6", linestyle="--", label=f"knee: {sweep.values[best]}")
            one.set_xlabel(sweep.option)
            one.set_ylabel(name.removesuffix("_per_second").replace("_", " ") + "/s")
            one.set_ylim(bottom=0)
            one.grid(alpha=0.3)
            one.legend()
        figure.suptitle(sweep.configs[0].task_name)
        content = io.BytesIO()
        figure.savefig(content, dpi=120)
    files.write(path, content.getvalue())


@contextmanager
def _figure() -> Iterator[tuple[Any, Any]]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    try:
        yield figure, axes
    finally:
        plt.close(figure)

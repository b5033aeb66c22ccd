"""A profile as tables on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.profile.verdict import verdict


def report(result: dict[str, Any], console: Console) -> None:
    """Print the phases with their roofs, the cold start and the verdict."""
    rates, step = result["rates"], result["vector_step"]
    _say(console, f"\n{result['task']}: {_rates(rates)}; {result['vector_steps']:,} vector steps measured")
    table = Table("phase", title="Milliseconds per vector step")
    for column in ("median", "90%", "share", "roof", "of roof"):
        table.add_column(column, justify="right")
    for name, phase in result["phases"].items():
        roof = ("", "") if phase["of_roof"] is None else (_ms(phase["roof"]), f"{phase['of_roof']:.0%}")
        table.add_row(name, _ms(phase["median"]), _ms(phase["p90"]), f"{phase['share']:.1%}", *roof)
    table.add_section()
    table.add_row("vector step", _ms(step["median"]), _ms(step["p90"]), "100.0%", "", "")
    console.print(table)
    _say(console, f"The phases, evaluations and checkpoints sum to {result['accounted']:.1%} of the wall-clock.")
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result["cold_start"].items() if seconds >= 0.05)
    _say(console, f"Cold start, not included: {parts}.")
    for line in verdict(result):
        _say(console, line)


def _rates(rates: dict[str, float]) -> str:
    return f"{rates['env_steps_per_second']:,.0f} env steps/s, {rates['updates_per_second']:,.1f} updates/s"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3f}"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)

"""Bars of profiles: the time of each phase of a vector step, and the machine's limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.page.html import folded, heading, table
from benchmarks.page.rates import figure, frame
from benchmarks.page.svg import INK, SERIES, Chart
from pipeline.profile import result as profile

PATTERN = "profile-*.json"


def read_all(folder: Path) -> dict[str, dict[str, Any]]:
    """The results of `saltus profile --json` in a folder, by name.

    Raises:
        SaltusError: a file is damaged, or of another format.
    """
    return {path.stem: profile.load(path) for path in sorted(folder.glob(PATTERN))}


def section(profiles: Mapping[str, Mapping[str, Any]]) -> str:
    """A chart and a table for each profile."""
    if not profiles:
        return ""
    note = (
        "Mean time of each phase of a vector step, the step of all worlds together. An upright line is the time that "
        "the machine needs for the essential work of the phase."
    )
    parts = "".join(_part(name, content) for name, content in profiles.items())
    return f"<section>{heading('Profiles', 'profiles')}<p>{note}</p>{parts}</section>"


def _part(name: str, content: Mapping[str, Any]) -> str:
    machine, rates = content["machine"], content["rates"]
    config = content["config"]
    facts = (
        f"{content['task']}, {config['num_envs']} worlds, UTD ratio {config['utd_ratio']:g}, "
        f"{machine['threads']} threads, {machine['processor']}, {machine['device']}: "
        f"{rates['env_steps_per_second']:,.0f} env steps/s, "
        f"{rates['updates_per_second']:,.0f} updates/s"
    )
    phases = {phase: found for phase, found in content["phases"].items() if found["share"] >= 0.0005}
    versions = "; ".join(f"{package} {number}" for package, number in content["versions"].items())
    settings = "; ".join(f"{option}: {value}" for option, value in config.items())
    origin = folded(
        "Versions and settings",
        f"<dl><dt>versions</dt><dd>{escape(versions)}</dd><dt>settings</dt><dd>{escape(settings)}</dd></dl>",
    )
    return (
        f"<p class=source><span class=file>{escape(name)}</span>: {escape(facts)}</p>"
        f"<div class=charts>{_chart(name, content['task'], phases)}</div>{_table(phases)}{origin}"
    )


def _chart(name: str, task: str, phases: dict[str, dict[str, Any]]) -> str:
    chart = Chart(height=70 + 22 * len(phases))
    axes = chart.axes
    for place, (phase, found) in enumerate(phases.items()):
        (bar,) = axes.barh([place], [1e3 * found["mean"]], height=0.6, color=SERIES[0])
        bar.set_gid(chart.title(f"{phase}: {1e3 * found['mean']:.3f} ms, {found['share']:.1%}"))
        if found["roof"] is not None:
            (line,) = axes.plot([1e3 * found["roof"]] * 2, [place - 0.42, place + 0.42], color=INK, linewidth=2)
            line.set_gid(chart.title(f"{phase}: limit of the machine {1e3 * found['roof']:.3f} ms"))
        end = 1e3 * max(found["mean"], found["roof"] or 0)
        axes.annotate(
            f"{found['share']:.1%}", (end, place), (4, 0), "data", "offset points", va="center", fontsize=10, color=INK
        )
    axes.set_yticks(range(len(phases)), [*phases])
    axes.set_ylim(len(phases) - 0.4, -0.6)
    axes.set_xlim(0, 1.15e3 * max(max(found["mean"], found["roof"] or 0) for found in phases.values()))
    axes.set_xlabel("ms per vector step")
    frame(chart)
    return figure(chart, name, f"{task}: phases of a vector step, and their share")


def _table(phases: dict[str, dict[str, Any]]) -> str:
    def cell(found: dict[str, Any], name: str, scale: str) -> str | None:
        value = found[name]
        return None if value is None else f"{1e3 * value:.3f}" if scale == "ms" else f"{value:.1%}"

    rows: Sequence[Sequence[str | None]] = [
        [phase, *(cell(found, name, "ms") for name in ("median", "p90", "mean")), cell(found, "share", "%"),
         cell(found, "roof", "ms"), cell(found, "of_roof", "%")]
        for phase, found in phases.items()
    ]  # fmt: skip
    columns = ["phase", "median, ms", "90%, ms", "mean, ms", "share", "limit, ms", "limit ÷ mean"]
    return table(columns, rows)

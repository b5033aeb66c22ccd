"""The whole page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks import learning
from benchmarks.page import profiles, provenance, rates, svg, tasks
from benchmarks.page.html import folded, heading, identifier, source, table
from benchmarks.published import Published
from benchmarks.result import Result
from benchmarks.table import Table

STYLE = Path(__file__).with_name("style.css")
INTRODUCTION = """
<h1>saltus: benchmark results</h1>
<p>Every number of saltus on this page is computed from a committed result file.
<a href="#provenance">Provenance</a> lists each file with its command, commit, machine and versions. Rates and times are
of the machine that is named; compare them within one file only.</p>
<p><strong>Curves.</strong> A thin line is one seed: the mean return of an evaluation. A thick line is the interquartile
mean over seeds, the mean of the middle half; its band is a 95% bootstrap interval over seeds (percentiles, pointwise;
Agarwal et al. 2021). Between evaluations a seed is interpolated linearly. Line and band begin when the last seed has
its first evaluation, and end when the first seed ends: every point has all seeds. Fewer than five seeds have no band:
percentiles of so few are too narrow.</p>
<p><strong>Published values</strong> are by others, on other hardware, and partly for another version of a task (v4, not
v5). They are marks, dotted lines and hatched bars; a pointer over one shows its value, as do the tables. A mark with an
arrow lies beyond the axis.</p>
"""


def page(
    results: Sequence[Result],
    published: Sequence[Published],
    profiled: Mapping[str, Mapping[str, Any]],
    tables: Callable[[Result], Sequence[Table]],
) -> str:
    """The report as one HTML page, which needs no other file.

    Args:
        results: all result files.
        published: values of others.
        profiled: results of `saltus profile --json`, by name.
        tables: the tables of a result file.
    """
    names = tasks.names(results)
    with svg.style():
        parts = [tasks.section(name, results, published, tables) for name in names]
        parts += [rates.section(benchmark, results, tables) for benchmark in rates.UNITS]
        parts += [rates.gpu_section(results, published), profiles.section(profiled)]
    parts.append(_others([result for result in results if not _has_section(result)], tables))
    links = {**{name: name for name in names}, "environment": "env steps/s", "update": "updates/s", "gpu": "GPU"}
    links |= {"profiles": "profiles", "others": "other measurements", "provenance": "provenance"}
    body = "".join([*parts, provenance.section(results)])
    contents = " ".join(
        f'<a href="#{identifier(name)}">{escape(text)}</a>'
        for name, text in links.items()
        if f'id="{identifier(name)}"' in body
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>saltus: benchmark results</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n"
        f"<body>\n<main>{INTRODUCTION}<nav>{contents}</nav>\n{body}</main>\n</body>\n</html>\n"
    )


def _has_section(result: Result) -> bool:
    return result.benchmark in rates.UNITS or bool(learning.curves_of(result))


def _others(results: Sequence[Result], tables: Callable[[Result], Sequence[Table]]) -> str:
    """The tables of the files that have no chart of their own."""
    parts = []
    for result in results:
        shown = "".join(table(one.columns, one.rows, one.title) for one in tables(result))
        summary = f"{escape(result.benchmark)}: {escape(result.machine)}, {result.date[:10]}"
        name = f"<span class=file>{escape(result.path.stem)}</span>"
        if shown:
            parts.append(folded(f"{summary} {name}", source(result) + shown))
    return f"<section>{heading('Other measurements', 'others')}{''.join(parts)}</section>" if parts else ""

"""Provenance: the command, commit, machine, versions and settings of each result file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.page.html import folded, heading, identifier
from benchmarks.result import Result


def section(results: Sequence[Result]) -> str:
    """A folded part for each result file."""
    files = "".join(map(_file, results))
    return f"<section>{heading('Provenance', 'provenance')}<p>{len(results)} result files.</p>{files}</section>"


def _file(result: Result) -> str:
    name = result.path.stem
    facts = {
        "command": result.command,
        "date": result.date,
        "commit": result.commit or "not recorded",
        "measurements": str(len(result.measurements)),
        "hardware": _pairs(result.hardware),
        "versions": _pairs(result.versions),
        "settings": _pairs(result.settings),
    }
    rows = "".join(f"<dt>{term}</dt><dd>{escape(text)}</dd>" for term, text in facts.items())
    return f'<div id="{identifier(name)}">{folded(f"<span class=file>{escape(name)}</span>", f"<dl>{rows}</dl>")}</div>'


def _pairs(values: Mapping[str, Any]) -> str:
    shown = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return "; ".join(f"{name}: {value}" for name, value in shown.items()) or "none"

"""The tables of all results, as Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import json_result as result


def report(results: Path = result.RESULTS) -> None:
    """Print the tables of all result files as Markdown.

    Args:
        results: the folder of the result files.
    """
    for path in sorted(results.glob("*.json")):
        print(markdown(json.loads(path.read_text())))


def markdown(content: dict[str, Any]) -> str:
    """One result as Markdown: a line with command, date, machine and versions, then the tables."""
    machine, versions = content["hardware"], content["versions"]
    packages = ", ".join(f"{name} {number}" for name, number in versions.items() if number != "not installed")
    gpu = f", {machine['gpu']} (driver {machine.get('driver') or 'not recorded'})" if machine.get("gpu") else ""
    parts = [
        f"`{content['command']}`, {content['date'][:10]}, {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gb']} GB{gpu}, commit {content.get('commit') or 'not recorded'}; {packages}\n"
    ]
    for table in content["summary"]:
        lines = [table["columns"], ["---"] * len(table["columns"]), *[map(result.text, row) for row in table["rows"]]]
        parts.append(f"**{table['title']}**\n")
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    return "\n".join(parts)

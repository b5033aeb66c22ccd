"""Messages that docs/troubleshooting.md quotes are those of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
QUOTED = re.findall(r'"([^"]+)"', re.sub(r"`[^`]*`", lambda code: code[0].replace('"', "'"), PAGE))


def literals(path: Path) -> list[str]:
    """The strings of a file, without docstrings; what an f-string inserts is `...`."""
    nodes = [*ast.walk(ast.parse(path.read_text()))]
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    return [
        "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
        if isinstance(node, ast.JoinedStr)
        else str(node.value)
        for node in nodes
        if id(node) not in docstrings
        and (isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)))
    ]


MESSAGES = [
    text for name in ("saltus", "envs", "pipeline") for path in (ROOT / name).rglob("*.py") for text in literals(path)
]


@pytest.mark.parametrize("quoted", QUOTED)
def test_the_message_quoted_is_in_the_code(quoted: str):
    parts = [re.escape(part) for part in re.split(r"\.\.\.", quoted)]
    assert any(re.search(".*".join(parts), text) for text in MESSAGES)

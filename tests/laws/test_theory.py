"""Every function and every test that docs/theory.md names exists."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from pipeline import estimators

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "theory.md").read_text()
FUNCTIONS = sorted(set(re.findall(r"`(pipeline\.[\w.]+)`", PAGE)))
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


def defined(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_functions_named_exist(name: str) -> None:
    parts = name.split(".")
    found = importlib.import_module(".".join(parts[:2]))
    for part in parts[2:]:
        found = getattr(found, part)
    assert callable(found)
    assert found.__doc__


@pytest.mark.parametrize(("path", "name"), TESTS)
def test_the_tests_named_exist(path: str, name: str) -> None:
    assert name in defined(ROOT / path)


def test_every_law_and_every_estimator_is_on_the_page() -> None:
    named = {path for path, _ in TESTS}
    laws = [path for path in sorted((ROOT / "tests" / "laws").glob("test_*.py")) if path.name != Path(__file__).name]
    assert [path.name for path in laws if str(path.relative_to(ROOT)) not in named] == []
    public = [name for name in defined(Path(estimators.__file__)) if not name.startswith("_")]
    assert [name for name in public if f"pipeline.estimators.{name}" not in FUNCTIONS] == []


def test_code_in_backquotes_that_looks_like_a_function_is_checked() -> None:
    """A dotted name must start with its package, so that the tests above see it."""
    loose = [text for text in re.findall(r"`(\w+(?:\.\w+)+)`", PAGE) if not text.startswith("pipeline.")]
    assert loose == ["gradients.png"]

"""The generated parts of the documents equal what the result files say."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from benchmarks import report as command
from benchmarks import result
from benchmarks.headlines import recipe_options
from benchmarks.report import BEGIN, PART, documents, report, update
from benchmarks.table import Table, markdown
from saltus.errors import SaltusError

pytest.importorskip("scipy")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_every_document_equals_what_the_results_say(path: Path) -> None:
    assert update(path, result.read_all()) == path.read_text(), "run python -m benchmarks report"


def test_tables_are_generated() -> None:
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in documents()}
    assert {name for name, text in texts.items() if BEGIN in text} >= {
        "README.md", "docs/gpu.md", "docs/recipes.md", "docs/results.md", "docs/search.md",
    }  # fmt: skip


def test_a_digit_that_is_missing_is_found_and_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "README.md"
    text = (ROOT / "README.md").read_text()
    part = PART.search(text)
    assert part
    digit = re.search(r"\d(?=[^|]*\|\n)", part["text"].partition("---")[2])
    assert digit
    at = text.index(digit.string) + digit.start()
    monkeypatch.setattr(command.checkout, "ROOT", tmp_path)
    monkeypatch.setattr(command, "documents", lambda: [page])
    shutil.copytree(result.RESULTS, tmp_path / "benchmarks" / "results")
    monkeypatch.setattr(result, "read_all", lambda read=result.read_all: read(tmp_path / "benchmarks" / "results"))
    damaged = text[:at] + text[at + 1 :]
    page.write_text(damaged)
    with pytest.raises(SystemExit, match=r"documents are not up to date: run python -m benchmarks report"):
        report(check=True)
    printed = capsys.readouterr().out
    assert printed.count("\n-|") == printed.count("\n+|") == 1
    assert page.read_text() == damaged
    report()
    assert page.read_text() == text
    report(check=True)


@pytest.mark.parametrize(
    "text",
    [
        "<!-- generated: memories -->\n<!-- end of generated -->\n",
        "<!-- generated: memory -->\n",
        "<!-- end of generated -->\n",
        "<!-- generated: memory -->\n<!-- generated: update -->\n<!-- end of generated -->\n",
    ],
)
def test_unknown_and_open_markers_are_refused(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(SaltusError, match="has no end"):
        update(page, [])
    assert page.read_text() == text


def test_a_part_without_results_says_so(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- generated: memory -->\n1\n<!-- end of generated -->\nb\n")
    assert update(page, []) == (
        "a\n<!-- generated: memory -->\nNo result file has this measurement yet.\n<!-- end of generated -->\nb\n"
    )


def test_options_that_change_a_recipe_are_named() -> None:
    options = ["--device", "cuda", "--utd-ratio", "0.125", "--eval-every", "200000", "--gamma", "0.9"]
    assert recipe_options(options) == ["--utd-ratio", "0.125", "--gamma", "0.9"]
    readme = (ROOT / "README.md").read_text()
    assert "| Humanoid-v5 --utd-ratio 0.125, 6.1 minutes on 5 cores and 1/3 of a GPU, 3 seeds |" in readme


def test_tables_in_markdown_are_rounded_and_escaped() -> None:
    table = Table("title", ["a|b", "c"], [[1234.5, None], [12, "x\ny"], [0.123, "|"]])
    assert markdown(table).splitlines() == [
        "| a\\|b | c |", "| --- | --- |", "| 1,234 |  |", "| 12 | x y |", "| 0.12 | \\| |",
    ]  # fmt: skip

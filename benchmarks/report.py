"""The generated parts of the documents, between markers, from the result files.

A part begins with ``<!-- generated: NAME ARGUMENT -->`` and ends with ``<!-- end of generated -->``. The names are in
`generated.GENERATED`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks import checkout, pictures, published, result
from benchmarks.generated import GENERATED, Page, generate
from benchmarks.installed import require_statistics
from benchmarks.page import profiles
from benchmarks.page.page import page as make_page
from benchmarks.result import Result
from benchmarks.tables import tables
from pipeline import files
from saltus.errors import SaltusError

BEGIN, END = "<!-- generated: ", "<!-- end of generated -->"
PART = re.compile(r"^<!-- generated: (?P<marker>[^\n]*?) -->\n(?P<text>.*?)^<!-- end of generated -->$", re.M | re.S)


def report(check: bool = False, page: Path | None = None) -> None:
    """Write every table and picture of README.md and docs/ from the result files.

    Args:
        check: write nothing; exit with code 1 and the lines that differ if a document or picture is not up to date.
        page: instead, write all results into this file, as one HTML page without scripts or other files.
    """
    require_statistics()
    if page is not None:
        write_page(page)
        return
    try:
        results = result.read_all()
        texts = [(path, path.read_text(), update(path, results)) for path in documents()]
        redrawn = pictures.outdated(result.RESULTS, results)
    except SaltusError as error:
        raise SystemExit(str(error)) from error
    changed = [(path, old, new) for path, old, new in texts if old != new]
    for path, old, new in changed:
        name = path.relative_to(checkout.ROOT)
        if check:
            pair = old.splitlines(), new.splitlines()
            print("\n".join(difflib.unified_diff(*pair, str(name), f"{name}, generated", n=0, lineterm="")))
        else:
            files.write(path, new)
            print(f"{name} has changed")
    for found in redrawn:
        if not check:
            pictures.draw(found)
        print(f"{found.path.with_suffix('.png').relative_to(checkout.ROOT)} {'differs' if check else 'has changed'}")
    if check and (changed or redrawn):
        raise SystemExit("documents are not up to date: run python -m benchmarks report")
    if not changed and not redrawn:
        print("all documents are up to date")


def write_page(path: Path) -> None:
    """Write all committed results, with published values, as one HTML page.

    Raises:
        SystemExit: a file cannot be read, is damaged, or the page cannot be written.
    """
    try:
        results, profiled = result.read_all(), profiles.read_all(result.RESULTS)
        files.write(path, make_page(results, published.read(), profiled, tables))
    except SaltusError as error:
        raise SystemExit(str(error)) from error
    except OSError as error:
        raise SystemExit(f"{path} cannot be written ({error.strerror}): name another file with --page") from error
    print(path)


def documents() -> list[Path]:
    """README.md and the pages of docs/."""
    return [checkout.ROOT / "README.md", *sorted((checkout.ROOT / "docs").glob("*.md"))]


def update(path: Path, results: Sequence[Result]) -> str:
    """The text of a document with its generated parts made anew.

    Raises:
        SaltusError: a marker that is not known, or has no end.
    """
    text, page = path.read_text(), Page(path.parent, results)

    def made(match: re.Match[str]) -> str:
        if match["marker"].split(" ")[0] not in GENERATED or BEGIN in match["text"]:
            line = text.count("\n", 0, match.start()) + 1
            raise SaltusError(
                f"{path}, line {line}: {BEGIN}{match['marker']} --> names no table, or has no end. "
                f"There are {', '.join(GENERATED)}, and each part ends with {END}"
            )
        return f"{BEGIN}{match['marker']} -->\n{generate(page, match['marker'])}\n{END}"

    found = PART.sub(made, text)
    if text.count(BEGIN) != len(PART.findall(text)) or text.count(END) != text.count(BEGIN):
        raise SaltusError(f"{path}: a generated part has no end, or an end no beginning: {BEGIN}NAME --> ... {END}")
    return found

"""The report as one page: whole, without network, and true to its results."""

from __future__ import annotations

import dataclasses
import json
import re
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from benchmarks import published, result
from benchmarks.page import marks, page, profiles, rates, svg, tasks
from benchmarks.published import Published
from benchmarks.report import report
from benchmarks.result import Result
from benchmarks.table import Table
from benchmarks.tables import tables
from saltus.errors import SaltusError

pytest.importorskip("scipy")

RESULTS = result.read_all()
PUBLISHED = published.read()


def no_tables(_: Result) -> list[Table]:
    return []


@pytest.fixture(scope="module")
def whole() -> str:
    return page.page(RESULTS, PUBLISHED, profiles.read_all(result.RESULTS), tables)


class Elements(HTMLParser):
    """The elements of a page, and whether each one that was opened was closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_needs_no_other_file_and_runs_no_script(whole: str) -> None:
    elements = Elements(whole)
    assert not elements.open
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in elements.found}
    for tag, attributes in elements.found:
        for name in ("src", "href", "xlink:href", "data", "srcset", "action"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert not re.search(r"@import|url\((?!#)", whole)
    assert len(whole.encode()) < 3e6


def test_ids_are_unique_and_every_link_leads_to_one(whole: str) -> None:
    elements = Elements(whole).found
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len({*ids})
    links = {attributes["href"] for _, attributes in elements if attributes.get("href")}
    assert {link and link[1:] for link in links} <= {*ids}


def test_page_has_the_provenance_of_every_result_file(whole: str) -> None:
    part = whole[whole.index('id="provenance"') :]
    for found in RESULTS:
        for text in (found.path.stem, found.command, found.date, found.commit or "not recorded"):
            assert escape(text) in part, found.path
        assert all(f"{name}: {version}" in part for name, version in found.versions.items())


def test_page_has_the_tables_of_every_result_file(whole: str) -> None:
    for found in RESULTS:
        for table in tables(found):
            assert escape(table.title) in whole, found.path


def test_files_of_unknown_benchmarks_are_refused() -> None:
    unknown = dataclasses.replace(RESULTS[0], benchmark="speed")
    with pytest.raises(SaltusError, match="is of the benchmark 'speed'; there are tables of environment, gpu"):
        tables(unknown)


def test_report_writes_the_page_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(result, "read_all", list)
    report(page=tmp_path / "page.html")
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    with pytest.raises(SystemExit, match=r"page.html cannot be written \(.*\): name another file with --page"):
        report(page=tmp_path / "no folder" / "page.html")


def test_page_has_every_published_value_of_the_tasks_that_it_shows(whole: str) -> None:
    shown = [task.rpartition("-v")[0] for task in tasks.names(RESULTS)]
    assert {"Hopper", "Humanoid"} <= {*shown}
    titles = {unescape(title) for title in re.findall(r"<title>(published: .*?)(?:; beyond the axis)?</title>", whole)}
    values = [one for one in PUBLISHED if one.metric != "return" or one.task.rpartition("-v")[0] in shown]
    assert {str(one) for one in values if one.metric != "return" or not one.env_steps or one.env_steps <= 1e6} <= titles
    for one in values:
        assert f"{one.value:,.0f}" in whole
        assert escape(one.source) in whole or one.metric != "return"


def test_every_mark_says_that_it_is_published_and_on_which_hardware() -> None:
    for one in PUBLISHED:
        assert str(one).startswith("published: ")
        assert str(one).endswith(f"hardware {one.hardware}")
    for _, text in marks.legend(marks.of_task(PUBLISHED, "Hopper-v5")):
        assert "hardware: " in text


def test_page_is_the_same_each_time() -> None:
    few = [found for found in RESULTS if found.benchmark in ("training", "environment")][:3]
    assert page.page(few, PUBLISHED, {}, no_tables) == page.page(few, PUBLISHED, {}, no_tables)


def test_page_of_no_results_is_whole() -> None:
    assert not Elements(page.page([], [], {}, no_tables)).open


def value(system: str, env_steps: float | None, seconds: float | None = None, number: float = 10.0) -> Published:
    return Published(system, "Hopper-v4", "return", number, None, env_steps, seconds, "not stated", 1, "source")


def test_marks_beyond_the_axis_are_at_its_edge_once_for_each_system_without_a_nearer_one() -> None:
    near, far, later, further = value("a", 150.0), value("a", 900.0), value("b", 500.0), value("b", 600.0)
    level, timed = value("c", None), value("d", None, 60.0)
    placed = marks.place([further, far, near, later, level, timed], "env_steps", last=100.0)
    assert placed.inside == [(150.0, near)]
    assert placed.beyond == [(500.0, later)]
    assert placed.levels == [level]
    assert placed.end == pytest.approx(1.04 * 150)
    assert marks.place([further, level, timed], "wall_seconds", last=100.0).inside == [(60.0, timed)]


def test_published_returns_of_other_versions_are_those_of_the_task() -> None:
    assert marks.of_task([value("a", 1.0)], "Hopper-v5")
    assert not marks.of_task([value("a", 1.0)], "HopperTall-v5")


def test_ratios_are_those_of_each_turn() -> None:
    found = rates.ratios({"saltus": [10.0, 20.0, 30.0], "other": [5.0, 20.0, 10.0]})
    assert found == {"other": rates.Spread(2.0, 1.0, 3.0)}
    assert str(found["other"]) == "1.00 to 3.00"
    assert rates.ratios({"saltus": [10.0, 20.0], "other": [5.0], "none": []}) == {"other": rates.Spread(2.0, 2.0, 2.0)}


def test_charts_have_the_colors_of_the_page_and_texts_of_their_marks() -> None:
    with svg.style():
        chart = svg.Chart(height=100, left=50)
        (line,) = chart.axes.plot([0, 1, 2], [0, 1, 2], "o", color=svg.PUBLISHED)
        line.set_gid(chart.title("one", "two & more", "three"))
        chart.axes.axhline(1, color=svg.INK).set_gid(chart.title("a line"))
        text = chart.svg("name", "what is drawn")
    assert re.findall(r"<title>(.*?)</title>", text) == ["one", "two &amp; more", "three", "a line"]
    assert "var(--published)" in text
    assert "var(--ink)" in text
    assert not re.search(r"#0000[ab]\d", text)
    assert 'aria-label="what is drawn"' in text


def profile_content() -> dict:
    phase = {
        "median": 0.004,
        "p90": 0.005,
        "mean": 0.004,
        "blocks": [0.004],
        "share": 0.8,
        "roof": 0.003,
        "of_roof": 0.75,
    }
    other = phase | {"share": 0.2, "mean": 0.001, "roof": None, "of_roof": None}
    return {
        "format": "saltus profile 1", "task": "Hopper-v5", "config": {"num_envs": 128, "utd_ratio": 0.0625},
        "versions": {"torch": "2.13.0"}, "machine": {"processor": "2 x EPYC", "device": "cpu", "threads": 2},
        "rates": {"env_steps_per_second": 1234.0, "updates_per_second": 77.0},
        "block_rates": {"env_steps_per_second": [1234.0], "updates_per_second": [77.0]},
        "phases": {"physics": phase, "act": other},
    }  # fmt: skip


def test_profiles_are_shown_with_their_phases_and_limits(tmp_path: Path) -> None:
    (tmp_path / "profile-Hopper-v5.json").write_text(json.dumps(profile_content()))
    shown = page.page([], [], profiles.read_all(tmp_path), no_tables)
    for text in ("1,234 env steps/s", "physics: 4.000 ms, 80.0%", "limit of the machine 3.000 ms", "2 x EPYC", "2.13"):
        assert text in shown
    (tmp_path / "profile-damaged.json").write_text("{}")
    with pytest.raises(SaltusError, match=r"damaged\.json has format None"):
        profiles.read_all(tmp_path)


def test_results_without_evaluations_are_shown_without_a_chart() -> None:
    row = {"system": "saltus", "preset": None, "task": "Hopper-v5", "seed": 0, "curve": {"env_steps": [], "return": []}}
    settings, machine = {"tasks": ["Hopper-v5"], "threshold": [3000]}, {"cpu": "x", "cores": 1}
    empty = Result("training", "command", "2026-01-01", None, machine, {}, settings, [row], Path("a.jsonl"))
    table = Table("Hopper-v5: returns", ["seed"], [["none & nothing"]])
    shown = tasks.section("Hopper-v5", [empty], [], lambda _: [table, Table("Humanoid-v5", [], [])])
    assert "saltus, 0 seeds" in shown
    assert "none &amp; nothing" in shown
    assert "Humanoid" not in shown

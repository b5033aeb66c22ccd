"""The GPU kit in its reduced form: findings, failures, time limits."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import child_functions
import pytest
import torch

from benchmarks import checkout, result, runner
from benchmarks.gpu import device_tests, kit, process
from benchmarks.gpu.context import Finding, Section, SectionContext
from benchmarks.gpu.kit import SECTIONS, earlier_findings, gpu, run_kit
from benchmarks.gpu.sizes import REDUCED
from benchmarks.gpu.tables import TABLES, comparisons
from benchmarks.gpu.tables import tables as tables_of
from benchmarks.hardware import hardware
from benchmarks.table import Table

TASK = "InvertedPendulum-v5"
RUN = "--total-env-steps 100 --eval-every 50 --learning-starts 40 --batch-size 16 --eval-episodes 2 --no-compile"
TINY = dataclasses.replace(
    REDUCED, worlds={TASK: (2, 3)}, warmup_calls=2, repeats=1, seconds=0.01, steps_per_call=2, spreading_steps=9,
    updates=((16, 2),), buffer=500, compile=False, parity={TASK: ("model", "newton")}, parity_worlds=2, parity_steps=2,
    rollout_worlds=2, rollout_steps=3, cpu_worlds={TASK: 2},
    training=((TASK, 60.0, f"--preset sac {RUN}"), ("Hoper-v5", 30.0, "")),
)  # fmt: skip


def context(device: str = "cpu", **sizes: Any) -> tuple[SectionContext, list[Finding]]:
    """A section's context, and the list that receives its findings."""
    found: list[Finding] = []
    device_ = torch.device(device)
    return SectionContext(device_, dataclasses.replace(TINY, **sizes), time.monotonic() + 300, found.append), found


def measured(found: list[Finding], section: str) -> list[dict[str, Any]]:
    return [one for one in found if one["section"] == section]


def tables(found: list[Finding], section: str) -> list[Table]:
    rows = measured(found, section)
    return TABLES[section](rows) if section in TABLES else comparisons(rows)


@pytest.fixture
def plain_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run other libraries' updates in this process and without torch.compile."""
    monkeypatch.setattr(runner, "isolated", lambda make: make())
    monkeypatch.setattr(torch, "compile", lambda function: function)


@pytest.mark.slow
@pytest.mark.usefixtures("plain_peer")
@pytest.mark.parametrize(
    ("section", "titles"),
    [
        ("compilation", ["Compilation, all at once"]),
        ("synchronization", ["Host synchronizations, by torch's sync debug mode"]),
        ("steps", [f"{TASK}, 2 worlds: env steps/s", f"{TASK}, 3 worlds: env steps/s"]),
        ("parity", ["One control step of Warp and of the CPU engine: relative difference of the observation"]),
        ("loop", ["The loop on the device"]),
        ("updates", [f"{TASK}: updates/s, batch 16, 2 a round"]),
        ("profile", ["Profile of rounds"]),
        ("cores", [f"{TASK}, 2 worlds, CPU engine: env steps/s", f"{TASK}, fast on the CPU: updates/s"]),
    ],
)
def test_sections_run_in_reduced_form(section: str, titles: list[str]) -> None:
    reduced, found = context()
    SECTIONS[section](reduced)
    assert measured(found, section)
    made = tables(found, section)
    assert [table.title for table in made] == titles
    assert all(table.rows for table in made)
    if section == "steps":
        assert [one["worlds"] for one in measured(found, "memory")] == [2, 3]
    if section == "parity":
        worst = {one["solver"]: one["worst"] for one in measured(found, "parity")}
        assert 0 < worst["model"] < 1e-4
        assert [one["engine"] for one in measured(found, "rollouts")] == ["cpu", "warp"]
        assert len(tables(found, "rollouts")[0].rows) == 2
    if section == "updates":
        cases = {"saltus sac", "saltus sac, bfloat16 products", "saltus fast"}
        assert {one["case"] for one in measured(found, "updates")} == {*cases, "LeanRL's way"}
    if section == "compilation":
        assert len(made[0].rows) == 4


@pytest.fixture
def forked_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the processes of sections: these sections compute nothing, and a new process imports torch for seconds."""
    monkeypatch.setattr(process, "get_context", lambda _: get_context("fork"))


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_training_records_curves_and_failures() -> None:
    reduced, found = context()
    with pytest.raises(RuntimeError, match=r"^Hoper-v5: exit code 1: saltus: there is no task"):
        SECTIONS["training"](reduced)
    trained, failed = measured(found, "training")
    assert trained["exit_code"] == 0, trained["output"]
    first, second = trained["curve"]["wall_seconds"]
    assert 0 < first < second < trained["seconds"]
    assert trained["output"] == []
    assert (failed["exit_code"], failed["curve"]) == (1, {"wall_seconds": [], "return": []})
    assert [row[1] for row in tables(found, "training")[0].rows] == [2, 0]
    assert "saltus: there is no task" in " ".join(failed["output"])
    assert "saltus-" not in " ".join(failed["output"]), "a temporary folder's name"


@pytest.mark.usefixtures("forked_sections")
def test_failing_sections_are_reported_and_others_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "result.jsonl"
    sections = {name: getattr(child_functions, name) for name in ("misses", "raises", "dies", "measures")}
    with pytest.raises(SystemExit) as ended:
        run_kit(sections, TINY, 5, file)
    assert ended.value.code == 1
    content = result.read(file)
    outcomes = tables_of(content)[-1]
    assert content.settings == {"minutes": 5, "device": "cpu", "reduced": True}
    assert [row[:2] for row in outcomes.rows] == [
        ["misses", "failed: RuntimeError: one case failed"],
        ["raises", "failed: ZeroDivisionError: no such thing"],
        ["dies", "failed: its process ended with exit code 3"],
        ["measures", "done"],
    ]
    assert [(one["section"], one["value"]) for one in content.measurements if "value" in one] == [
        ("misses", 4.0), ("raises", 2.0), ("dies", 3.0), ("measures", 1.0),
    ]  # fmt: skip
    assert outcomes.title == "Sections"
    assert "failed: ZeroDivisionError" in capsys.readouterr().out


def test_same_command_keeps_sections_that_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run_in_this_process(section: Section, *arguments: Any) -> str:
        ran.append(section.__name__)
        arguments[-1]({"section": "numbers", "value": len(ran)})
        return "done" if section.__name__ == "measures" or len(ran) > 2 else "stopped: no time was left"

    monkeypatch.setattr(kit, "run_isolated", run_in_this_process)
    sections = {name: getattr(child_functions, name) for name in ("measures", "hangs")}
    monkeypatch.setattr(kit, "SECTIONS", sections)
    file = tmp_path / "result.jsonl"
    with pytest.raises(SystemExit):
        gpu(output=file)
    gpu(output=file)
    assert ran == ["measures", "hangs", "hangs"]
    rows = result.read(file).measurements
    assert [row.get("value") or row["outcome"] for row in rows] == [1, "done", 3, "done"]
    gpu(output=file)  # a complete file, which is named, is replaced
    assert ran[3:] == ["measures", "hangs"]
    assert [row["value"] for row in result.read(file).measurements[::2]] == [4, 5]
    monkeypatch.setattr(result, "COMMIT", "another")
    assert earlier_findings(file, ["measures", "hangs", "more"]) == []


@pytest.mark.slow
def test_findings_are_in_the_file_before_their_section_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "result.jsonl"
    monkeypatch.setenv("RESULT", str(file))
    run_kit({"waits": child_functions.waits_for_its_finding}, TINY, 5, file)
    assert [one["section"] for one in result.read(file).measurements] == ["waits", "outcome"]


@pytest.mark.usefixtures("forked_sections")
def test_hanging_section_is_stopped_at_the_deadline(tmp_path: Path) -> None:
    file = tmp_path / "result.jsonl"
    start = time.monotonic()
    with pytest.raises(SystemExit):
        run_kit({"hangs": child_functions.hangs, "measures": child_functions.measures}, TINY, 0.02, file)
    assert time.monotonic() - start < 60
    rows = tables_of(result.read(file))[-1].rows
    assert [row[1] for row in rows] == ["stopped: no time was left", "not run: no time was left"]


def test_results_name_the_gpu_and_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 580.1.2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    properties = SimpleNamespace(name="H100", total_memory=85e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    machine = hardware()
    assert (machine["gpu"], machine["driver"]) == ("H100, 85 GB", "580.1.2")
    program.write_text("#!/bin/sh\nexit 9\n")
    assert "driver" not in hardware()


def test_failing_case_leaves_others_measured() -> None:
    def broken() -> runner.Work:
        raise ZeroDivisionError("no such thing\nmore")

    reduced, found = context()
    works: Callable[[], runner.Work] = lambda: lambda: 1  # noqa: E731
    reduced.require_success()
    reduced.compare("section", "first", {"ours": works, "theirs": broken}, "ours")
    reduced.compare("section", "second", {"theirs": broken}, "theirs")
    first, second = tables(found, "section")
    assert [row[0] for row in first.rows] == ["theirs", "ours"]
    assert first.rows[0][1] == "failed: ZeroDivisionError: no such thing"
    assert [row[:2] for row in second.rows] == [["theirs", "failed: ZeroDivisionError: no such thing"]]
    with pytest.raises(RuntimeError, match="first: theirs failed: ZeroDivisionError: no such thing; second: theirs"):
        reduced.require_success()


LONG_TESTS = """
import time
import pytest

@pytest.mark.gpu
@pytest.mark.parametrize("number", [1, 2])
def test_long(number):
    time.sleep(60)
"""


def test_long_tests_are_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_gpu.py").write_text(LONG_TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -q\nmarkers = gpu\n")
    monkeypatch.setattr(checkout, "ROOT", tmp_path)
    monkeypatch.setattr(device_tests, "FILES", ("tests/test_gpu.py",))
    reduced, found = context(test_seconds=0.5)
    with pytest.raises(RuntimeError, match=r"^0 passed, 0 failed, 0 skipped, 2 cut short$"):
        SECTIONS["tests"](reduced)
    (note,), (table,) = measured(found, "tests"), tables(found, "tests")
    assert note["cut_short"] == [f"tests/test_gpu.py::test_long[{number}]" for number in (1, 2)]
    assert len(table.rows) == 2 + 1


def test_gpu_tests_run_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, ...]] = []
    tests = ["tests/a.py::one", "tests/a.py::two[x y]", "tests/a.py::three", "tests/a.py::four"]

    def ended(until: float, *arguments: str) -> device_tests.PytestRun:
        if "--collect-only" in arguments:
            warning = "[W Context.cpp:1] at::globalContext() says something"
            return device_tests.PytestRun(0, [warning, *tests, "4 tests collected"])
        ran.append(arguments[2:])
        test = arguments[-1]
        if "two" in test:
            return device_tests.PytestRun(1, [f"{test} FAILED", "E  no", f"FAILED {test} - no"])
        if "four" in test:
            return device_tests.PytestRun(-11, ["Fatal Python error: Segmentation fault"])
        if "three" in test:
            return device_tests.PytestRun(device_tests.TIMED_OUT, [])
        return device_tests.PytestRun(0, [f"{test} PASSED", "1 passed"])

    monkeypatch.setattr(device_tests, "_pytest", ended)
    on_gpu, found = context("cuda")
    with pytest.raises(RuntimeError, match=r"^1 passed, 2 failed, 0 skipped, 1 cut short$"):
        SECTIONS["tests"](on_gpu)
    assert sorted(ran) == sorted((test,) for test in tests)
    (note,) = measured(found, "tests")
    assert note["failed"] == ["FAILED tests/a.py::two[x y] - no", "EXIT CODE -11 tests/a.py::four"]
    assert note["cut_short"] == ["tests/a.py::three"]


def test_every_file_of_gpu_tests_is_run() -> None:
    files = (checkout.ROOT / "tests").rglob("test_*.py")
    marked = [str(one.relative_to(checkout.ROOT)) for one in files if "\n    pytest.mark.gpu,\n" in one.read_text()]
    assert sorted(marked) == sorted(device_tests.FILES)


def test_sections_without_time_are_reported(tmp_path: Path) -> None:
    file = tmp_path / "result.jsonl"
    with pytest.raises(SystemExit):
        gpu(minutes=0, sections=("steps", "parity"), output=file)
    rows = tables_of(result.read(file))[-1].rows
    assert [row[:2] for row in rows] == [[name, "not run: no time was left"] for name in ("steps", "parity")]


def test_unknown_section_is_refused_with_a_list(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no such section: parities; there are tests, .*parity"):
        gpu(sections=("parities",), output=tmp_path / "result.jsonl")
    assert not list(tmp_path.iterdir())

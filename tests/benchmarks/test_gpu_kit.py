"""The proof kit in its reduced form: what it finds, how it fails, what it leaves."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, result, runner
from benchmarks.report import markdown

TINY = dataclasses.replace(
    gpu.REDUCED, worlds={"Hopper-v5": (3,), "Humanoid-v5": (2,)}, repeats=1, seconds=0.01, updates=((32, 2),),
    buffer=500, parity_worlds=2, parity_steps=2, rollout_worlds=2, rollout_steps=3, training=(),
)  # fmt: skip


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "REDUCED", TINY)
    monkeypatch.setattr(gpu, "ON_GPU", TINY)


@pytest.mark.slow
def test_a_section_that_fails_is_reported_and_the_others_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "REDUCED", dataclasses.replace(TINY, training=(("Hoper-v5", 30.0, ""),)))
    monkeypatch.setattr(gpu, "ON_GPU", gpu.REDUCED)
    file = tmp_path / "result.json"
    with pytest.raises(SystemExit) as ended:
        gpu.gpu(sections=("training", "synchronization", "steps", "parity", "loop", "profile"), output=file)
    assert ended.value.code == 1
    content = json.loads(file.read_text())
    outcome = {row[0]: row[1] for row in content["summary"][-1]["rows"]}
    assert outcome.pop("training").startswith("failed: RuntimeError: Hoper-v5: exit code 1: saltus: there is no task")
    assert set(outcome.values()) == {"done"}
    found = {one["section"] for one in content["measurements"]}
    assert {"training", "synchronization", "steps", "memory", "parity", "rollouts", "loop", "profile"} <= found
    worst = {
        (one["task"], one["solver"]): one["worst"] for one in content["measurements"] if one["section"] == "parity"
    }
    assert 0 < worst["Hopper-v5", "model"] < 1e-4
    printed = capsys.readouterr().out
    assert printed.rindex("Sections") > printed.rindex("Profile of rounds"), "the outcome comes last"
    assert "failed: RuntimeError" in markdown(content)
    assert str(tmp_path) not in json.dumps(content["measurements"])


def test_a_case_that_fails_leaves_the_others_to_be_measured() -> None:
    def broken() -> runner.Work:
        raise ZeroDivisionError("no such thing\nmore")

    found: list[gpu.Finding] = []
    kit = gpu.Kit(torch.device("cpu"), TINY, time.monotonic() + 60, found.append)
    with pytest.raises(RuntimeError, match="title: theirs failed"):
        kit.compare("section", "title", {"ours": lambda: lambda: 1, "theirs": broken}, "ours")
    table = next(one for one in found if isinstance(one, result.Table))
    assert [row[0] for row in table.rows] == ["ours", "theirs"]
    assert table.rows[1][1] == "failed: ZeroDivisionError: no such thing"
    with pytest.raises(RuntimeError, match="title: theirs failed: ZeroDivisionError"):
        kit.compare("section", "title", {"theirs": broken}, "theirs")


@pytest.mark.slow
def test_tests_that_take_too_long_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[gpu.Finding] = []
    kit = gpu.Kit(torch.device("cpu"), TINY, time.monotonic() + 300, found.append)
    monkeypatch.setattr(gpu, "FOR_TESTS", 0.5)
    with pytest.raises(RuntimeError, match=r"^0 passed, 0 failed, 0 skipped, [1-9][0-9]* cut short$"):
        gpu.run_tests(kit)
    (note, table) = found
    assert len(note["cut_short"]) == len(table.rows) - 1 > 20
    assert note["cut_short"][0].startswith("tests/test_gpu.py::test_")


def test_tests_are_run_each_in_a_process_of_its_own_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, ...]] = []
    tests = ["tests/a.py::one", "tests/a.py::two[x y]", "tests/a.py::three", "tests/a.py::four"]

    def ended(until: float, *arguments: str) -> gpu.Ended:
        if "--collect-only" in arguments:
            warning = "[W Context.cpp:1] at::globalContext() says something"
            return gpu.Ended(0, [warning, *tests, "4 tests collected"])
        ran.append(arguments[2:])
        test = arguments[-1]
        if "two" in test:
            return gpu.Ended(1, [f"{test} FAILED", "E  no", f"FAILED {test} - no"])
        if "four" in test:
            return gpu.Ended(-11, ["Fatal Python error: Segmentation fault"])
        return gpu.Ended(gpu.TIMED_OUT, []) if "three" in test else gpu.Ended(0, [f"{test} PASSED", "1 passed"])

    found: list[gpu.Finding] = []
    monkeypatch.setattr(gpu, "_pytest", ended)
    kit = gpu.Kit(torch.device("cuda"), TINY, time.monotonic() + 300, found.append)
    with pytest.raises(RuntimeError, match=r"^1 passed, 2 failed, 0 skipped, 1 cut short$"):
        gpu.run_tests(kit)
    assert sorted(ran) == sorted((test,) for test in tests)
    assert found[0]["failed"] == ["FAILED tests/a.py::two[x y] - no", "EXIT CODE -11 tests/a.py::four"]
    assert found[0]["cut_short"] == ["tests/a.py::three"]


@pytest.mark.slow
def test_a_section_that_takes_too_long_is_stopped_and_what_it_found_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    with pytest.raises(SystemExit):
        gpu.gpu(minutes=0.02, sections=("parity",), output=file)
    assert json.loads(file.read_text())["summary"][-1]["rows"][0][1] == "stopped: no time was left"


def test_what_there_is_no_time_for_is_said(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    with pytest.raises(SystemExit):
        gpu.gpu(minutes=0, sections=("steps", "parity"), output=file)
    rows = json.loads(file.read_text())["summary"][-1]["rows"]
    assert [row[:2] for row in rows] == [[name, "not run: no time was left"] for name in ("steps", "parity")]


def test_an_unknown_section_is_answered_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no such section: parities; there are tests, .*parity"):
        gpu.gpu(sections=("parities",), output=tmp_path / "result.json")
    assert not list(tmp_path.iterdir())

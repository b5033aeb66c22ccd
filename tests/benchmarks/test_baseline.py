"""Cases of other checkouts, in processes of their own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from benchmarks import case_server, checkout, result, runner
from benchmarks.baseline import ServedCase, against
from benchmarks.environment import environment
from benchmarks.update import update

ENVIRONMENT = """
import os
print("noise on the standard output")
def _actions(task, num_envs):
    return [task, num_envs]
def _saltus(task, num_envs, threads, actions):
    assert actions == [task, num_envs]
    if task == "missing":
        raise ValueError("no such task")
    def step():
        if task == "dies":
            os._exit(3)
        return num_envs
    return step
"""
SETTINGS = {"benchmark": "environment", "task": "task", "num_envs": 7, "threads": 1}


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A checkout that has only the parts that `case_server` uses, and a stand-in for torch."""
    for package in ("benchmarks", "envs", "pipeline"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / "benchmarks" / "environment.py").write_text(ENVIRONMENT)
    (tmp_path / "torch.py").write_text("def set_num_threads(number): pass")  # torch takes seconds to import
    return tmp_path


def test_served_case_times_its_turns_and_its_process_ends_with_it(other: Path) -> None:
    case = ServedCase(other, SETTINGS)
    assert case() == 7
    units, seconds = case.turn(0.02)
    assert units % 7 == 0
    assert units > 7
    assert 0.02 <= seconds < 1
    measured = runner.measure({"served": case}, repeats=1, seconds=0.02, warmup_calls=1, clock=lambda: 0.0)
    assert measured["served"][0] > 0, "timed by this process"
    pid = case.pid
    os.kill(pid, 0)
    del case
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(("task", "code"), [("missing", 1), ("dies", 3)])
def test_served_case_that_fails_raises(other: Path, task: str, code: int) -> None:
    with pytest.raises(RuntimeError, match=f"the process of the case ended with exit code {code}"):
        ServedCase(other, SETTINGS | {"task": task})()


def test_packages_of_another_checkout_are_refused(
    other: Path, tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(RuntimeError):
        ServedCase(empty, SETTINGS)
    assert "benchmarks" in capfd.readouterr().err


def test_cases_of_two_checkouts_are_named(other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(other.parent))
    assert against("saltus", None, SETTINGS) == {}
    assert list(against("saltus", other, SETTINGS)) == ["saltus", "saltus at an unknown commit"]
    monkeypatch.setattr(checkout, "commit", lambda folder: f"{'0123456789' * 4}-dirty")
    assert list(against("saltus", other, SETTINGS)) == ["saltus", "saltus at 0123456789-dirty"]


@pytest.mark.slow
def test_environment_is_compared_with_a_baseline(tmp_path: Path) -> None:
    file = tmp_path / "environment.jsonl"
    environment(
        ("Hopper-v5",), num_envs=2, num_threads=1, repeats=2, seconds=0.01, warmup_steps=1, baseline=checkout.ROOT,
        output=file,
    )  # fmt: skip
    found = result.read(file)
    commit = checkout.commit()
    baseline = f"saltus at {checkout.label(commit)}"
    assert found.settings["baseline"] == commit
    assert [row["case"] for row in found.measurements][:2] == ["saltus", baseline]
    assert [len(row["rates"]) for row in found.measurements[:2]] == [2, 2]


def test_server_builds_updates() -> None:
    settings = {
        "benchmark": "update", "case": "saltus sac, not compiled", "task": "InvertedPendulum-v5", "buffer_size": 500,
        "updates": 2, "device": "cpu", "threads": torch.get_num_threads(),
    }  # fmt: skip
    units, seconds = case_server.turn(case_server.build(settings), 0.0)
    assert (units, seconds > 0) == (2, True)


def test_baseline_of_another_librarys_case_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="a baseline is measured with the first case, which is 'SBX'"):
        update(cases=("SBX", "saltus sac"), baseline=tmp_path, output=tmp_path / "result.jsonl")

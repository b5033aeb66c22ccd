"""The benchmarks that train: measurements of runs, failed runs, runs that do not stop."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_campaign import Fake

from benchmarks import result, training_run
from benchmarks.memory import memory
from benchmarks.training import tables, training
from benchmarks.training_run import train_for

SMALL = ("--no-compile", "--preset", "sac", "--learning-starts", "40", "--batch-size", "16", "--eval-episodes", "2")


def content_of(file: Path) -> dict[str, Any]:
    """Measurements and tables of a result file."""
    found = result.read(file)
    return {"measurements": found.measurements, "summary": [vars(table) for table in tables(found)]}


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process", "forked_runs")
def test_time_to_a_return_is_that_of_the_first_evaluation_to_reach_it(tmp_path: Path) -> None:
    file = tmp_path / "result.jsonl"
    options = (*SMALL, "--total-env-steps", "100", "--eval-every", "50")
    training(("InvertedPendulum-v5",), options, seeds=(1,), threshold=(1,), episodes=3, output=file)
    content = content_of(file)
    (one,) = content["measurements"]
    assert (one["exit_code"], one["seed"]) == (0, 1)
    assert one["curve"]["env_steps"] == [50, 100]
    first, second = one["curve"]["wall_seconds"]
    assert 0 < first < second < one["seconds"]
    _, best = max(zip(one["curve"]["return"], one["curve"]["env_steps"], strict=True))
    assert [one[name]["env_steps"] for name in ("best", "last")] == [best, 100]
    assert [set(one[name]) for name in ("best", "last")] == [{"env_steps", "mean", "interval_95"}] * 2
    row, medians = content["summary"][0]["rows"]
    assert row[-1] == medians[-1] == first
    assert (row[:2], medians[:2]) == (["saltus", "1"], ["saltus", "median"])
    assert one["output"] == []
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in json.dumps(content["measurements"])


@pytest.mark.slow
@pytest.mark.parametrize(("library", "module"), [("stable-baselines3", "stable_baselines3"), ("sbx", "sbx")])
def test_peer_trains_until_its_time_limit_and_is_evaluated(
    library: training_run.System, module: str, tmp_path: Path
) -> None:
    pytest.importorskip(module)
    file = tmp_path / "result.jsonl"
    peers = (library,)
    training(("InvertedPendulum-v5",), systems=peers, seeds=(1,), minutes=0.2, episodes=3, output=file)
    content = content_of(file)
    (peer,) = content["measurements"]
    assert (peer["system"], peer["exit_code"]) == (library, 0)
    assert peer["seconds"] >= 0.2 * 60
    assert [row[:2] for row in content["summary"][0]["rows"]] == [[*peers, "1"], [*peers, "median"]]
    assert peer["best"] is None
    assert peer["last"]["env_steps"] > 100
    assert str(tmp_path) not in json.dumps(content["measurements"])


def test_failed_run_and_unreached_return_are_reported(fake: Fake) -> None:
    fake.mark("crash-0")
    content = fake.run(seeds=(0,), threshold=(1,))
    (one,) = content["measurements"]
    assert (one["exit_code"], one["curve"], one["best"], one["last"]) == (1, {}, None, None)
    assert "the physics exploded" in " ".join(one["output"])
    row, medians = content["summary"][0]["rows"]
    assert (row[-1], medians[-1]) == ("not reached", "0 of 1 reached it")
    (failed,) = content["summary"][-1]["rows"]
    assert failed == ["InvertedPendulum-v5", "saltus", "0", "exit code 1: the physics exploded"]


def test_run_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ignores = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True); time.sleep(60)"
    )
    monkeypatch.setattr(training_run, "SALTUS", (sys.executable, "-c", ignores))
    exit_code, seconds, lines = train_for(1.0, [], tmp_path, grace=1.0)
    assert exit_code == -signal.SIGKILL
    assert 2 <= seconds < 30
    assert [line for _, line in lines] == ["here"]


@pytest.mark.slow
def test_memory_is_that_of_a_run_with_a_full_buffer(tmp_path: Path) -> None:
    file = tmp_path / "result.jsonl"
    memory((("InvertedPendulum-v5", 20_000),), vector_steps=3, compile=False, output=file)
    (one,) = result.read(file).measurements
    assert one["buffer_bytes"] == 20_000 * (4 * (4 + 1 + 4 + 1) + 3)
    assert one["buffer_bytes"] < one["peak_bytes"] < one["limit_bytes"]

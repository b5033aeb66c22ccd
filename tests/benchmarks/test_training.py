"""The benchmarks that train: what they measure of a run, and of a run that fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import memory as memory_benchmark
from benchmarks.memory import memory
from benchmarks.training import train_for, training

SMALL = ("--no-compile", "--preset", "sac", "--learning-starts", "40", "--batch-size", "16", "--eval-episodes", "2")


@pytest.mark.slow
def test_seconds_to_a_return_are_of_the_first_evaluation_that_has_it(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    options = (*SMALL, "--total-env-steps", "100", "--eval-every", "50")
    training("InvertedPendulum-v5", options, seeds=(0, 1), threshold=1, episodes=3, output=file)
    content = json.loads(file.read_text())
    for one in content["measurements"]:
        assert one["exit_code"] == 0
        assert [row["env_steps"] for row in one["curve"]] == [50, 100]
        first, second = (row["wall_seconds"] for row in one["curve"])
        assert 0 < first < second < one["seconds"]
        assert (one["final"]["env_steps"], len(one["final"]["returns"])) == (100, 3)
    *rows, medians = content["summary"][0]["rows"]
    assert [row[-1] for row in rows] == [one["curve"][0]["wall_seconds"] for one in content["measurements"]]
    assert medians[0] == "median"
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in json.dumps(content["measurements"])


@pytest.mark.slow
def test_a_run_that_fails_and_a_return_that_is_not_reached_are_said(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    training("InvertedPendulum-v5", (*SMALL, "--critic-lr", "-1"), seeds=(0,), threshold=1, output=file)
    content = json.loads(file.read_text())
    (one,) = content["measurements"]
    assert (one["exit_code"], one["curve"], one["final"]) == (1, [], None)
    assert "critic_lr is -1" in " ".join(line for _, line in one["output"])
    row, medians = content["summary"][0]["rows"]
    assert (row[-1], medians[-1]) == ("not reached", "0 of 1 reached it")


@pytest.mark.slow
def test_a_run_is_stopped_in_time_and_killed_if_it_does_not_stop(tmp_path: Path) -> None:
    arguments = ["InvertedPendulum-v5", *SMALL, "--total-env-steps", "100000000", "--run-dir", str(tmp_path / "run")]
    exit_code, seconds, lines = train_for(15, arguments, tmp_path)
    assert exit_code == 0
    assert seconds > 15
    assert "stopped by SIGTERM" in lines[-1][1]
    arguments[-1] = str(tmp_path / "other")
    exit_code, seconds, _ = train_for(0, arguments, tmp_path, grace=0.1)
    assert exit_code < 0


@pytest.mark.slow
def test_memory_is_that_of_a_run_with_a_full_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_benchmark, "VECTOR_STEPS", 3)
    file = tmp_path / "result.json"
    memory((("InvertedPendulum-v5", 20_000),), output=file)
    (one,) = json.loads(file.read_text())["measurements"]
    assert one["buffer_bytes"] == 20_000 * (4 * (4 + 1 + 4 + 1) + 3)
    assert one["buffer_bytes"] < one["peak_bytes"] < one["limit_bytes"]

"""Rates over the number of ranks: the rows that count, turns that are continued, the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import result, scaling


def _row(seconds: float, env_steps: float, gradient_steps: float, waiting: float | None = None) -> dict[str, float]:
    row = {"seconds": seconds, "env_steps": env_steps, "gradient_steps": gradient_steps}
    return row if waiting is None else {**row, "rank_waiting": waiting}


def test_only_the_second_half_of_a_run_counts() -> None:
    rows = [_row(1, 1000, 0, 0.9), _row(5, 2000, 60, 0.9), _row(8, 5000, 240, 0.2), _row(10, 7000, 360, 0.4)]
    assert scaling.rates_of_second_half(rows) == {
        "env_steps": 1000,
        "gradient_steps": 60,
        "waiting": pytest.approx(0.3),
    }
    with pytest.raises(ValueError, match="fewer than two rows of metrics: give more --minutes"):
        scaling.rates_of_second_half([_row(1, 1000, 0), _row(9, 2000, 60)])


def test_turns_alternate_and_a_second_command_does_those_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[int, list[str]]] = []

    def train(task: str, ranks: int, arguments: list[str]) -> dict[str, float]:
        done.append((ranks, arguments))
        if len(done) == 2:
            raise RuntimeError("exit code 1: rank 1 ended")
        return {"env_steps": 1000.0 * ranks, "gradient_steps": 50.0 * len(done), "waiting": 0.25}

    monkeypatch.setattr(scaling, "_train", train)
    arguments = {"ranks": (1, 2), "per_rank": True, "minutes": 0.1, "repeats": 2, "output": tmp_path / "scaling.jsonl"}
    scaling.scaling(("Hopper-v5",), ("--no-compile",), **arguments)
    assert [ranks for ranks, _ in done] == [1, 2, 1]
    assert done[1][1] == ["--num-envs", "256", "--batch-size", "512", "--minutes", "0.1", "--no-compile"]
    (table,) = scaling.tables(result.read(tmp_path / "scaling.jsonl"))
    assert table.rows[1] == [2, "failed: RuntimeError: exit code 1: rank 1 ended", *[None] * 5]
    scaling.scaling(("Hopper-v5",), ("--no-compile",), **arguments)
    assert [ranks for ranks, _ in done[3:]] == [2, 2]
    (table,) = scaling.tables(result.read(tmp_path / "scaling.jsonl"))
    assert table.title == "Hopper-v5, 128 worlds and batch 256 for each rank"
    assert table.rows == [
        [1, 1000.0, "1,000 to 1,000", 100.0, "50 to 150", None, None],
        [2, 2000.0, "2,000 to 2,000", 225.0, "200 to 250", 2.0, "25%"],
    ]


def test_several_ranks_start_by_torchrun_and_one_does_not() -> None:
    assert scaling.command(1, "train", "Hopper-v5")[1:] == ["-m", "saltus", "train", "Hopper-v5"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", "-m", "saltus", "train"]
    assert scaling.command(4, "train", "Hopper-v5")[1:-1] == torchrun

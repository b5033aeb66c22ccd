"""Two result files, case by case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare import FASTER, SAME, SLOWER, compare, comparison
from benchmarks.result import RESULTS, Result, read, write
from saltus.errors import SaltusError

pytest.importorskip("scipy")


def rates(name: str, **cases: list[float]) -> Result:
    rows: list[dict[str, Any]] = [{"task": "T", "case": case, "rates": values} for case, values in cases.items()]
    return Result("update", "c", "d", None, {"cpu": "x", "cores": 1}, {}, {}, rows, Path(name))


def test_a_case_has_changed_if_its_turns_do_not_overlap() -> None:
    before = rates("a", slow=[10, 11, 12], fast=[10, 11, 12], noisy=[10, 20, 30], close=[100, 100, 100], gone=[1.0])
    after = rates("b", slow=[5, 6, 7], fast=[20, 22, 24], noisy=[5, 10, 15], close=[98, 98, 98], new=[1.0])
    table = comparison(before, after)
    assert [(row[0], row[3], row[-1]) for row in table.rows] == [
        ("T, slow", pytest.approx(6 / 11), SLOWER),
        ("T, fast", 2.0, FASTER),
        ("T, noisy", 0.5, SAME),
        ("T, close", 0.98, SAME),
    ]


def test_a_case_that_fails_in_the_second_result_is_slower() -> None:
    before, after = rates("a", one=[10.0], two=[10.0]), rates("b", one=[10.0], two=[10.0])
    after.measurements[1] = {"task": "T", "case": "two", "error": "it crashed"}
    assert [(row[0], row[2], row[-1]) for row in comparison(before, after).rows] == [
        ("T, one", 10.0, SAME),
        ("T, two", "failed or missing", SLOWER),
    ]


def test_training_of_which_more_runs_fail_is_slower() -> None:
    found = read(RESULTS / "training-Hopper-v5-check-cpu1.jsonl")
    runs = [row | {"exit_code": 1} if row["seed"] == 220 else row for row in found.measurements]
    rows = comparison(found, Result(**{**vars(found), "measurements": runs})).rows
    assert [row[1:] for row in rows if "did not fail" in str(row[0])] == [["100%", "90%", SLOWER]]


def test_training_is_compared_by_its_intervals() -> None:
    found = read(RESULTS / "training-Hopper-v5-check-cpu1.jsonl")
    same = comparison(found, found)
    assert [row[-1] for row in same.rows] == [None, None, SAME, SAME]
    worse = [row | {"best": row["best"] | {"mean": row["best"]["mean"] / 2}} for row in found.measurements]
    changed = Result(**{**vars(found), "measurements": worse})
    assert [row[-1] for row in comparison(found, changed).rows] == [None, None, SLOWER, SAME]
    assert [row[-1] for row in comparison(changed, found).rows] == [None, None, FASTER, SAME]


def test_results_that_cannot_be_compared_are_refused() -> None:
    training, memory = (read(RESULTS / f"{name}.jsonl") for name in ("training-Hopper-v5-check-cpu1", "memory-cpu2"))
    with pytest.raises(SaltusError, match=r"is a result of training, and .* of memory: name two of the same"):
        comparison(training, memory)
    with pytest.raises(SaltusError, match="results of memory cannot be compared: name two of environment, update or"):
        comparison(memory, memory)
    with pytest.raises(SaltusError, match="a and b have no case in common"):
        comparison(rates("a", one=[1.0]), rates("b", two=[1.0]))


def test_slower_cases_end_with_exit_code_1_and_other_hardware_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write(a, "update", {}, rates("a", one=[10.0, 11.0]).measurements)
    write(b, "update", {}, rates("b", one=[5.0, 6.0]).measurements)
    other = tmp_path / "other.jsonl"
    write(other, "update", {"batch_size": 512}, rates("c", one=[10.0, 11.0]).measurements)
    compare(a, a)
    assert "WARNING" not in capsys.readouterr().out
    compare(a, other)
    assert "WARNING: the settings differ: batch_size 512 instead of None" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"^slower or worse: T, one$"):
        compare(a, b)
    b.write_text(b.read_text().replace('"cores":', '"cores":9', 1))
    compare(b, a)
    assert "WARNING: the hardware differs" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"none.jsonl does not exist"):
        compare(a, tmp_path / "none.jsonl")

"""Result files: written compactly, read back, refused if they have another format or are damaged."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import result
from benchmarks.hardware import machine
from benchmarks.result import FORMAT, Result, read, read_all, write
from saltus.errors import SaltusError

ROWS: list[dict[str, Any]] = [
    {"case": "a", "rates": [1.23456789, 2.0]},
    {"case": "b", "curve": {"env_steps": [50048.0], "return": [-0.5]}},
]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "memory", "--output", "a b"])
    path = tmp_path / "result.jsonl"
    write(path, "measured", {"seconds": 1.5, "tasks": ("x",)}, ROWS)
    return path


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_a_file_is_read_as_it_was_written(file: Path) -> None:
    found = read(file)
    assert (found.benchmark, found.path, found.commit) == ("measured", file, result.COMMIT)
    assert found.command == "python -m benchmarks memory --output 'a b'"
    assert found.settings == {"seconds": 1.5, "tasks": ["x"]}
    assert found.hardware["cores"] >= 1
    assert found.machine.endswith(" cores")
    assert {"saltus", "torch", "mujoco"} < set(found.versions)
    assert found.measurements == [
        {"case": "a", "rates": [1.23457, 2]},
        {"case": "b", "curve": {"env_steps": [50048], "return": [-0.5]}},
    ]
    assert read_all(file.parent) == [found]


def test_a_file_has_a_header_and_a_line_per_measurement(file: Path) -> None:
    header, *rows = lines(file)
    assert header.startswith(f'{{"format":"{FORMAT}","benchmark":"measured","command":')
    assert rows == ['{"case":"a","rates":[1.23457,2]}', '{"case":"b","curve":{"env_steps":[50048],"return":[-0.5]}}']
    names = {"format", "benchmark", "command", "date", "commit", "hardware", "versions", "settings"}
    assert set(json.loads(header)) == names
    assert "not installed" not in header


def test_every_committed_result_can_be_read() -> None:
    results = read_all()
    assert results
    assert {one.path.suffix for one in results} == {result.SUFFIX}
    assert len({one.path.stem for one in results}) == len(results)


def refused(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SaltusError) as caught:
        read(path)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    return str(caught.value).replace(str(path), "FILE")


OLD: dict[str, Any] = {"command": "python -m benchmarks memory", "date": "2026", "measurements": [], "summary": []}


def test_a_file_of_an_older_saltus_is_refused_with_the_command_that_makes_it_anew(file: Path) -> None:
    message = (
        "FILE was written by saltus 0.3.0 or older, and this saltus reads the format 'saltus benchmark 1' only. "
        "To measure anew, run: python -m benchmarks memory"
    )
    assert refused(file, json.dumps(OLD, indent=1)) == message
    assert refused(file, json.dumps(OLD)) == message


def test_a_file_of_another_format_is_refused(file: Path) -> None:
    header = json.loads(lines(file)[0])
    assert refused(file, json.dumps(header | {"format": "saltus benchmark 2"}) + "\n") == (
        "FILE has the format 'saltus benchmark 2', and this saltus reads 'saltus benchmark 1' only. "
        "To measure anew, run: python -m benchmarks memory --output 'a b'"
    )
    no_result = "FILE is no result file: its first line is not a header with the format 'saltus benchmark 1'"
    for content in ("", "\n", "{", "[]", "null", "env_steps,return\n1,2\n", '{"a":1}\n'):
        assert refused(file, content) == no_result
    assert refused(file, b"\xff\xfe\x00") == "FILE is no result file: it is not text"


def test_a_damaged_file_is_refused_with_its_line(file: Path) -> None:
    header, first, second = lines(file)
    again = "To measure anew, run: python -m benchmarks memory --output 'a b'"
    assert refused(file, f"{header}\n{first}\n{second[:9]}\n") == (
        f"FILE is damaged: line 3 is no measurement, which is a JSON object. {again}"
    )
    assert refused(file, f"{header}\n[1]\n{second}\n").startswith("FILE is damaged: line 2 is no measurement")
    assert refused(file, f"{header}\n{first}\n{second}") == f"FILE is damaged: its last line, 3, has no end. {again}"
    assert refused(file, header) == f"FILE is damaged: its last line, 1, has no end. {again}"
    rates = header.replace('"benchmark":"measured"', '"benchmark":"update"')
    assert refused(file, f"{rates}\n{first}\n") == f"FILE is damaged: line 2 is a measurement without task. {again}"
    broken = json.dumps(json.loads(header) | {"settings": [], "date": 1})
    assert refused(file, f"{broken}\n") == "FILE is damaged: its header, line 1, has no valid date, settings"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SaltusError, match=r"none.jsonl does not exist: name a result file, such as one of "):
        read(tmp_path / "none.jsonl")
    with pytest.raises(SaltusError, match=r"cannot be read: Is a directory"):
        read(tmp_path)


def test_a_file_is_written_whole_or_not_at_all(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(TypeError):
        write(file, "measured", {}, [{"case": object()}])
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["result.jsonl"]


def test_numbers_keep_six_digits_and_whole_numbers_all() -> None:
    values = {"a": 1 / 3, "b": 50_000_128.0, "c": 1234567.89, "d": 1e-9 / 3, "e": 12_345_678, "f": True, "g": None}
    assert result.encode(values) == (
        '{"a":0.333333,"b":50000128,"c":1234570,"d":3.33333e-10,"e":12345678,"f":true,"g":null}'
    )


def test_a_machine_is_named_by_its_gpu_or_its_processor() -> None:
    assert machine({"cpu": "AMD EPYC", "cpu_family_and_model": "25, 17", "cores": 2}) == "AMD EPYC 25/17, 2 cores"
    assert machine({"cpu": "AMD EPYC", "cores": 2}) == "AMD EPYC, 2 cores"
    assert machine({"gpu": "NVIDIA H100, 85 GB", "cpu": "Intel", "cores": 16}) == "NVIDIA H100, 16 CPU cores"


def test_commits_are_shown_in_short_form() -> None:
    def labelled(commit: str | None) -> str:
        return Result("b", "c", "d", commit, {}, {}, {}, [], Path("p")).commit_label

    assert labelled(None) == "not recorded"
    assert labelled("019ba7232bbc821f951f91e485ae6f897b47ca6b") == "019ba7232b"
    assert labelled("019ba7232bbc821f951f91e485ae6f897b47ca6b-dirty") == "019ba7232b-dirty"
    both = "019ba7232bbc821f951f91e485ae6f897b47ca6b (warp: 741e41a6784bad0dfaf0d0c202af1eaf1ba53c43)"
    assert labelled(both) == "019ba7232b (warp: 741e41a678)", "the commit of a section that had another"


def test_only_named_results_of_the_same_benchmark_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "result.jsonl"
    assert result.replaceable(path, "gpu", named=False) == path
    result.write(path, "gpu", {}, [])
    assert result.replaceable(path, "gpu", named=True) == path
    with pytest.raises(SystemExit, match="exists: name it with --output to replace it"):
        result.replaceable(path, "gpu", named=False)
    with pytest.raises(SystemExit, match="is a result of gpu, not of recipes"):
        result.replaceable(path, "recipes", named=True)
    with pytest.raises(SystemExit, match=r"x.png: the name of a result file ends in .jsonl"):
        result.replaceable(tmp_path / "x.png", "gpu", named=True)

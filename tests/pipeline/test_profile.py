"""`saltus profile`: accounting, results, comparison, sweep, and refusals. Rates are never asserted."""

from __future__ import annotations

import io
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import Command
from pipeline_helpers import small_arguments, small_config
from rich.console import Console

from pipeline.profile import command as command_module
from pipeline.profile import roofs
from pipeline.profile.measure import Measurement, Step, measure
from pipeline.profile.options import warmup_rounds
from pipeline.profile.phases import PHASES
from pipeline.profile.report import report
from pipeline.profile.result import compare, load, summarize
from pipeline.profile.sweep import knee
from pipeline.profile.verdict import verdict
from pipeline.run import Run
from saltus.errors import SaltusError

TOO_LONG_TO_FINISH = {"total_env_steps": 10_000_000, "buffer_size": 10_000}


@pytest.fixture(autouse=True, scope="module")
def short_turns() -> Iterator[None]:
    """Measure each roof for as short as it can be: together they take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofs, "TURN", 0.0)
        yield


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Measurement, Path]:
    """A short profile of a task, without compilation, and its trace."""
    trace = tmp_path_factory.mktemp("profile") / "trace.json"
    config = small_config(**TOO_LONG_TO_FINISH)
    return measure(config, 0.5, Console(file=io.StringIO()), time.monotonic(), trace=trace), trace


def test_phases_sum_to_the_wall_clock(measured: tuple[Measurement, Path]):
    result = summarize(measured[0])
    assert result["accounted"] == pytest.approx(1, abs=0.03)
    assert sum(phase["share"] for phase in result["phases"].values()) == pytest.approx(1)
    assert (
        {"act", "physics", "task functions", "transition", "buffer write", "sample", "critic update"}
        <= {*result["phases"]}
        <= {*PHASES}
    )
    assert {"physics", "critic update", "sample", "buffer write"} <= {
        name for name, phase in result["phases"].items() if phase["roof"]
    }
    assert all(seconds >= 0 for seconds in result["cold_start"].values())
    config = measured[0].config
    expected = config.utd_ratio * config.num_envs * result["vector_steps"]
    assert result["updates"] == pytest.approx(expected)


def test_the_trace_has_the_phases_as_ranges(measured: tuple[Measurement, Path]):
    names = {event.get("name") for event in json.loads(measured[1].read_text())["traceEvents"]}
    assert {"act", "physics", "task functions", "critic update", "sample"} <= names


def test_result_survives_its_file(measured: tuple[Measurement, Path], tmp_path: Path):
    result = summarize(measured[0])
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert load(tmp_path / "result.json") == json.loads(json.dumps(result))
    console = Console(file=io.StringIO(), width=120)
    report(result, console)
    assert "physics" in console.file.getvalue()
    assert compare(result, result) == ([], False)


def constructed(
    physics: float, update: float, jitter: float = 0.001, engine: str = "cpu", **overrides: Any
) -> dict[str, Any]:
    """A result with phases of these seconds per vector step."""
    steps = [
        Step(block, {"physics": physics * (1 + jitter * block), "critic update": update, "rest": 0.0}, 1)
        for block in range(5)
    ]
    return summarize(Measurement(small_config(**overrides), "cpu", engine, steps=steps, wall_clock=1.0))


@pytest.mark.parametrize(
    ("physics", "update", "slower", "words"),
    [
        (1.0, 1.0, False, ()),
        (1.02, 1.0, False, ()),
        (1.5, 1.0, True, ("env steps per second: slower", "physics: slower")),
        (0.5, 1.0, False, ("env steps per second: faster", "physics: faster")),
        (0.5, 1.5, True, ("physics: faster", "critic update: slower")),
    ],
)
def test_compare_finds_changes_beyond_the_noise(physics: float, update: float, slower: bool, words: tuple[str, ...]):
    lines, found = compare(constructed(1, 1), constructed(physics, update))
    assert found == slower
    assert bool(lines) == bool(words)
    for word in words:
        assert any(word in line for line in lines)


def test_compare_ignores_changes_within_the_noise():
    assert compare(constructed(1, 1, jitter=0.2), constructed(1.2, 1, jitter=0.2)) == ([], False)


def test_compare_ignores_what_an_older_result_does_not_have():
    before, after = constructed(1, 1), constructed(1, 1)
    del before["machine"]["physics"]
    assert compare(before, after) == ([], False)


def test_compare_names_settings_that_differ():
    lines, _ = compare(constructed(1, 1), constructed(1, 1, num_envs=8))
    assert "settings differ: num_envs 4 -> 8" in lines


@pytest.mark.parametrize(
    ("physics", "update", "overrides", "words"),
    [
        (3, 1, {}, "Simulation bounds the run: 75%"),
        (1, 3, {"compile": True}, "The rest is memory-bound operations between the products: lower --utd-ratio"),
        (
            1,
            3,
            {},
            "The rest is Python, dispatch and memory-bound operations between the products: drop --no-compile",
        ),
    ],
)
def test_verdict_names_the_bound_and_an_option(physics: float, update: float, overrides: Any, words: str):
    assert words in verdict(constructed(physics, update, **overrides))[0]


def test_verdict_advises_for_the_engine():
    on_cpu, on_gpu = (verdict(constructed(3, 1, engine=engine))[0] for engine in ("cpu", "warp"))
    assert "Raise --num-threads if cores are idle" in on_cpu
    assert "Raise --num-envs: a step of Warp takes little longer for more worlds" in on_gpu
    assert "--num-threads" not in on_gpu


def test_roofs_record_products_with_the_precision_of_the_updates(tmp_path: Path):
    run = Run(small_config(matmul_dtype="bfloat16"), tmp_path)
    while run.env_steps < 64:
        run.buffer.extend(run.step(run.act()))
    products = [one for found in roofs._recorded_products(run).values() for one in found]
    assert {dtype for *_, dtype in products} == {torch.float32, torch.bfloat16}
    for name, found in roofs._recorded_products(run).items():
        results = roofs._products(found, run)()
        assert len(results) == len(found), name
        shapes = [(*left[:-1], right[-1]) for left, right, _ in found]
        assert [tuple(one.shape) for one in results.values()] == shapes


def test_verdict_predicts_rates():
    """A vector step of 4 worlds takes 2 s, half of it in the worlds."""
    lines = verdict(constructed(1, 1, jitter=0))
    assert any("--num-envs 8 --utd-ratio 0.125): about 3 env steps/s" in line for line in lines)
    many = constructed(1, 1, num_envs=1024, utd_ratio=2 / 1024, total_env_steps=10_000)
    assert any("--utd-ratio 0.0009765625)" in line for line in verdict(many))


def test_knee_is_the_first_value_near_the_best():
    assert knee([10, 50, 91, 100, 95]) == 2
    assert knee([100, 50]) == 0


ARGUMENTS = small_arguments(**TOO_LONG_TO_FINISH)


def test_profile_of_an_own_task_leaves_nothing_but_the_files_named(command: Command, swinger: str, tmp_path: Path):
    before = {*tmp_path.rglob("*")}
    outcome = command("profile", swinger, *ARGUMENTS, "--seconds", 0.3, "--json", "result.json")
    assert outcome.code == 0, outcome.text
    assert "task functions" in outcome.out
    assert "world-steps: 0 unstable" in outcome.text
    left = {path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts} - before
    assert left == {tmp_path / "result.json"}
    assert load(tmp_path / "result.json")["vector_steps"] > 0


def test_the_gate_exits_with_1_if_slower(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: tuple[Measurement, Path]
):
    """Against results that claim to be far faster, and far slower, than a measurement that all commands report."""
    monkeypatch.setattr("pipeline.profile.measure.measure", lambda *_, **__: measured[0])
    monkeypatch.chdir(tmp_path)
    result = "result.json"
    assert command("profile", measured[0].config.task, *ARGUMENTS, "--json", result).code == 0
    for factor, code in ((1000, 1), (0.001, 0)):
        content = json.loads(Path(result).read_text())
        content["block_rates"] = {
            name: [value * factor for value in values] for name, values in content["block_rates"].items()
        }
        for phase in content["phases"].values():
            phase["blocks"] = [value / factor for value in phase["blocks"]]
        Path("other.json").write_text(json.dumps(content))
        outcome = command("profile", measured[0].config.task, *ARGUMENTS, "--compare", "other.json")
        assert outcome.code == code, outcome.text
        assert ("slower than other.json" in outcome.out) == bool(code)


def test_sweep_writes_a_new_picture(command: Command, swinger: str, tmp_path: Path):
    (tmp_path / "profile-Swinger-num_envs.png").write_text("kept")
    options = ["--sweep", "num_envs=4,8", "--seconds", "0.2", "--json", "sweep.json"]
    outcome = command("profile", swinger, *ARGUMENTS, *options)
    assert outcome.code == 0, outcome.text
    assert "knee" in outcome.out
    assert (tmp_path / "profile-Swinger-num_envs.png").read_text() == "kept"
    assert (tmp_path / "profile-Swinger-num_envs-2.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "sweep.json").read_text())["values"] == ["4", "8"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seconds", "0"], "--seconds is 0; it must be above 0"),
        (["--seconds", "nan"], "--seconds is nan; it must be above 0"),
        (["--png", "a.png"], "--png has no effect here: it needs --sweep"),
        (["--sweep", "num_envs=4,8", "--trace", "t.json"], "--sweep measures several runs, and --trace takes one"),
        (["--sweep", "num_envs=4,8", "--run-dir", "r"], "--sweep measures several runs, and --run-dir takes one"),
        (["--sweep", "num_envs=4,8", "--compare", "c.json"], "--sweep measures several runs, and --compare takes one"),
        (["--sweep", "speed=4,8"], "'speed' is no option of `saltus train`; it has action_levels, actor_hidden, "),
        (["--sweep", "num_envs=4"], "give an option and several different values"),
        (["--sweep", "num_envs"], "give an option and several different values"),
        (["--sweep", "num_envs=4,7"], "--sweep num_envs=7: utd_ratio 0.25 gives 1.75 updates"),
        (["--json", "missing/a.json"], "--json missing/a.json: there is no directory missing"),
        (["--json", "mine"], "--json mine is a directory"),
        (["--json", "a.json", "--trace", "a.json"], "name the same file"),
        (["--json", "a.json", "--compare", "a.json"], "name the same file"),
        (["--compare", "missing.json"], "missing.json cannot be read: No such file or directory"),
        (["--compare", "damaged.json"], "damaged.json cannot be read: it is damaged, or no JSON object"),
        (["--compare", "partial.json"], "partial.json is damaged: parts of a profile are missing"),
        (["--compare", "other.json"], "other.json has format 'another', and this version reads 'saltus profile 1'"),
        (["--total-env-steps", "80"], f"a profile needs {warmup_rounds(small_config()) + 1}, of which the first"),
        (["--task.target", "far"], "far"),
    ],
)
def test_bad_options_get_one_message_before_anything_runs(
    command: Command,
    swinger: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
):
    monkeypatch.setattr(command_module, "_warm_start", lambda config: None)
    monkeypatch.setattr("pipeline.profile.measure.measure", lambda *args, **kwargs: pytest.fail("it ran"))
    (tmp_path / "damaged.json").write_text('{"format": "saltus prof')
    (tmp_path / "partial.json").write_text('{"format": "saltus profile 1", "task": "Swinger"}')
    (tmp_path / "other.json").write_text('{"format": "another"}')
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    outcome = command("profile", swinger, *ARGUMENTS, *options)
    assert outcome.code in (1, 2)
    assert message in outcome.text
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("task", ["Nothing-v5", "missing.py:Task"])
def test_a_task_that_does_not_load_is_refused(command: Command, task: str):
    outcome = command("profile", task, *ARGUMENTS)
    assert outcome.code == 1
    assert task.partition(":")[0] in outcome.text


def test_profiles_of_two_tasks_are_not_compared(command: Command, swinger: str, tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps(constructed(1, 1)))
    outcome = command("profile", swinger, *ARGUMENTS, "--compare", "a.json")
    assert outcome.code == 1
    assert "a.json is a profile of InvertedPendulum-v5" in outcome.text


def test_a_run_that_ends_within_the_measurement_is_reported():
    config = small_config(total_env_steps=400)
    result = summarize(measure(config, 60, Console(file=io.StringIO()), time.monotonic(), with_roofs=False))
    assert 0 < result["vector_steps"] * config.num_envs < 400
    assert verdict(result)


@pytest.mark.slow
def test_both_engines_have_the_same_phases():
    """Warp on the CPU; its roof leaves the run's states as they were."""
    pytest.importorskip("mujoco_warp")
    config = small_config(physics="warp", max_contacts=8, max_constraints=16, **TOO_LONG_TO_FINISH)
    result = summarize(measure(config, 0.5, Console(file=io.StringIO()), time.monotonic()))
    assert result["phases"]["physics"]["roof"] > 0
    assert result["cold_start"]["Warp's kernels"] > 0
    assert sum(result["failures"].values()) == 0


def test_the_directory_asked_for_is_kept(command: Command, swinger: str, tmp_path: Path):
    outcome = command("profile", swinger, *ARGUMENTS, "--seconds", 0.2, "--run-dir", "kept")
    assert outcome.code == 0, outcome.text
    assert (tmp_path / "kept" / "config.json").is_file()
    assert any((tmp_path / "kept" / "checkpoints").iterdir())


def test_a_signal_leaves_no_temporary_directory(
    command: Command, swinger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))

    def terminate_when_measuring(*_args: Any) -> list[Any]:
        assert [path.name[:15] for path in folder.iterdir()] == ["saltus_profile_"]
        os.kill(os.getpid(), signal.SIGTERM)
        return []

    monkeypatch.setattr("pipeline.profile.phases._methods", terminate_when_measuring)
    assert command("profile", swinger, *ARGUMENTS).code == 128 + signal.SIGTERM
    assert not [*folder.iterdir()]


def test_small_configuration_is_long_enough():
    with pytest.raises(SaltusError, match="raise total_env_steps"):
        command_module.require_rounds(small_config(total_env_steps=60))
    with pytest.raises(SaltusError, match=r"--minutes has no effect here: --seconds is the length"):
        command_module.require_rounds(small_config(minutes=5.0))

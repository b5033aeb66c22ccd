"""Campaigns of training runs: continued, with failures, over tasks and presets. Training is a fake."""

from __future__ import annotations

import os
import signal
from threading import Timer
from typing import Any

import pytest
from fake_campaign import Fake

from benchmarks import result
from benchmarks import training as command

pytest.importorskip("scipy")

TASK = "InvertedPendulum-v5"


def seeds_of(content: dict[str, Any]) -> list[int]:
    return [run["seed"] for run in content["measurements"]]


def test_interrupted_campaign_keeps_finished_runs_and_is_continued(fake: Fake) -> None:
    waits = fake.mark("wait-1")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def interrupt_when_waiting() -> None:
        timer = Timer(0.2, interrupt if list(fake.folder.glob("began-1-*")) else interrupt_when_waiting)
        timer.daemon = True
        timer.start()

    interrupt_when_waiting()
    try:
        with pytest.raises(SystemExit, match=r"interrupted: 1 of 3 runs done.*result.jsonl is up to date; the same"):
            fake.run()
    finally:
        signal.signal(signal.SIGINT, before)
    assert fake.began() == [0, 1]
    assert seeds_of(fake.content) == [0]
    (finished,) = fake.content["measurements"]

    waits.unlink()
    content = fake.run()
    assert fake.began() == [1, 2]
    assert seeds_of(content) == [0, 1, 2]
    assert content["measurements"][0] == finished
    assert fake.run()["measurements"] == content["measurements"], "nothing is left to do"
    assert fake.began() == []


def test_run_is_kept_if_the_interruption_comes_while_the_file_is_written(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = result.write, []

    def interrupted(*arguments: Any) -> result.Result:
        calls.append(arguments)
        if len(calls) == 2:  # the first call is that of the start
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(result, "write", interrupted)
    with pytest.raises(SystemExit, match=r"interrupted: 1 of 2 runs done"):
        fake.run(seeds=(0, 1))
    assert seeds_of(fake.content) == [0]


def test_crashed_run_is_reported_and_repeated_by_the_same_command(
    fake: Fake, capfd: pytest.CaptureFixture[str]
) -> None:
    crashes = fake.mark("crash-1")
    content = fake.run(cores_per_run=1, threshold=(5.0,))
    assert fake.began() == [0, 1, 2]
    assert seeds_of(content) == [0, 1, 2], "in the order of the seeds, not that in which they ended"
    assert [run["exit_code"] for run in content["measurements"]] == [0, 1, 0]
    failed = content["summary"][-1]
    assert failed["title"] == "Failed or not run"
    assert failed["rows"] == [["InvertedPendulum-v5", "saltus", "1", "exit code 1: the physics exploded"]]
    assert "3 of 3 runs done, 1 failed" in capfd.readouterr().out

    crashes.unlink()
    content = fake.run(cores_per_run=1, threshold=(5.0,))
    assert fake.began() == [1]
    assert [run["exit_code"] for run in content["measurements"]] == [0, 0, 0]
    assert "Failed or not run" not in [table["title"] for table in content["summary"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": (0,)}, "holds measurements that this command does not ask for (seed 1 instead of 0)"),
        ({"minutes": 3.0}, "holds measurements that this command does not ask for (minutes 10 instead of 3)"),
        ({"presets": ("sac",)}, "preset None instead of sac"),
        ({"options": ("--critic-lr", "0.01")}, "options [] instead of ['--critic-lr', '0.01']"),
    ],
)
def test_result_file_of_other_runs_is_refused_and_kept(fake: Fake, change: dict[str, Any], message: str) -> None:
    fake.run(seeds=(0, 1))
    before = fake.file.read_bytes()
    fake.began()
    with pytest.raises(SystemExit) as refused:
        fake.run(**{"seeds": (0, 1)} | change)
    assert message in str(refused.value)
    assert str(refused.value).endswith("name another file with --output, or move this one away")
    assert fake.file.read_bytes() == before
    assert fake.began() == []


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"measurements": 1}', "\xff"])
def test_result_file_of_another_format_is_refused_and_kept(fake: Fake, content: str) -> None:
    fake.file.write_text(content, encoding="latin-1")
    with pytest.raises(SystemExit, match=r"To keep the file, name another file with --output, or move this one away"):
        fake.run()
    assert fake.file.read_text(encoding="latin-1") == content
    assert fake.began() == []


def test_time_that_is_left_is_that_of_finished_runs_or_the_limit(fake: Fake, capfd: pytest.CaptureFixture[str]) -> None:
    fake.mark("crash-0")
    fake.run(seeds=(0, 1), minutes=3.0)
    lines = [line for line in capfd.readouterr().out.splitlines() if "runs done" in line]
    assert lines == [
        "0 of 2 runs done, about 6 min left",
        "1 of 2 runs done, 1 failed, about 3 min left",  # a run that crashed says nothing about the others
        "2 of 2 runs done, 1 failed",
    ]


def test_result_file_that_cannot_be_written_is_refused_before_the_first_run(fake: Fake) -> None:
    fake.file.write_text("")
    with pytest.raises(SystemExit, match=r"cannot be written \(.*\): name a file with --output"):
        fake.run(output=fake.file / "result.jsonl")
    assert fake.began() == []


def test_run_uses_as_many_threads_as_cores_whatever_the_environment_says(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    fake.mark("crash-0")  # a run that failed keeps its output
    (run,) = fake.run(seeds=(0,), cores_per_run=1)["measurements"]
    assert run["output"][0] == "cores 1, threads 1"


def test_system_that_is_not_installed_is_listed_with_its_command(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "is_installed", lambda name: name != "sbx")
    content = fake.run(systems=("saltus", "sbx"), seeds=(0,))
    assert [run["system"] for run in content["measurements"]] == ["saltus", "sbx"]
    reason = "not installed: pip install -c constraints.txt sbx-rl"
    assert content["summary"][-1]["rows"] == [[None, "sbx", None, reason]]
    with pytest.raises(SystemExit, match=r"nothing to train: sbx not installed \(pip install -c .* sbx-rl\)"):
        fake.run(systems=("sbx",))


def test_tasks_presets_and_systems_are_run_seed_by_seed_with_a_threshold_each(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "is_installed", lambda _: True)
    tasks, presets = ("InvertedPendulum-v5", "Hopper-v5"), ("sac", "crossq --critic-lr 1e-3")
    content = fake.run(
        tasks, systems=("saltus", "stable-baselines3"), presets=presets, seeds=(0, 1), minutes=1.0,
        threshold=(5.0, 100.0), floor=(1.0, 2.5),
    )  # fmt: skip
    kinds = [("saltus", "sac"), ("saltus", "crossq --critic-lr 1e-3"), ("stable-baselines3", None)]
    runs = [(run["seed"], run["task"], (run["system"], run["preset"])) for run in content["measurements"]]
    assert runs == [(seed, task, kind) for seed in (0, 1) for task in tasks for kind in kinds]
    titles = [table["title"].partition(",")[0] for table in content["summary"]]
    assert titles == ["InvertedPendulum-v5"] * 3 + ["Hopper-v5"] * 3, "each task has its tables, and no run failed"
    _, _, pendulum, _, _, hopper = content["summary"]
    systems = ["saltus sac", "saltus crossq --critic-lr 1e-3", "stable-baselines3"]
    assert [row[:2] for row in pendulum["rows"]] == [[system, "2 of 2"] for system in systems]
    assert [row[:2] for row in hopper["rows"]] == [[system, "0 of 2"] for system in systems]
    assert pendulum["title"].endswith("time to a mean return of 5")
    assert hopper["title"].endswith("time to a mean return of 100")
    assert [table["columns"][-1] for table in (pendulum, hopper)] == [
        "evaluations below 1 after it",
        "evaluations below 2.5 after it",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ()}, "nothing to train: name at least one task, one of --seeds and one of --systems"),
        ({"seeds": ()}, "nothing to train: name at least one task, one of --seeds and one of --systems"),
        ({"tasks": (TASK, TASK)}, "'InvertedPendulum-v5' is named twice: its runs would be the same"),
        ({"presets": ("sac", "sac")}, "'sac' is named twice"),
        ({"systems": ("sbx",), "options": ("--utd-ratio", "1")}, "--utd-ratio 1: options are for saltus, which is not"),
        ({"options": ("--minutes", "5")}, "--minutes of saltus train is set by the benchmark: use its own option"),
        ({"presets": ("sac --minutes 5",)}, "--minutes of saltus train is set by the benchmark: use its own option"),
        ({"systems": ("sbx",), "presets": ("sac",)}, "sac: --presets are for saltus, which is not among --systems"),
        (
            {"systems": ("saltus", "sbx"), "options": ("--total-env-steps", "100")},
            "--total-env-steps limits saltus alone: limit the other systems with --minutes",
        ),
        ({"minutes": 0.0}, "--minutes 0: give a number above 0"),
        ({"episodes": -1}, "--episodes -1: give a number above 0"),
        ({"options": ("--seed=1",)}, "--seed of saltus train is set by the benchmark: use its own option --seeds"),
        (
            {"options": ("--run-dir", "a")},
            "--run-dir of saltus train is set by the benchmark: use its own option --output",
        ),
        ({"presets": ("sac --seed 1",)}, "--seed of saltus train is set by the benchmark: use its own option --seeds"),
        (
            {"presets": ("sac",), "options": ("--preset", "fast")},
            "--preset contradicts --presets: name the presets once",
        ),
        ({"presets": ("sacc",)}, "'sacc' does not start with a preset: "),
        ({"floor": (1.0,)}, "--floor needs --threshold: it counts the evaluations after the threshold was reached"),
        ({"threshold": (1.0, 2.0)}, "--threshold has 2 values for 1 tasks: give one, or one a task"),
        (
            {"threshold": (1.0,), "floor": (1.0, 2.0, 3.0)},
            "--floor has 3 values for 1 tasks: give one, or one a task",
        ),
        ({"tasks": ("Hoper-v5",)}, "saltus: "),
        ({"options": ("--critic-lr", "-1")}, "saltus: critic_lr is -1"),
        ({"presets": ("sac --critic-lr -1",)}, "saltus: critic_lr is -1"),
    ],
)
def test_contradictory_settings_are_refused_before_the_first_run(
    fake: Fake, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SystemExit) as refused:
        fake.run(**settings)
    assert str(refused.value).startswith(message)
    assert not list(fake.folder.iterdir())

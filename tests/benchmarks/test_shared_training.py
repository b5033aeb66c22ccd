"""Training runs in a database that workers share: each is done once. Training is a fake."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from fake_campaign import Fake

from benchmarks import checkout, result, shared_training
from benchmarks import training as command
from benchmarks.installed import is_installed

pytest.importorskip("scipy")
optuna = pytest.importorskip("optuna")

from benchmarks.shared_cases import SharedCases  # noqa: E402

CASES = [f"case {number}" for number in range(8)]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'cases.db'}"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_training, "POLL", 0.05)


def work(url: str, log: Path) -> None:
    shared = SharedCases(url, "training", {}, CASES, lease=3)
    while shared.unfinished:
        if (case := shared.claim()) is None:
            time.sleep(0.1)
            continue
        _write(log, f"begins {case} {os.getpid()}")
        time.sleep(0.3)
        if shared.finish(case, {"worker": os.getpid()}):
            _write(log, f"ends {case} {os.getpid()}")


def _write(log: Path, line: str) -> None:
    with log.open("a") as file:
        file.write(f"{line}\n")


def test_four_workers_do_eight_cases_once_though_one_is_killed(url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    workers = [get_context("fork").Process(target=work, args=(url, log)) for _ in range(4)]
    for worker in workers:
        worker.start()
    while not (begun := log.read_text().splitlines()):
        time.sleep(0.01)
    killed = int(begun[0].split()[-1])
    os.kill(killed, signal.SIGKILL)
    for worker in workers:
        worker.join(60)
    assert sorted(worker.exitcode == 0 for worker in workers) == [False, True, True, True]
    lines = [line.rsplit(" ", 1) for line in log.read_text().splitlines()]
    assert Counter(what for what, _ in lines if what.startswith("ends")) == {f"ends {case}": 1 for case in CASES}
    assert Counter(what for what, _ in lines if what.startswith("begins")).total() == 9
    assert SharedCases(url, "training", {}, CASES, lease=3).rows().keys() == set(CASES)


@pytest.mark.slow
def test_four_workers_train_five_cases_once_though_one_is_killed(url: str, tmp_path: Path) -> None:
    workers = [sys.executable, str(Path(__file__).with_name("forked_workers.py")), str(tmp_path), url, "4"]
    done = subprocess.run(
        workers, env=checkout.environment(TMPDIR=str(tmp_path)), capture_output=True, text=True, check=False
    )
    logs = [(tmp_path / f"{index}.log").read_text() for index in range(4)]
    assert done.returncode == 0, "\n".join([done.stderr, *logs])
    results = [result.read(tmp_path / f"{index}.jsonl").measurements for index in (1, 2, 3)]
    assert results[0] == results[1] == results[2]
    assert [(run["seed"], run["exit_code"], run["curve"]["env_steps"]) for run in results[0]] == (
        [(seed, 0, [400, 800]) for seed in range(5)]
    )
    assert all(run["best"] and run["last"]["env_steps"] == 800 for run in results[0])
    (study,) = optuna.get_all_study_summaries(url)
    trials = optuna.load_study(study_name=study.study_name, storage=url).trials
    cases = [trial.user_attrs["case"] for trial in trials if trial.state.name == "COMPLETE"]
    assert len(cases) == len({*cases}) == 5
    assert not (tmp_path / "0.jsonl").exists()
    assert sum(trial.state.name == "FAIL" for trial in trials) >= 1  # the killed worker's


def test_worker_does_what_others_have_not_done(fake: Fake, url: str, tmp_path: Path) -> None:
    first = fake.run(storage=url, cores_per_run=1)
    assert fake.began() == [0, 1, 2]
    assert [run["seed"] for run in first["measurements"]] == [0, 1, 2]
    assert fake.run(storage=url, output=tmp_path / "other.jsonl", cores_per_run=1) == first
    assert fake.began() == []
    assert result.read(tmp_path / "other.jsonl").measurements == first["measurements"]


def test_crashed_run_is_reported_and_repeated_by_the_next_worker(fake: Fake, url: str) -> None:
    crashes = fake.mark("crash-1")
    content = fake.run(storage=url, cores_per_run=1)
    assert [run["exit_code"] for run in content["measurements"]] == [0, 1, 0]
    assert content["summary"][-1]["title"] == "Failed or not run"
    fake.began()
    crashes.unlink()
    content = fake.run(storage=url, cores_per_run=1)
    assert fake.began() == [1]
    assert [run["exit_code"] for run in content["measurements"]] == [0, 0, 0]


def test_interrupted_worker_gives_its_run_back(fake: Fake, url: str) -> None:
    waits = fake.mark("wait-0")

    def when_it_waits(then: Callable[[], Any]) -> None:
        timer = Timer(0.1, then if list(fake.folder.glob("began-0-*")) else lambda: when_it_waits(then))
        timer.daemon = True
        timer.start()

    when_it_waits(lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit, match=f"^interrupted: the runs of this worker are given back to {url}; the"):
            fake.run(storage=url, seeds=(0,))
    finally:
        signal.signal(signal.SIGINT, before)
    waits.unlink()
    fake.began()
    assert [run["exit_code"] for run in fake.run(storage=url, seeds=(0,))["measurements"]] == [0]
    assert fake.began() == [0]


def test_case_that_a_stopping_worker_has_not_given_back_yet_is_done(
    fake: Fake, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_without_giving_back(shared: SharedCases) -> int:
        monkeypatch.setattr(SharedCases, "unfinished", unfinished)
        shared.claim()
        monkeypatch.setattr(SharedCases, "_enqueue", lambda *_: None)
        shared.release()
        monkeypatch.setattr(SharedCases, "_enqueue", enqueue)
        return shared.unfinished

    unfinished, enqueue = SharedCases.unfinished, SharedCases._enqueue
    monkeypatch.setattr(SharedCases, "unfinished", property(fail_without_giving_back))
    assert [run["exit_code"] for run in fake.run(storage=url, seeds=(0,))["measurements"]] == [0]


def test_runs_of_several_machines_are_told_apart(fake: Fake, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fake.run(storage=url, seeds=(0, 1))
    monkeypatch.setattr(command, "hardware", lambda: {"cpu": "Another CPU", "cores": 64})
    assert fake.run(storage=url, seeds=(0, 1))["measurements"] == first["measurements"]
    shared = fake.content["measurements"]
    shared[0]["machine"] = "Another CPU, 64 cores"
    runs = [command.Trained.from_json(run) for run in shared]
    (table,) = command.machines_table(runs)
    assert [row[1] for row in table.rows] == [1, 1]
    assert command.machines_table(runs[1:]) == []


def test_storage_of_another_command_is_refused(fake: Fake, url: str) -> None:
    fake.run(storage=url, seeds=(0,))
    with pytest.raises(SystemExit) as refusal:
        fake.run(storage=url, seeds=(0, 1))
    start = f"--storage {url} holds the cases of another command (seeds [0] instead of [0, 1]; "
    assert str(refusal.value).startswith(start)
    assert str(refusal.value).endswith("give the same command to all workers, or another --storage")


def test_password_of_a_storage_is_shown_nowhere(fake: Fake, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "postgresql+nothing://user:s3cret@host/cases"
    with pytest.raises(SystemExit) as refusal:
        fake.run(storage=secret)
    assert str(refusal.value).startswith("--storage postgresql+nothing://user:***@host/cases cannot be used ")
    monkeypatch.setattr("sys.argv", ["benchmarks", "training", "--storage", secret])
    fake.run(storage=url, seeds=(0,))
    assert result.read(fake.file).command.endswith("training --storage postgresql+nothing://user:***@host/cases")
    assert "s3cret" not in fake.file.read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"storage": "nothing"}, "--storage nothing cannot be used "),
        (
            {"storage": "sqlite:////no/folder/cases.db"},
            "--storage sqlite:////no/folder/cases.db cannot be used ",
        ),
        ({"storage": "sqlite:///:memory:", "lease": 1}, "--lease 1: give at least 3 seconds"),
        ({"lease": 5}, "--lease 5 needs --storage: without it no other worker takes up a run"),
    ],
)
def test_bad_storage_is_refused(settings: dict[str, Any], message: str, fake: Fake) -> None:
    with pytest.raises(SystemExit) as refusal:
        fake.run(**settings)
    assert str(refusal.value).startswith(message)
    assert fake.began() == []
    assert not fake.file.exists()


def test_missing_package_is_named(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.installed.find_spec", lambda name: None if name == "optuna" else name)
    assert not is_installed("optuna")
    with pytest.raises(SystemExit, match=r"^--storage needs optuna: pip install -c constraints.txt optuna$"):
        fake.run(storage="sqlite:///cases.db")

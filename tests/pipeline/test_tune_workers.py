"""`saltus tune`: each trial is done once, whichever worker does it. Training is a fake."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import Command
from run_helpers import quiet_console, train_run

from pipeline import presets
from pipeline.policy import load_policy
from pipeline.tables import read_table

optuna = pytest.importorskip("optuna")
from pipeline.run_dir import locked  # noqa: E402
from pipeline.tune import command as tune_command  # noqa: E402
from pipeline.tune import plan, process, report, sweep, worker  # noqa: E402
from saltus.errors import SaltusError  # noqa: E402

TASK = "InvertedPendulum-v5"
COMMAND = process.COMMAND
FAKE = (sys.executable, "-S", str(Path(__file__).with_name("fake_run.py")))
OPTIONS = ["--total-env-steps", "1200", "--eval-every", "300", "--num-envs", "1", "--utd-ratio", "1"]
OPTIONS += ["--learning-starts", "300", "--search", "actor-lr", "gamma=0.9,0.99"]


@pytest.fixture(autouse=True)
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder in which runs are fakes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAKE_FOLDER", str(tmp_path))
    monkeypatch.setattr(plan.Plan, "_code", lambda self: "the hash of all sources, which takes a while")
    monkeypatch.setattr(process, "COMMAND", FAKE)
    monkeypatch.setattr(process, "POLL", 0.05)
    monkeypatch.setattr(worker, "POLL", 0.05)
    return tmp_path


def began(folder: Path) -> Counter[str]:
    """How often runs began, by their directories' names."""
    return Counter(path.name.split("-", 1)[1].rsplit("-", 1)[0] for path in folder.glob("began-*"))


def studied(url: str = "sqlite:///runs/InvertedPendulum-v5-fast-tune/tune.db") -> list[Any]:
    """The trials in a database that ended, in the order of their numbers."""
    (study,) = optuna.get_all_study_summaries(url)
    trials = optuna.load_study(study_name=study.study_name, storage=url).trials
    return [trial for trial in trials if trial.state.name != "FAIL" or "error" in trial.user_attrs]


def test_sweep_reports_the_best_trial_and_is_continued(
    command: Command, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "FEWEST_FOR_IMPORTANCE", 3)
    outcome = command("tune", TASK, *OPTIONS, "--trials", "4")
    assert outcome.code == 0, outcome.text
    assert began(fake) == {f"trial-{number:04d}": 1 for number in range(4)}
    trials = studied()
    assert [trial.number for trial in trials] == [*range(4)]
    assert trials[0].params == {"actor-lr": 1e-3, "gamma": 0.99}  # the preset itself
    best = max((trial for trial in trials if trial.state.name == "COMPLETE"), key=lambda trial: trial.value)
    assert best.value == pytest.approx(1000 * best.params["actor-lr"], rel=1e-2)
    assert f"saltus train {TASK} --preset fast --total-env-steps 1200 " in outcome.text
    assert f"--actor-lr {best.value / 1000:.6g} --gamma {best.params['gamma']} --seed 1" in outcome.text
    comparison = f"python -m benchmarks training {TASK} --presets fast 'fast --actor-lr "
    assert (comparison in outcome.text) == (best.number > 0)
    assert "importance" in outcome.text
    assert "warning: evaluations in the last third of a run: 2; lower --eval-every " in outcome.text
    assert (fake / "runs/InvertedPendulum-v5-fast-tune/tune.png").stat().st_size > 10_000
    again = command("tune", TASK, *OPTIONS, "--trials", "5")
    assert again.code == 0, again.text
    assert began(fake) == {f"trial-{number:04d}": 1 for number in range(5)}


def test_limit_of_the_comparison_is_an_option_of_the_benchmark() -> None:
    found = tune_command.parse_plan([TASK, "--minutes=10", "--no_compile"])
    command = report._comparison(found, {"gamma": 0.9}, 3)
    start = f"python -m benchmarks training {TASK} --presets fast 'fast --gamma 0.9' "
    assert command == f"{start}--seeds 3-7 --minutes 10 -- --no-compile"


def test_trial_below_the_median_is_pruned_and_its_run_stopped(
    command: Command, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruner = optuna.pruners.MedianPruner
    monkeypatch.setattr(sweep, "MedianPruner", lambda n_startup_trials, n_warmup_steps: pruner(1, n_warmup_steps))
    (fake / "wait-trial-0001").touch()
    outcome = command("tune", TASK, *OPTIONS[:-2], "actor-lr=1e-4..1e-3", "--trials", "2")
    assert outcome.code == 0, outcome.text
    best, pruned = studied()
    assert (best.state.name, pruned.state.name) == ("COMPLETE", "PRUNED")
    assert pruned.value == pruned.intermediate_values[600] < best.value
    assert max(pruned.intermediate_values) == 600  # 300 is in the first third, in which no trial is pruned
    assert "trial 1: pruned at 600 env steps" in outcome.text


def test_failed_trial_counts_and_says_why(command: Command, fake: Path) -> None:
    (fake / "fail-trial-0001").touch()
    outcome = command("tune", TASK, *OPTIONS, "--trials", "3")
    assert outcome.code == 0, outcome.text
    assert began(fake) == {"trial-0000": 1, "trial-0001": 1, "trial-0002": 1}
    reason = "alpha is inf at gradient step 7: learning has diverged"
    assert f"trial 1: failed: {reason} (2 of 3 done" in outcome.text
    assert f"1 of 3 trials failed: {reason}" in outcome.text
    (fake / "fail-trial-0000").touch()
    outcome = command("tune", TASK, *OPTIONS, "--trials", "1", "--run-dir", "other")
    assert outcome.code == 1
    assert "no trial is complete" in outcome.text


def test_score_of_several_seeds_is_their_mean(command: Command, fake: Path) -> None:
    outcome = command("tune", TASK, *OPTIONS, "--trials", "1", "--seeds-per-trial", "2", "--seed", "5")
    assert began(fake) == {"trial-0000-s5": 1, "trial-0000-s6": 1}
    assert "trial 0, run 2 of 2: return 1 at 300 env steps" in outcome.text
    assert studied()[0].value == 1
    assert [*studied()[0].intermediate_values] == [300, 600, 900, 1500, 1800, 2100]
    assert "--seed 7" in outcome.text


def interrupt_tune(command: Command, ready: Callable[[], Any]) -> str:
    """Run a sweep of three trials and interrupt it; return its messages."""

    def interrupt() -> None:
        while not ready():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return command("tune", TASK, *OPTIONS, "--trials", "3").err
    finally:
        signal.signal(signal.SIGINT, before)


def test_interrupted_worker_gives_its_trial_back_with_its_options(command: Command, fake: Path) -> None:
    waits = fake / "wait-trial-0001"
    waits.touch()
    errors = interrupt_tune(command, lambda: [*fake.glob("began-trial-0001-*")])
    assert "interrupted: the trial of this worker is given back to sqlite:///runs/" in errors
    (given_back,) = (trial for trial in studied() if trial.state.name == "WAITING")
    waits.unlink()
    assert command("tune", TASK, *OPTIONS, "--trials", "1").code == 0  # leaves the trial for a larger sweep
    assert began(fake) == {"trial-0000": 1, "trial-0001": 1}
    outcome = command("tune", TASK, *OPTIONS, "--trials", "3")
    assert outcome.code == 0
    assert "trial 1 again, which was given back (there will be no trial 2): actor-lr" in outcome.text
    assert re.search(r"trial 3: return \S+ at 300 env steps trial 3: return \S+ at 600 env steps", outcome.text)
    assert began(fake) == {"trial-0000": 1, "trial-0001": 1, "trial-0001-2": 1, "trial-0003": 1}
    (done,) = (trial for trial in studied() if trial.number == given_back.number)
    assert (done.state.name, done.params) == ("COMPLETE", given_back.params)
    assert len(studied()) == 3


@pytest.mark.parametrize("damaged", [False, True])
def test_trial_that_was_given_back_is_resumed_or_begins_anew(
    damaged: bool, command: Command, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "can_resume", lambda run_dir, config: (run_dir / "checkpoint").exists())
    (fake / "wait-trial-0001").touch()
    evaluations = fake / "runs/InvertedPendulum-v5-fast-tune/trial-0001/evaluations.csv"
    interrupt_tune(command, evaluations.exists)
    if damaged:
        (fake / "damaged").touch()
    assert command("tune", TASK, *OPTIONS, "--trials", "2").code == 0
    assert (fake / "resumed-trial-0001").exists()
    again = {"trial-0001-2": 1} if damaged else {}
    assert began(fake) == {"trial-0000": 1, "trial-0001": 1, **again}
    assert [trial.state.name for trial in studied()] == ["COMPLETE", "COMPLETE"]


def test_worker_on_a_broken_machine_stops_and_gives_its_trials_back(command: Command, fake: Path) -> None:
    broken = fake / "broken"
    broken.touch()
    outcome = command("tune", TASK, *OPTIONS, "--trials", "5")
    assert outcome.err == (
        "saltus: 3 trials in a row failed before their first evaluation, the last one with: no space left on device. "
        "They are given back to sqlite:///runs/InvertedPendulum-v5-fast-tune/tune.db. Does this machine have a full "
        "disk, no compiler or a broken GPU? The same command continues\n"
    )
    assert [trial.state.name for trial in studied()] == ["WAITING"] * 3
    broken.unlink()
    assert command("tune", TASK, *OPTIONS, "--trials", "3").code == 0
    assert began(fake) == {f"trial-{number:04d}": 1 for number in range(3)}
    assert "error" not in {name for trial in studied() for name in trial.user_attrs}


def test_a_few_trials_that_fail_at_once_are_failures(command: Command, fake: Path) -> None:
    (fake / "broken").touch()
    outcome = command("tune", TASK, *OPTIONS, "--trials", "2")
    assert outcome.code == 1
    assert "trial 1: failed: no space left on device (2 of 2 done)" in outcome.text


def test_options_that_do_not_work_together_are_drawn_anew(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    accepts, refused = plan.Plan.config_of, []

    def refuse_once(self: plan.Plan, options: Any) -> Any:
        if len(options) == 2 and not refused and options["actor_lr"] != 1e-3:
            refused.append(options)
            raise SaltusError("a reason")
        return accepts(self, options)

    monkeypatch.setattr(plan.Plan, "config_of", refuse_once)
    outcome = command("tune", TASK, *OPTIONS, "--trials", "2")
    assert " do not work together and are drawn anew: a reason" in outcome.text
    assert [trial.state.name for trial in studied()] == ["COMPLETE", "COMPLETE"]
    assert "failed" not in outcome.text


def work(log: Path) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        tune_command.tune([TASK, *OPTIONS, "--trials", "6", "--lease", "3"], quiet_console())


def test_two_workers_do_six_trials_once_though_one_is_killed(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "0.3")
    waits = fake / "wait-trial-0002"
    waits.touch()
    workers = [get_context("fork").Process(target=work, args=[fake / f"{name}.log"]) for name in "ab"]
    for one in workers:
        one.start()
    while not (found := [*fake.glob("began-trial-0002-*")]):
        time.sleep(0.02)
    run = int(found[0].name.rsplit("-", 1)[1])
    parent = int(Path(f"/proc/{run}/stat").read_text().rpartition(")")[2].split()[1])
    waits.unlink()
    for process_id in (parent, run):
        os.kill(process_id, signal.SIGKILL)
    for one in workers:
        one.join(60)
    assert sorted(one.exitcode == 0 for one in workers) == [False, True]
    trials = studied()
    assert len(trials) == 6
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    assert began(fake).total() == 7
    assert began(fake)["trial-0002-2"] == 1


def test_storage_of_another_sweep_is_refused(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = ["--storage", "sqlite:///tune.db"]
    assert command("tune", TASK, *OPTIONS, "--trials", "1", *storage).code == 0
    start = "saltus: --storage sqlite:///tune.db holds the trials of another command ("
    end = "): give the same command to all workers, or another --storage\n"
    for change, difference in (
        (["--search", "actor-lr"], "--search gamma 0.9, 0.99 instead of None"),
        (["--search", "actor-lr=1e-4..1", "gamma=0.9,0.99"], "--search actor-lr 0.0001..0.003 (log scale) instead of"),
        (["--tau", "0.1", "--preset", "sac"], "preset fast instead of sac; "),
        (["--batch-size", "64"], "batch-size 256 instead of 64"),
        (["--seeds-per-trial", "2"], "seeds-per-trial 1 instead of 2"),
    ):
        refused = command("tune", TASK, *OPTIONS, *change, *storage)
        assert refused.err.startswith(start)
        assert difference in refused.err
        assert refused.err.endswith(end)
    other = command("tune", "InvertedDoublePendulum-v5", *OPTIONS, *storage)
    assert other.err.startswith(f"{start}task {TASK} instead of InvertedDoublePendulum-v5")
    with monkeypatch.context() as patch:
        patch.setattr(plan.Plan, "_code", lambda self: "other")
        other = command("tune", TASK, *OPTIONS, *storage)
        assert other.err.startswith(f"{start}code ")
        assert other.err.endswith(f" instead of other{end}")
    with monkeypatch.context() as patch:
        patch.setattr(tune_command, "hash_model", lambda model: "other")
        assert "hash of the model " in command("tune", TASK, *OPTIONS, *storage).err
    same = command("tune", TASK, *OPTIONS, "--trials", "1", *storage, "--num-threads", "1", "--no-compile")
    assert same.code == 0, same.err  # what a machine decides may differ


@pytest.mark.parametrize(
    ("storage", "shown"),
    [
        ("nothing", "nothing"),
        ("sqlite:////no/folder/tune.db", "sqlite:////no/folder/tune.db"),
        ("postgresql+nothing://user:s3cret@host/tune", "postgresql+nothing://user:***@host/tune"),
        ("mysql+nothing://host/tune?password=s3cret&a=1", "mysql+nothing://host/tune?password=***&a=1"),
        ("postgresql://user:s3cret@host:port/tune", "postgresql://user:***@host:port/tune"),
    ],
)
def test_storage_that_cannot_be_used_is_refused_without_its_password(
    storage: str, shown: str, command: Command
) -> None:
    outcome = command("tune", TASK, *OPTIONS, "--storage", storage)
    assert outcome.err.startswith(f"saltus: --storage {shown} cannot be used (")
    assert outcome.err.endswith("): give the URL of a database, such as sqlite:///cases.db\n")
    assert "s3cret" not in outcome.out + outcome.err


@pytest.mark.slow
def test_trial_is_a_run_of_its_own(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "COMMAND", COMMAND)
    options = ["--total-env-steps", "400", "--eval-every", "100", "--num-envs", "4", "--utd-ratio", "0.25"]
    options += ["--learning-starts", "100", "--batch-size", "16", "--actor-hidden", "8", "--critic-hidden", "8"]
    options += ["--eval-episodes", "1", "--device", "cpu", "--no-compile", "--num-threads", "1"]
    outcome = command("tune", TASK, *options, "--search", "actor-lr", "--trials", "1", "--run-dir", "sweep")
    assert outcome.code == 0, outcome.text
    evaluations = read_table(Path("sweep/trial-0000/evaluations.csv"))
    (trial,) = studied("sqlite:///sweep/tune.db")
    assert trial.value == (evaluations[2]["return_mean"] + evaluations[3]["return_mean"]) / 2
    assert [*trial.intermediate_values] == [100, 200, 300]
    assert load_policy(Path("sweep/trial-0000"), "last").env_steps == 400


def test_storage_that_cannot_be_reached_any_more_is_named(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise optuna.exceptions.StorageInternalError("the server closed the connection")

    monkeypatch.setattr(sweep.Sweep, "claim", fail)
    outcome = command("tune", TASK, *OPTIONS, "--storage", "sqlite:///tune.db")
    assert outcome.err == (
        "saltus: --storage sqlite:///tune.db cannot be reached any more (the server closed the connection): the same "
        "command continues\n"
    )


def test_run_of_the_same_configuration_is_resumed_unless_it_is_in_use(tmp_path: Path) -> None:
    options = {"device": "cpu", "compile": False, "total_env_steps": 60, "learning_starts": 20, "batch_size": 8}
    options |= {"actor_hidden": (8,), "critic_hidden": (8,), "eval_episodes": 1, "eval_every": 60, "num_envs": 4}
    config = presets.preset("fast", task=TASK, utd_ratio=0.25, **options)
    run_dir = tmp_path / "run"
    assert not process.can_resume(run_dir, config)
    train_run(config, run_dir)
    assert process.can_resume(run_dir, config)
    assert not process.can_resume(run_dir, presets.preset("fast", task=TASK, utd_ratio=0.25, seed=1, **options))
    with locked(run_dir):
        assert not process.can_resume(run_dir, config)

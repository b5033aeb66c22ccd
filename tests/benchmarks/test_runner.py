"""The runner's turns and statistics; benchmarks without the packages that they compare with."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from child_functions import not_installed, one_unit
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import checkout, installed, rates, result, runner
from benchmarks.campaign import Campaign
from benchmarks.data import random_transitions
from benchmarks.environment import environment
from benchmarks.population.population import population
from benchmarks.report import report
from benchmarks.update import PRODUCTS, _make, product_shapes, update


class Clock:
    """A clock that advances only when a case works."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self):
        return self.now

    def case(self, name, units, durations):
        """Work of `units` per call; calls take `durations` in turn, and after those the last one."""
        durations = list(durations)

        def work():
            self.calls.append(name)
            self.now += durations.pop(0) if len(durations) > 1 else durations[0]
            return units

        return work


def test_cases_take_turns_in_rotating_order():
    clock, turns = Clock(), []
    cases = {name: clock.case(name, 1, [1.0]) for name in "abc"}
    found = runner.measure(cases, 4, 1.0, warmup_calls=2, clock=clock, turn_done=lambda *turn: turns.append(turn))
    assert "".join(clock.calls) == "abcabc" + "abc" + "bca" + "cab" + "abc"
    assert turns == [(name, 1.0) for name in "abc" + "bca" + "cab" + "abc"]
    assert found == dict.fromkeys("abc", [1.0] * 4)


def test_turn_ends_with_a_whole_call():
    clock = Clock()
    found = runner.measure({"a": clock.case("a", 5, [0.4])}, repeats=1, seconds=1.0, warmup_calls=0, clock=clock)
    assert found == {"a": [pytest.approx(12.5)]}


def test_turns_that_are_known_are_not_repeated():
    clock = Clock()
    cases = {name: clock.case(name, 1, [1.0]) for name in "ab"}
    found = runner.measure(cases, 3, 1.0, warmup_calls=0, clock=clock, known={"a": 2, "b": 1})
    assert "".join(clock.calls) == "bab"
    assert {name: len(values) for name, values in found.items()} == {"a": 1, "b": 2}


def test_case_that_raises_is_left_out_and_the_others_go_on():
    clock, turns = Clock(), []

    def broken():
        raise ValueError("broken")

    cases = {"a": clock.case("a", 1, [1.0]), "b": broken}
    found = runner.measure(cases, 2, 1.0, warmup_calls=0, clock=clock, turn_done=lambda *turn: turns.append(turn))
    assert found == {"a": [1.0, 1.0], "b": []}
    assert [name for name, _ in turns] == ["a", "b", "a"]


def test_comparison_has_medians_ratios_of_turns_and_failures():
    rows = [
        {"case": "mine", "rates": [10, 20, 90]},
        {"case": "other", "rates": [5, 40, 30]},
        {"case": "died", "rates": [5.0], "error": "ValueError: broken"},
        {"case": "absent", "missing": "pip install absent"},
    ]
    table = rates.comparison("title", rows, "mine", {"other": 2.5})
    assert table.columns == ["case", "median", "lowest to highest", "mine ÷ case", "of single turns", "target"]
    assert table.rows == [
        ["mine", 20, "10 to 90", None, None, None],
        ["other", 30, "5 to 40", 2.0, "0.50 to 3.00", "at least 2.50, missed"],
        ["died (failed: ValueError: broken)", 5.0, "5.00 to 5.00", 2.0, "2.00 to 2.00", None],
        ["absent", "not installed: pip install absent", None, None, None, None],
    ]


@pytest.fixture
def without_packages(monkeypatch):
    """Hide envpool and stable-baselines3; restore torch's number of threads."""
    threads = torch.get_num_threads()
    for name in ("envpool", "stable_baselines3"):
        monkeypatch.setitem(sys.modules, name, None)
    yield
    torch.set_num_threads(threads)


def check(path: Path, cases: set[str], repeats: int, absent: str, command: str) -> result.Result:
    found = result.read(path)
    rows = {row["case"]: row for row in found.measurements}
    assert set(rows) == {*cases, absent}
    assert all(len(rows[case]["rates"]) == repeats for case in cases)
    assert all(rate > 0 for case in cases for rate in rows[case]["rates"])
    assert rows[absent]["missing"] == command
    return found


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_commit_is_marked_dirty_if_files_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert checkout.commit(tmp_path) is None
    git("init", "--quiet")
    (tmp_path / "file").write_text("1")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    assert checkout.commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("2")
    assert checkout.commit(tmp_path) == git("rev-parse", "HEAD") + "-dirty"


def test_turns_of_a_failed_case_do_not_count_as_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = {"T": ["good", "bad"]}
    campaign = Campaign(tmp_path / "result.jsonl", "update", {}, rates.jobs(groups), every=0.0)
    calls = iter([1, 0])

    def fails_at_its_second_turn() -> int:
        return 1 // next(calls)

    makers: dict[str, Callable[[], runner.Work]] = {"good": lambda: lambda: 1, "bad": lambda: fails_at_its_second_turn}
    rates.measure(campaign, "T", makers, repeats=3, seconds=1e-9, warmup_calls=0)
    assert rates.describe_progress(campaign, 3, 1.0) == "4 of 6 turns done, 1 failed"
    assert "T, bad failed: ZeroDivisionError" in capsys.readouterr().out


@pytest.mark.parametrize("command", [partial(report, check=True), partial(population, "Hopper-v5")])
def test_statistics_without_scipy_are_refused_at_once(command: Callable[[], None], monkeypatch: Any) -> None:
    monkeypatch.setattr(installed, "is_installed", lambda module: module != "scipy")
    with pytest.raises(SystemExit, match=r"^the statistics need scipy: pip install -c constraints.txt scipy$"):
        command()


def test_environment_without_envpool_is_interrupted_and_continued(tmp_path, capsys, monkeypatch, without_packages):
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "environment.jsonl"
    options = {"num_envs": 4, "num_threads": 1, "repeats": 2, "seconds": 0.01, "warmup_steps": 3, "output": path}
    cases = {"saltus", "bare mujoco.batch", "Gymnasium SyncVectorEnv"}
    install = "pip install -c constraints.txt envpool"
    put, turns = Campaign.put, []

    def interrupted(campaign, row):
        put(campaign, row)
        turns.append(row["case"])
        if len(turns) == 5:  # a package that is missing, and four turns
            raise KeyboardInterrupt

    monkeypatch.setattr(Campaign, "put", interrupted)
    with pytest.raises(SystemExit, match=r"interrupted: .* turns done.* is up to date; the same command continues"):
        environment(("Hopper-v5",), **options)
    before = {row["case"]: row["rates"] for row in result.read(path).measurements if "rates" in row}
    assert sum(map(len, before.values())) == 4
    environment(("Hopper-v5",), **options)
    found = check(path, cases, 2, "EnvPool", install)
    assert found.settings["num_threads"] == 1
    assert all(row["rates"][: len(before[row["case"]])] == before[row["case"]] for row in found.measurements[:2])
    assert len(turns) == 5 + 1 + 2, "turns that were measured are kept"
    assert f"not installed: {install}" in capsys.readouterr().out
    content = path.read_bytes()
    with pytest.raises(SystemExit, match=r"other measurements \(repeats 2 instead of 3\): name another file"):
        environment(("Hopper-v5",), **options | {"repeats": 3})
    assert path.read_bytes() == content


@pytest.mark.usefixtures("without_packages")
def test_environment_through_the_interfaces_of_other_libraries(tmp_path):
    path = tmp_path / "environment.jsonl"
    environment(
        ("InvertedPendulum-v5",), num_envs=4, num_threads=1, repeats=1, seconds=0.01, warmup_steps=9, interfaces=True,
        output=path,
    )  # fmt: skip
    cases = {"saltus", "saltus as GymnasiumVectorEnv", "saltus as TorchRLEnv", "Gymnasium SyncVectorEnv"}
    check(path, cases, 1, "EnvPool", "pip install -c constraints.txt envpool")


@pytest.mark.usefixtures("without_packages")
def test_humanoid_is_measured_beside_an_engine_that_computes_its_contact_forces(tmp_path):
    path = tmp_path / "environment.jsonl"
    environment(
        ("Humanoid-v5",), num_envs=4, num_threads=1, repeats=1, seconds=0.01, warmup_steps=9, output=path
    )  # fmt: skip
    cases = {"saltus", "bare mujoco.batch", "bare mujoco.batch with contact forces", "Gymnasium SyncVectorEnv"}
    check(path, cases, 1, "EnvPool", "pip install -c constraints.txt envpool")


def test_update_without_stable_baselines(tmp_path, monkeypatch, without_packages):
    monkeypatch.setattr(torch._inductor, "standalone_compile", lambda traced, *_, **__: traced)  # compiling is slow
    monkeypatch.setattr(runner, "isolated", lambda make: make())
    path = tmp_path / "update.jsonl"
    cases = ("saltus sac", "saltus sac, not compiled", "saltus redq, twin critics", "saltus fast", PRODUCTS)
    update(
        updates_per_round=1, buffer_size=512, repeats=1, seconds=0.01, warmup_rounds=1, output=path,
        cases=(*cases, "Stable-Baselines3"),
    )  # fmt: skip
    check(path, {*cases}, 1, "Stable-Baselines3", "pip install -c constraints.txt stable-baselines3")


def test_products_alone_are_the_operations_of_an_update():
    data = random_transitions(300, 11, 3).to("cpu")
    work = _make("saltus sac, not compiled", "Hopper-v5", data, 2)
    with FlopCounterMode(display=False) as counter:
        work()
    products = sum(2 * m * k * n for m, k, n in product_shapes(11, 3))
    unread = 2 * 2 * 256 * 256 * 11  # the eager update's gradients of both critics with respect to observations
    assert counter.get_total_flops() == 2 * (products + unread)
    assert _make(PRODUCTS, "Hopper-v5", data, 2)() == 2


def test_isolated_work_runs_in_another_process_and_raises_its_errors():
    assert runner.isolated(one_unit)() == 1
    with pytest.raises(ModuleNotFoundError) as caught:
        runner.isolated(not_installed)
    assert caught.value.args == ("No module named 'peer'",)


def test_reset_is_not_counted_as_a_step():
    """With episodes of 2 steps, every third call only resets."""
    import gymnasium

    from benchmarks.environment import _vector_steps

    def make():
        return gymnasium.make("Hopper-v5", max_episode_steps=2, disable_env_checker=True)

    env = gymnasium.vector.SyncVectorEnv([make] * 3)
    step = _vector_steps(env, iter([env.action_space.sample() * 0] * 6))
    assert [step() for _ in range(6)] == [3, 3, 0, 3, 3, 0]

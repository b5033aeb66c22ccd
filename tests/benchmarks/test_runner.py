"""The runner's turns and statistics; benchmarks without the packages that they compare with."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from child_functions import not_installed, one_unit
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import checkout, report, result, runner
from benchmarks.data import random_transitions
from benchmarks.environment import environment
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
    clock = Clock()
    cases = {name: clock.case(name, 1, [1.0]) for name in "abc"}
    measured = runner.measure(cases, repeats=4, seconds=1.0, warmup_calls=2, clock=clock)
    assert "".join(clock.calls) == "abcabc" + "abc" + "bca" + "cab" + "abc"
    assert "".join(item.case for item in measured) == "abc" + "bca" + "cab" + "abc"
    assert [item.repeat for item in measured] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_turn_ends_with_a_whole_call():
    clock = Clock()
    measured = runner.measure({"a": clock.case("a", 5, [0.4])}, repeats=1, seconds=1.0, warmup_calls=0, clock=clock)
    assert measured == [runner.Measurement("a", 0, units=15, seconds=pytest.approx(1.2))]
    assert measured[0].rate == pytest.approx(12.5)


def test_summary_has_medians_and_ratios():
    rates = {"mine": [10, 20, 60], "other": [10, 40, 20]}
    measured = [runner.Measurement(name, i, rate, 1.0) for name, all_ in rates.items() for i, rate in enumerate(all_)]
    for order in (measured, measured[::-1]):
        summary = runner.summarize(order, "mine")
        assert summary["mine"] == runner.Summary(20, 10, 60, 1.0, 1.0)
        assert summary["other"] == runner.Summary(20, 10, 40, ratio_of_medians=1.0, median_of_ratios=1.0)
    measured = [runner.Measurement("mine", i, rate, 1.0) for i, rate in enumerate([10, 20, 90])]
    measured += [runner.Measurement("other", i, rate, 1.0) for i, rate in enumerate([5, 40, 30])]
    other = runner.summarize(measured, "mine")["other"]
    assert (other.ratio_of_medians, other.median_of_ratios) == (20 / 30, 2.0)


def test_missing_package_is_reported_and_other_errors_raised(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)

    def needs_envpool():
        import envpool  # noqa: F401

        return lambda: 1

    def broken():
        raise ValueError("broken")

    cases, missing = runner.build({"here": lambda: lambda: 1, "there": needs_envpool})
    assert list(cases) == ["here"]
    assert missing == {"there": "envpool is not installed"}
    with pytest.raises(ValueError, match="broken"):
        runner.build({"broken": broken})


@pytest.fixture
def without_packages(monkeypatch):
    """Hide envpool and stable-baselines3; restore torch's number of threads."""
    threads = torch.get_num_threads()
    for name in ("envpool", "stable_baselines3"):
        monkeypatch.setitem(sys.modules, name, None)
    yield
    torch.set_num_threads(threads)


def check(path: Path, cases: set[str], repeats: int, absent: str, reason: str) -> dict:
    content = json.loads(path.read_text())
    names = {"command", "date", "commit", "hardware", "versions", "settings", "measurements", "summary"}
    assert set(content) == names
    assert content["commit"] == result.COMMIT
    assert content["hardware"]["cores"] >= 1
    assert content["hardware"]["cpu"]
    assert {"saltus", "torch", "mujoco", *result.PEERS} < set(content["versions"])
    assert {item["case"] for item in content["measurements"]} == cases
    assert len(content["measurements"]) == len(cases) * repeats
    assert all(
        item["units"] > 0 and item["rate"] == item["units"] / item["seconds"] for item in content["measurements"]
    )
    (table,) = content["summary"]
    assert {row[0] for row in table["rows"]} == {*cases, absent}
    assert [row[1] for row in table["rows"] if row[0] == absent] == [reason]
    assert f"| {absent} | {reason} |" in report.markdown(content)
    return content


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


def test_environment_without_envpool(tmp_path, capsys, monkeypatch, without_packages):
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "environment.json"
    environment(("Hopper-v5",), num_envs=4, num_threads=1, repeats=2, seconds=0.01, warmup_steps=30, output=path)
    cases = {"saltus", "bare mujoco.batch", "Gymnasium SyncVectorEnv"}
    content = check(path, cases, 2, "EnvPool", "envpool is not installed")
    assert content["settings"]["num_threads"] == 1
    assert "envpool is not installed" in capsys.readouterr().out


def test_update_without_stable_baselines(tmp_path, monkeypatch, without_packages):
    monkeypatch.setattr(torch._inductor, "standalone_compile", lambda traced, *_, **__: traced)  # compiling is slow
    monkeypatch.setattr(runner, "isolated", lambda make: make())
    path = tmp_path / "update.json"
    cases = ("saltus sac", "saltus sac, not compiled", "saltus redq, twin critics", "saltus fast", PRODUCTS)
    update(
        updates_per_round=1, buffer_size=512, repeats=1, seconds=0.01, warmup_rounds=1, output=path,
        cases=(*cases, "Stable-Baselines3"),
    )  # fmt: skip
    check(path, {*cases}, 1, "Stable-Baselines3", "stable_baselines3 is not installed")


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


def test_report_prints_every_result_file(capsys):
    report.report()
    printed = capsys.readouterr().out
    for path in result.RESULTS.glob("*.json"):
        content = json.loads(path.read_text())
        assert f"`{content['command']}`" in printed
        assert all(table["title"] in printed for table in content["summary"])

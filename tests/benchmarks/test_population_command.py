"""`python -m benchmarks population`: its members, results and refusals."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from benchmarks.__main__ import main
from benchmarks.population.members import make_members
from benchmarks.population.population import population, summarize, tables
from benchmarks.population.saved import SavedState
from benchmarks.population.trainer import Trainer
from benchmarks.result import read
from pipeline import checkpoint
from pipeline.policy import load_policy
from saltus import SaltusError

TASK = "InvertedPendulum-v5"
OPTIONS = [
    "--no-compile", "--device", "cpu", "--num-envs", "4", "--num-threads", "1", "--total-env-steps", "200",
    "--learning-starts", "40", "--utd-ratio", "0.25", "--batch-size", "16", "--actor-hidden", "8",
    "--critic-hidden", "8", "--eval-every", "100", "--eval-episodes", "2",
]  # fmt: skip


@pytest.mark.slow
def test_command_trains_and_evaluates_every_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.jsonl"
    arguments = ["population", TASK, "--seeds", "3-4", "--variants", "", "gamma=0.9  actor_lr=3e-3"]
    arguments += ["--threshold", "1", "--processes", "1", "--output", str(file), "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments, "--", *OPTIONS])
    main()
    found = read(file)
    rows = found.measurements
    changed = "gamma=0.9 actor_lr=3e-3"
    assert [(row["variant"], row["seed"]) for row in rows] == [("", 3), ("", 4), (changed, 3), (changed, 4)]
    assert all(row["curve"]["env_steps"] == [100, 200] for row in rows)
    assert all(value >= 1 for row in rows for value in row["curve"]["return"])
    assert found.settings["variants"] == ["", changed]
    assert found.settings["config"]["batch_size"] == 16
    (table,) = tables(found)
    assert [[*row[:2], *row[4:]] for row in table.rows] == [
        ["the recipe itself", 2, 100, 100, "2 of 2", "0% of 2"],
        [changed, 2, 100, 100, "2 of 2", "0% of 2"],
    ]
    assert "200 of 200 env steps, " in capsys.readouterr().out
    for name, row in zip(["recipe-s3", "recipe-s4", "gamma=0.9-actor_lr=3e-3-s3"], rows, strict=False):
        policy = load_policy(tmp_path / "runs" / name)
        assert (policy.which, policy.config.seed) == ("best", row["seed"])
        assert row["curve"]["return"][row["curve"]["env_steps"].index(policy.env_steps)] == max(row["curve"]["return"])


@pytest.mark.usefixtures("evaluations_in_this_process")
def test_command_continues_after_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer.step

    def train(file: Path, stop_at: int | None = None) -> list[dict[str, Any]]:
        def step_and_stop(trainer: Trainer) -> None:
            step(trainer)
            if trainer.env_steps == stop_at:
                signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(Trainer, "step", step_and_stop)
        arguments = ["population", TASK, "--seeds", "3-4", "--processes", "1", "--output", str(file), "--", *OPTIONS]
        monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
        main()
        return read(file).measurements

    file, folder = tmp_path / "stopped.jsonl", tmp_path / "stopped.state"
    with pytest.raises(SystemExit, match=f"stopped at 120 env steps. {file} is up to date; the same command continues"):
        train(file, stop_at=120)
    assert [row["curve"]["env_steps"] for row in read(file).measurements] == [[100], [100]]
    with pytest.raises(SystemExit, match=f"belongs to another run: .*To train anew, delete {folder} or name another"):
        population(TASK, tuple(OPTIONS), seeds=(3,), processes=1, output=file)
    assert [row["curve"]["env_steps"] for row in train(file)] == [[100, 200], [100, 200]]
    assert not folder.exists()


def test_stop_at_a_step_that_is_saved_saves_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = list[int]()
    monkeypatch.setattr(checkpoint, "save", lambda _folder, env_steps, *_: written.append(env_steps))
    saved = SavedState(tmp_path / "result.jsonl", {})
    for env_steps in (100, 100, 120):
        saved.save(Mock(env_steps=env_steps), Mock())
    assert written == [100, 120]


def test_state_of_an_earlier_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = SavedState(tmp_path / "result.jsonl", {})
    content = {"versions": {"saltus": "0.4.0"}, "state": {"trainer": {}, "curves": []}}
    monkeypatch.setattr(checkpoint, "load_last", lambda *_: content)
    of_other_agents = Mock(load_state_dict=Mock(side_effect=SaltusError("other tensors")))
    for trainer in (Mock(), of_other_agents):
        with pytest.raises(SystemExit) as refusal:
            saved.restore(trainer, Mock())
        assert str(refusal.value) == (
            f"{tmp_path / 'result.state'} is the state of saltus 0.4.0, which this version cannot continue: delete it "
            "to train anew, or continue with that version"
        )


def test_table_has_statistics_of_each_variant() -> None:
    def row(variant: str, *returns: float) -> dict[str, Any]:
        steps = [100 * (number + 1) for number in range(len(returns))]
        return {"variant": variant, "seed": 0, "curve": {"env_steps": steps, "return": returns}}

    measured = [row("", 10.0, 40.0, 20.0), row("", 30.0, 20.0, 50.0), row("gamma=0.9", 5.0)]
    table = summarize("title", measured, threshold=30)
    assert table.columns[4:] == ["env steps to 30, median", "worst", "reached", "below 30 afterwards"]
    assert [[*row[:2], *row[4:]] for row in table.rows] == [
        ["the recipe itself", 2, 150, 200, "2 of 2", "67% of 3"],
        ["gamma=0.9", 1, "not reached", "not reached", "0 of 1", None],
    ]
    assert [row[2:4] for row in table.rows] == [["45", "35"], ["5", "5"]]
    assert summarize("title", measured, threshold=None).columns == table.columns[:4]


def test_table_names_members_that_diverged() -> None:
    def row(variant: str, returns: list[float], diverged: int | None) -> dict[str, Any]:
        steps = [100 * (number + 1) for number in range(len(returns))]
        curve = {"env_steps": steps, "return": returns} if returns else {}
        return {"variant": variant, "seed": 0, "curve": curve, "diverged": diverged}

    measured = [row("", [10.0, 40.0], None), row("", [90.0], 200), row("", [], 100), row("gamma=0.9", [], 100)]
    found = Mock(settings={"task": TASK, "threshold": 30}, measurements=[*measured, row("gamma=0.9", [], None)])
    (table,) = tables(found)
    assert table.title == f"{TASK}: returns up to 200 env steps"
    assert table.columns[-1] == "diverged"
    assert [[*row[1:2], *row[3:]] for row in table.rows] == [
        [3, "40", 200, "not reached", "2 of 3", None, "2, the first before 100 env steps"],
        [1, None, "not reached", "not reached", "0 of 1", None, "1, the first before 100 env steps"],
    ]
    assert table.rows[0][2] == "65"


def test_members_have_the_settings_of_their_variants() -> None:
    members = make_members(TASK, ["--alpha-init", "0.2"], ["", "noise_repeat=4 gamma=0.9"], (7, 8))
    settings = [(one.config.seed, one.config.alpha_init, one.config.noise_repeat, one.config.gamma) for one in members]
    assert settings == [(7, 0.2, "auto", "auto"), (8, 0.2, "auto", "auto"), (7, 0.2, 4, 0.9), (8, 0.2, 4, 0.9)]
    assert [one.variant for one in members] == ["", "", "noise_repeat=4 gamma=0.9", "noise_repeat=4 gamma=0.9"]
    (constant, growing) = make_members(TASK, ["--gamma", "0.9"], ["", "gamma=auto"], (7,))
    assert (constant.config.gamma, growing.config.gamma) == (0.9, "auto")


def test_members_are_evaluated_with_the_precision_of_their_training() -> None:
    (member,) = make_members(TASK, ["--no-compile", "--device", "cpu"], [""], (7,))
    assert member.config.matmul_dtype == "float32"


NAMES = "actor_lr, critic_lr, alpha_lr, alpha_init, gamma, target_entropy_scale, noise_repeat"
CANNOT_DIFFER = (
    f"cannot differ between members: a variant is a list of NAME=VALUE with names among {NAMES}. Give other settings "
    "to all members, as options after --"
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variants": ("gama=0.9",)}, f"'gama=0.9' {CANNOT_DIFFER}"),
        ({"variants": ("", "gamma=0.9 n_step=5")}, f"'n_step=5' {CANNOT_DIFFER}"),
        ({"variants": ("gamma",)}, f"'gamma' {CANNOT_DIFFER}"),
        ({"variants": ("noise_repeat=1.5",)}, "'1.5' is no value of noise-repeat: give a whole number or auto"),
        ({"variants": ("gamma=high",)}, "'high' is no value of gamma: give a number or auto"),
        ({"variants": ("gamma=1.5",)}, "gamma is 1.5; it must be in [0, 1), or auto"),
        (
            {"variants": ("target_entropy_scale=2",), "options": ("--target-entropy", "-1")},
            "target_entropy_scale has no effect here: it needs --target-entropy auto and --alpha-lr above 0",
        ),
        (
            {"variants": ("", "alpha_lr=0")},
            "alpha_lr is 0 in some variants: all members learn the temperature, or none does",
        ),
        (
            {"variants": ("gamma=0.9", " gamma=0.9")},
            "a variant is given twice: give each once; --seeds says how often each is trained",
        ),
        ({"seeds": ()}, "there are no members: give at least one seed and one variant ('' is the recipe itself)"),
        ({"variants": ()}, "there are no members: give at least one seed and one variant ('' is the recipe itself)"),
        ({"options": ("--seed=3",)}, "--seed is an option of a single run: give --seeds instead"),
        (
            {"options": ("--minutes", "3")},
            "--minutes is an option of a single run: give -- --total-env-steps instead",
        ),
        ({"options": ("--run_dir", "x")}, "--run-dir is an option of a single run: give --output instead"),
        ({"options": ("--gamma", "1")}, "gamma is 1.0; it must be in [0, 1), or auto"),
        (
            {"options": ("--device", "cpu", "--matmul-dtype", "tf32")},
            "--matmul-dtype tf32 needs CUDA, and this is cpu: use float32 or bfloat16",
        ),
        (
            {"options": ("--preset", "sac-discrete")},
            "populations have continuous policies, and this recipe has --policy joint",
        ),
        ({"processes": 0}, "--processes 0: give at least 1"),
        (
            {"task": "examples/seek.py:Seek"},
            "population shows critics what the policy sees, and this task has observations for critics alone: train "
            "its seeds with `python -m benchmarks training`",
        ),
    ],
)
def test_bad_input_is_refused_before_training(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = {"seeds": (0,), **arguments, "output": tmp_path / "result.jsonl"}
    with pytest.raises(SystemExit) as refusal:
        population(given.pop("task", TASK), given.pop("options", ()), **given)
    assert refusal.value.code == message
    assert not any(tmp_path.iterdir())

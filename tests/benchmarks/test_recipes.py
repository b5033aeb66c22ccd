"""The comparison of recipes: runs that are kept and continued, tables, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import curves, result
from benchmarks.headlines import longest
from benchmarks.learning import curves_of
from benchmarks.recipes import Curve, _table, levels_table, recipes, tables

OPTIONS = ("--no-compile", "--learning-starts", "40", "--batch-size", "16", "--eval-episodes", "2")
SMALL = (*OPTIONS, "--actor-hidden", "8", "--critic-hidden", "8")


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_recipes_are_compared_and_interrupted_runs_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, file = tmp_path / "runs", tmp_path / "result.jsonl"

    def compare(*names: str) -> dict:
        arguments = {"recipes": names, "eval_every": 100, "episodes": 3, "folder": folder, "output": file}
        recipes("InvertedPendulum-v5", SMALL, **arguments)
        found = result.read(file)
        return {"measurements": found.measurements, "summary": [vars(table) for table in tables(found)]}

    first = compare("sac:200", "crossq:100 --critic-lr 0.01")
    changed = "crossq --critic-lr 0.01"
    assert [(one["recipe"], one["seed"]) for one in first["measurements"]] == [("sac", 0), (changed, 0)]
    assert [one["exit_code"] for one in first["measurements"]] == [0, 0]
    assert [one["curve"]["env_steps"] for one in first["measurements"]] == [[100, 200], [100]]
    assert [one["last"]["env_steps"] for one in first["measurements"]] == [200, 100]
    assert [row[-2] for row in first["summary"][0]["rows"]] == [200, 100]
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in json.dumps(first["measurements"])
    monkeypatch.setattr(curves, "draw", lambda *_: None)  # once is enough

    (of_sac,), (of_crossq,) = (list(folder.glob(f"InvertedPendulum-v5-{name}-s0-*")) for name in ("sac", "crossq"))
    evaluations = of_sac / "evaluations.csv"  # imitate a run that was stopped after 100 of its 200 steps
    evaluations.write_text("".join(evaluations.read_text().splitlines(keepends=True)[:-1]))
    *_, newest = sorted((of_sac / "checkpoints").iterdir())
    newest.unlink()
    kept = [of_crossq / "metrics.csv", of_crossq / "evaluation-last.json"]
    untouched = [path.stat().st_mtime_ns for path in kept]
    again = compare("crossq:100 --critic-lr 0.01", "sac:200")
    assert [one["recipe"] for one in again["measurements"]] == [changed, "sac"]
    pair = first["measurements"][0], again["measurements"][1]
    before, after = (one["curve"]["return"] for one in pair)
    assert before == after, "not resumed bit for bit"
    assert len(evaluations.read_text().splitlines()) == 3
    assert len(list(folder.iterdir())) == 2
    assert [path.stat().st_mtime_ns for path in kept] == untouched
    assert again["measurements"][1]["last"] == first["measurements"][0]["last"]
    # An evaluation of an earlier policy, or a truncated file, is not mistaken for the last policy's.
    path = of_crossq / "evaluation-last.json"
    last = json.loads(path.read_text())
    for other in (json.dumps(last | {"env_steps": 50, "mean": -1.0}), path.read_text()[:50]):
        path.write_text(other)
        (crossq,) = compare("crossq:100 --critic-lr 0.01")["measurements"]
        assert crossq["last"]["mean"] == pytest.approx(last["mean"], rel=1e-5)


def test_seeds_are_averaged_at_levels_that_all_reached() -> None:
    def curve(seed: int, *returns: float) -> Curve:
        columns = {"env_steps": [10_000.0 + 5000 * i for i, _ in enumerate(returns)], "return": [*returns]}
        return Curve("sac", seed, 15_000, 0, columns, {"mean": 10.0 * seed, "env_steps": 15_000})

    alone = Curve("droq", 0, 10_000, 1, {}, None)
    table = _table("title", [curve(0, 100.0, 200.0), curve(1, 300.0), alone], episodes=3)
    assert table.columns == ["recipe", "seed", "10,000", "15,000", "last policy, 3 episodes", "env steps", "exit code"]
    assert table.rows == [
        ["sac", "0", 100.0, 200.0, 0.0, 15_000, 0],
        ["sac", "1", 300.0, None, 10.0, 15_000, 0],
        ["sac", "all", "200 +- 141", None, "5 +- 7", None, None],
        ["droq", "0", None, None, None, None, 1],
    ]


@pytest.mark.usefixtures("in_this_process")
def test_failed_run_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "result.jsonl"
    recipes("InvertedPendulum-v5", SMALL, recipes=("sac:100 --critic-lr nan",), folder=tmp_path / "runs", output=file)
    (one,) = result.read(file).measurements
    assert (one["exit_code"], one["curve"], one["last"]) == (1, {}, None)


@pytest.mark.slow
def test_peer_is_trained_and_evaluated(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3")
    file, peer = tmp_path / "result.jsonl", "stable-baselines3:200"
    arguments = {"eval_every": 100, "episodes": 3, "folder": tmp_path / "runs", "output": file}
    recipes("InvertedPendulum-v5", recipes=(peer,), **arguments)
    (one,) = result.read(file).measurements
    assert (one["exit_code"], one["last"]["env_steps"]) == (0, 200)
    assert one["curve"]["env_steps"] == [100, 200]
    assert all(value >= 1 for value in one["curve"]["return"])
    assert str(tmp_path) not in json.dumps(one)


@pytest.mark.parametrize("text", ["", "sac", "sacc:100", "sac:many"])
def test_malformed_recipe_is_refused(text: str) -> None:
    with pytest.raises(SystemExit, match="is not NAME:STEPS, like sac:100000; names are crossq"):
        recipes("Hopper-v5", recipes=(text,))


def test_recipe_with_two_numbers_of_steps_is_refused() -> None:
    with pytest.raises(SystemExit, match="sac:100, sac:200: name each recipe once, with one number of env steps"):
        recipes("Hopper-v5", recipes=("sac:100", "sac:200"))


def test_level_is_the_first_evaluation_at_most_5_percent_later() -> None:
    steps = [5120.0, 10112.0, 15104.0, 50048.0]
    curve = Curve("fast", 0, 60_000, 0, {"env_steps": steps, "return": [step / 10 for step in steps]}, None)
    assert [curve.at(level) for level in (10_000, 15_000, 20_000, 25_000, 50_000)] == [
        1011.2,
        1510.4,
        None,
        None,
        5004.8,
    ]


def test_options_for_the_peer_are_refused() -> None:
    with pytest.raises(SystemExit, match="stable-baselines3 takes no options of saltus: --tau"):
        recipes("Hopper-v5", recipes=("stable-baselines3:100 --tau 0.01",))


def test_former_option_names_are_shown_as_those_of_today() -> None:
    row = {"recipe": "xqc --lr-final 1.0", "seed": 0, "total_env_steps": 1, "exit_code": 0, "last": None}
    row["curve"] = {"env_steps": [10_000], "return": [1.0]}
    settings = {"task": "Hopper-v5", "episodes": 3}
    found = result.Result("recipes", "command", "2026-01-01", None, {}, {}, settings, [row], Path("recipes.jsonl"))
    (table,) = tables(found)
    shown = [table.rows[0][0], levels_table(found).rows[0][0], longest(found).rows[0][0], curves_of(found)[0].label]
    name = "xqc --lr-final-fraction 1.0"
    assert shown == [name, f"`{name}`", f"`{name}`", name]

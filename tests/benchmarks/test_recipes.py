"""The comparison of recipes keeps its runs, and goes on with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.recipes import recipes

OPTIONS = ("--no-compile", "--learning-starts", "40", "--batch-size", "16", "--eval-episodes", "2")
SMALL = (*OPTIONS, "--actor-hidden", "8", "--critic-hidden", "8")


@pytest.mark.slow
def test_recipes_are_compared_by_env_steps_and_an_interrupted_comparison_goes_on(tmp_path: Path) -> None:
    folder, file = tmp_path / "runs", tmp_path / "result.json"

    def compare(*presets: str) -> dict:
        arguments = {"presets": presets, "eval_every": 100, "episodes": 3, "folder": folder, "output": file}
        recipes("InvertedPendulum-v5", SMALL, **arguments)
        return json.loads(file.read_text())

    first = compare("sac:200", "crossq:100")
    assert [(one["preset"], one["seed"]) for one in first["measurements"]] == [("sac", 0), ("crossq", 0)]
    assert [[row["env_steps"] for row in one["rows"]] for one in first["measurements"]] == [[100, 200], [100]]
    assert [one["final"]["env_steps"] for one in first["measurements"]] == [200, 100]
    assert [len(one["final"]["returns"]) for one in first["measurements"]] == [3, 3]
    assert [row[-1] for row in first["summary"][0]["rows"]] == [200, 100]
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in json.dumps(first["measurements"])

    evaluations = folder / "sac-s0" / "evaluations.csv"  # as if it had been stopped after 100 of its 200 steps
    evaluations.write_text("".join(evaluations.read_text().splitlines(keepends=True)[:-1]))
    *_, newest = sorted((folder / "sac-s0" / "checkpoints").iterdir())
    newest.unlink()
    untouched = (folder / "crossq-s0" / "metrics.csv").stat().st_mtime_ns
    again = compare("crossq:100", "sac:200")
    assert [one["preset"] for one in again["measurements"]] == ["crossq", "sac"]
    of_sac = first["measurements"][0], again["measurements"][1]
    before, after = ([row["return_mean"] for row in one["rows"]] for one in of_sac)
    assert before == after, "not resumed bit for bit"
    assert len(evaluations.read_text().splitlines()) == 3
    assert (folder / "crossq-s0" / "metrics.csv").stat().st_mtime_ns == untouched


@pytest.mark.parametrize("text", ["sac", "sacc:100", "sac:many"])
def test_what_is_no_recipe_with_its_steps_is_refused(text: str) -> None:
    with pytest.raises(SystemExit, match="is not PRESET:STEPS, like sac:100000; there are crossq"):
        recipes("Hopper-v5", presets=(text,))

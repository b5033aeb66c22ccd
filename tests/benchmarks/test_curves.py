"""Pictures of learning curves, and the digests by which a test can tell that a picture is of its data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from benchmarks import curves, learning, pictures, result
from benchmarks.curves import Panel
from benchmarks.result import Result
from saltus.errors import SaltusError

pytest.importorskip("scipy")

SEEDS = [([100.0, 200.0, 300.0], [1.0, 2.0, 3.0]), ([100.0, 200.0], [2.0, 4.0]), ([], [])]
PANEL = Panel("task", "env steps", {"saltus": SEEDS, "other": SEEDS[:1]}, threshold=2.5)
RESULTS = result.read_all()


def test_pictures_hold_the_digest_of_their_data(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    curves.draw(path, [[PANEL], [PANEL, PANEL]])
    assert curves.drawn_digest(path) == curves.digest([[PANEL], [PANEL, PANEL]])
    other = dataclasses.replace(PANEL, curves={"saltus": [([100.0], [1.5])]})
    assert curves.drawn_digest(path) != curves.digest([[other], [PANEL, PANEL]])
    with Image.open(path) as picture:
        assert picture.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255), "readable on a dark page"
        picture.save(tmp_path / "without.png")
    assert curves.drawn_digest(tmp_path / "without.png") is None


def test_the_same_data_make_the_same_picture(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        curves.draw(tmp_path / name, [[PANEL]])
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_groups_beyond_the_colors_have_other_lines() -> None:
    looks = [curves.look(index, curves.COLORS) for index in range(3 * len(curves.COLORS))]
    assert len({*looks}) == len(looks)


def test_labels_count_the_seeds_with_evaluations() -> None:
    assert curves.label("saltus", SEEDS) == "saltus, 2 seeds"
    assert curves.label("saltus", SEEDS[1:]) == "saltus, 1 seed"


def test_single_evaluations_are_dots_within_the_frame() -> None:
    axes = Figure().subplots()
    curves.plot(axes, [([72.0], [1.0]), ([75.0], [1.0])], "b", "-")  # no common x: no mean
    curves.style(axes, "k", "k")
    assert [line.get_marker() for line in axes.lines] == ["o", "o"]
    left, right = axes.get_xlim()
    assert left == 0
    assert right > 1.04 * 75
    curves.plot(axes, SEEDS, "b", "-")
    assert {line.get_marker() for line in axes.lines[2:]} == {"None"}, "lines have no markers"


def test_thresholds_of_several_tasks_are_told_apart() -> None:
    axes = Figure().subplots()
    found = [
        name for one in (PANEL, dataclasses.replace(PANEL, title="other")) for name in curves._draw_panel(axes, one)
    ]
    assert [name for name in found if "reach" in name] == [
        "return to reach in task, 2.5",
        "return to reach in other, 2.5",
    ]


@pytest.mark.parametrize("found", RESULTS, ids=lambda found: found.path.stem)
def test_no_group_of_a_committed_file_has_a_seed_twice(found: result.Result) -> None:
    of_file = learning.curves_of(found)
    for task in {curve.task for curve in of_file}:
        for label, group in learning.grouped([curve for curve in of_file if curve.task == task]).items():
            seeds = [curve.seed for curve in group]
            assert len(seeds) == len({*seeds}), f"{task}, {label}"


def made_up(path: Path, returns: list[float]) -> Result:
    curve = {"env_steps": [100.0, 200.0], "wall_seconds": [1.0, 2.0], "return": returns}
    row = {"system": "saltus", "preset": None, "task": "Hopper-v5", "seed": 0, "curve": curve}
    settings = {"tasks": ["Hopper-v5"], "threshold": [3000]}
    return Result("training", "command", "2026-01-01", None, {"cpu": "x", "cores": 1}, {}, settings, [row], path)


def test_pictures_of_other_data_are_outdated(tmp_path: Path) -> None:
    first = made_up(tmp_path / "training.jsonl", [1.0, 2.0])
    assert pictures.outdated(tmp_path, [first]) == [], "no picture is asked for"
    assert pictures.draw(first) == tmp_path / "training.png"
    assert pictures.outdated(tmp_path, [first]) == []
    second = made_up(tmp_path / "training.jsonl", [1.0, 3.0])
    assert pictures.outdated(tmp_path, [second]) == [second]
    with pytest.raises(
        SaltusError, match=r"training\.png shows no result file with learning curves: remove it, or add"
    ):
        pictures.outdated(tmp_path, [])


def test_panels_are_of_one_task_each_over_both_axes_with_its_threshold() -> None:
    (row,) = learning.rows_of_panels(made_up(Path("training.jsonl"), [1.0, 2.0]))
    over_time, over_steps = row
    seconds, steps = [([1.0, 2.0], [1.0, 2.0])], [([100.0, 200.0], [1.0, 2.0])]
    assert over_time == Panel("Hopper-v5", "wall-clock from process start, s", {"saltus": seconds}, 3000)
    assert over_steps == Panel("Hopper-v5", "env steps", {"saltus": steps}, 3000)


def test_threshold_is_that_of_the_task_or_of_all_tasks() -> None:
    both = {"tasks": ["Hopper-v5", "task.py:Humanoid"]}
    for thresholds, expected in (
        ([3, 5], [3, 5]),
        ([4], [4, 4]),
        ([], [None, None]),
        (6, [6, 6]),
        (None, [None, None]),
    ):
        found = dataclasses.replace(made_up(Path("a.jsonl"), []), settings=both | {"threshold": thresholds})
        assert [learning.threshold(found, task) for task in ("Hopper-v5", "Humanoid")] == expected


def test_results_without_evaluations_have_no_picture(tmp_path: Path) -> None:
    found = dataclasses.replace(made_up(tmp_path / "training.jsonl", []), measurements=[{"missing": "sbx"}])
    assert pictures.draw(found) is None
    assert not (tmp_path / "training.png").exists()


def test_committed_pictures_are_of_their_result_files() -> None:
    changed = pictures.outdated(result.RESULTS, RESULTS)
    assert not changed, f"run python -m benchmarks report: {', '.join(found.path.stem for found in changed)}"

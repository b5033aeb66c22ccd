"""Trials in a database: claims, their end, and trials that wait again."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

optuna = pytest.importorskip("optuna")
from optuna.trial import TrialState  # noqa: E402

from pipeline.search_ranges import Interval  # noqa: E402
from pipeline.shared_study import SharedStudy  # noqa: E402
from pipeline.tune import sweep  # noqa: E402


def test_lost_trial_does_not_keep_the_others_from_being_given_back(tmp_path: Path) -> None:
    shared = SharedStudy(f"sqlite:///{tmp_path / 'study.db'}", "tune", {}, 3, "the trials", ["error"])
    for _ in range(3):
        shared.enqueue()
    waiting = shared.trials(TrialState.WAITING)
    assert all(map(shared.claim, waiting))
    lost, forgotten, own = waiting
    for trial in (lost, forgotten):  # as a worker does after the lease
        shared.study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    shared.study._storage.set_trial_user_attr(own._trial_id, "error", "of a failure whose state was not stored")
    shared.forget(forgotten.number)
    shared.release()
    (again,) = shared.trials(TrialState.WAITING)
    assert again.system_attrs["failed_trial"] == own.number
    assert again.user_attrs == {}
    assert not shared._claims


def test_result_that_ctrl_c_interrupts_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = SharedStudy(f"sqlite:///{tmp_path / 'study.db'}", "tune", {}, 3, "the trials", ["seconds"])
    shared.enqueue()
    (trial,) = shared.trials()
    assert shared.claim(trial)
    with monkeypatch.context() as patch:
        patch.setattr(shared._storage, "set_trial_user_attr", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            shared.finish(trial.number, TrialState.FAIL, None, {"seconds": 1.0}, "the result")
    shared.release()
    assert [one.state for one in shared.trials()] == [TrialState.FAIL, TrialState.WAITING]


def test_failure_that_was_begun_anew_counts_once(tmp_path: Path) -> None:
    shared = SharedStudy(f"sqlite:///{tmp_path / 'study.db'}", "tune", {}, 3, "the trials", sweep.RESULTS)
    trials = sweep.Sweep(shared, {}, {}, 1)
    claimed = trials.claim()
    assert claimed is not None
    claimed.trial.set_user_attr("error", "of a worker that was killed before it stored the state")
    shared.release()
    (counted,) = trials.counted()
    assert (counted.number, counted.state, counted.user_attrs) == (1, TrialState.WAITING, {})
    assert trials.done() == []
    assert trials.unfinished == 1


def test_numbers_are_short_within_the_range_and_the_presets_own_are_exact(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    space = {"gamma": Interval(0.99, 0.9999996), "alpha_init": Interval(1e-3, 1.0, log=True)}
    own = {"gamma": 0.99961, "alpha_init": 0.2 / 6}
    trials = sweep.Sweep(SharedStudy(url, "tune", {}, 3, "the trials", sweep.RESULTS), space, own, 2)
    first, second = trials.claim(), trials.claim()
    assert first is not None
    assert second is not None
    assert trials.options(first.trial) == own
    drawn = trials.options(second.trial)["alpha_init"]
    assert drawn == float(f"{drawn:.6g}")
    assert trials._value("gamma", 0.9999996, own=False) == 0.9999996
    assert trials._value("gamma", 0.99961234, own=False) == 0.999612

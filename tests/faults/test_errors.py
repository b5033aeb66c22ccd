"""Errors of the system (a full disk, a file that cannot be written or read) are named and lose nothing."""

from __future__ import annotations

import errno
import os
import shutil

import pytest
from fault_harness import (
    BETWEEN,
    BETWEEN_STEPS,
    NUMBER,
    TOTAL,
    Moment,
    Outcome,
    Runs,
    at,
    checkpoints,
    computed,
    fail,
    saved_steps,
    spread,
)

pytestmark = pytest.mark.slow
NEEDS_SPACE = ("open", "write", "mkdir")


def assert_in_words(outcome: Outcome, *words: object) -> None:
    """The process ended with a message that has all the words."""
    assert "Traceback" not in outcome.output, outcome.output
    missing = [word for word in words if str(word) not in outcome.text]
    assert not missing, outcome.output


@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "tensorboard",
        "metrics.csv",
        "evaluations.csv",
        "evaluation_episodes.csv",
        "checkpoints",
        "learning_curve.png",
    ],
)
def test_full_disk_is_named_and_loses_nothing(runs: Runs, file: str) -> None:
    starts = tuple(f"{operation} {file}" for operation in NEEDS_SPACE)
    moments = [moment for moment in runs.undisturbed.moments if moment.operation.startswith(starts)]
    for moment in spread(moments, max(1, NUMBER // 6)):
        run_dir = runs.new_dir()
        outcome = runs.train(run_dir, fail(errno.ENOSPC, *NEEDS_SPACE, since=moment))
        assert_in_words(outcome)
        lines = [line for line in outcome.output.splitlines() if os.strerror(errno.ENOSPC) in line]
        assert any(str(run_dir) in line for line in lines), outcome.output
        assert runs.differences(run_dir) == [], moment


def test_limit_on_file_size_keeps_the_last_checkpoint(runs: Runs) -> None:
    sizes = [path.stat().st_size for path in checkpoints(runs.reference)]
    run_dir = runs.new_dir()
    outcome = runs.train(run_dir, file_size=sum(sizes) // 2)
    last = checkpoints(run_dir)[-1]
    assert 0 < saved_steps(run_dir) < TOTAL
    assert_in_words(outcome, os.strerror(errno.EFBIG), f"The last good checkpoint is {last}")
    assert runs.differences(run_dir) == []


@pytest.mark.parametrize("file", ["metrics.csv", "evaluations.csv", "evaluation_episodes.csv", "tensorboard"])
def test_numbers_that_cannot_be_written_are_named_and_written_later(runs: Runs, file: str) -> None:
    run_dir = runs.new_dir()
    outcome = runs.train(run_dir, fail(errno.EIO, f"write {file}", since=BETWEEN, times=1))
    assert saved_steps(run_dir) >= BETWEEN_STEPS
    assert_in_words(outcome, os.strerror(errno.EIO), file)
    assert runs.differences(run_dir) == []


@pytest.mark.parametrize("file", ["metrics.csv", "tensorboard"])
def test_run_that_can_write_no_numbers_is_saved_and_says_which_are_lost(runs: Runs, file: str) -> None:
    run_dir = runs.new_dir()
    outcome = runs.train(run_dir, fail(errno.EIO, f"write {file}", since=BETWEEN))
    assert saved_steps(run_dir) >= BETWEEN_STEPS
    assert_in_words(outcome, os.strerror(errno.EIO), file)
    lost = runs.differences(run_dir)
    assert all(name.startswith(file) for name in lost)
    assert not lost or "lost" in outcome.text


def test_run_without_its_tensorboard_folder_goes_on(runs: Runs) -> None:
    run_dir = runs.new_dir()
    outcome = runs.train(run_dir, at(BETWEEN, lambda _pid: shutil.rmtree(run_dir / "tensorboard")))
    assert saved_steps(run_dir) >= BETWEEN_STEPS
    assert_in_words(outcome)
    assert runs.differences(run_dir) == []


def test_run_whose_directory_is_renamed_is_saved_first(runs: Runs) -> None:
    run_dir, renamed = runs.new_dir(), runs.new_dir()
    outcome = runs.train(run_dir, at(BETWEEN, lambda _pid: run_dir.rename(renamed)))
    assert max(saved_steps(run_dir), saved_steps(renamed)) >= BETWEEN_STEPS
    assert_in_words(outcome, run_dir)
    assert runs.differences(renamed) == []


@pytest.mark.parametrize(
    "moment",
    [
        Moment("fsync checkpoints/N.partial", 1),
        Moment("rename checkpoints/N.partial", 1),
        Moment("fsync checkpoints", 1),
    ],
)
def test_checkpoint_that_cannot_be_completed_is_named_and_loses_nothing(runs: Runs, moment: Moment) -> None:
    run_dir = runs.new_dir()
    outcome = runs.train(run_dir, fail(errno.EIO, moment.operation, since=moment))
    assert moment in outcome.moments
    assert_in_words(outcome, os.strerror(errno.EIO), run_dir / "checkpoints")
    assert runs.differences(run_dir) == []


def test_old_checkpoint_that_cannot_be_deleted_is_named_and_the_run_continues(runs: Runs) -> None:
    run_dir = runs.new_dir()
    outcome = runs.train(run_dir, fail(errno.EIO, "unlink checkpoints/N.pt"))
    assert outcome.status == 0
    assert_in_words(outcome, os.strerror(errno.EIO), run_dir / "checkpoints")
    assert computed(run_dir) == runs.expected


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO], ids=os.strerror)
def test_good_checkpoint_that_cannot_be_read_is_not_called_corrupted(runs: Runs, error: int) -> None:
    run_dir = runs.copy(runs.reference)
    outcome = runs.resume(run_dir, fail(error, "read checkpoints/N.pt"))
    assert outcome.status == 1
    assert_in_words(outcome, os.strerror(error), checkpoints(run_dir)[-1])
    assert "corrupt" not in outcome.text
    assert "delete" not in outcome.text.lower()
    assert runs.differences(run_dir) == []


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK], ids=os.strerror)
def test_file_system_without_locks_is_warned_of(runs: Runs, error: int) -> None:
    run_dir = runs.new_dir()
    outcome = runs.train(run_dir, fail(error, "flock"))
    assert outcome.status == 0, outcome.output
    assert_in_words(outcome, "warning", "lock")
    assert computed(run_dir) == runs.expected


def test_evaluation_that_cannot_be_written_is_printed(runs: Runs) -> None:
    run_dir = runs.copy(runs.reference)
    outcome = runs.run(["evaluate", run_dir, "--episodes", 2], run_dir, fail(errno.EROFS, "open evaluation."))
    assert_in_words(outcome, "best policy", "2 episodes", os.strerror(errno.EROFS), "evaluation.json")


def test_finished_run_says_so_where_it_cannot_plot(runs: Runs) -> None:
    run_dir = runs.new_dir()
    outcome = runs.train(run_dir, fail(errno.EACCES, "open learning_curve."))
    assert_in_words(outcome, "finished after", os.strerror(errno.EACCES), "learning_curve.png")
    assert computed(run_dir) == runs.expected

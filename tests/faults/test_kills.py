"""A run that is killed at any moment, any number of times, ends with the numbers of one that was not."""

from __future__ import annotations

import random
import signal

import pytest
from fault_harness import (
    BETWEEN,
    NUMBER,
    Moment,
    Runs,
    kill_before,
    require_no_differences,
    saved_steps,
    spread,
)

pytestmark = pytest.mark.slow
FIRST_CHECKPOINT = Moment("fsync checkpoints")  # it exists from here on


def test_run_killed_before_its_first_checkpoint_starts_again(runs: Runs) -> None:
    moments = runs.undisturbed.moments
    check_kills(runs, moments[: moments.index(FIRST_CHECKPOINT)])


def test_run_killed_before_a_file_operation_resumes_bit_for_bit(runs: Runs) -> None:
    moments = runs.undisturbed.moments
    check_kills(runs, moments[moments.index(FIRST_CHECKPOINT) :])


def check_kills(runs: Runs, moments: list[Moment]) -> None:
    found = {}
    for moment in spread(moments, NUMBER):
        run_dir = runs.new_dir()
        killed = runs.train(run_dir, kill_before(moment))
        assert killed.status == -signal.SIGKILL, (moment, killed.output)
        found[moment] = runs.differences(run_dir)
    require_no_differences(found)


def test_resumed_run_killed_before_a_file_operation_resumes_bit_for_bit(runs: Runs) -> None:
    half = runs.new_dir()
    runs.train(half, kill_before(BETWEEN))
    found = {}
    for moment in spread(runs.resume(runs.copy(half)).moments, NUMBER):
        run_dir = runs.copy(half)
        killed = runs.resume(run_dir, kill_before(moment))
        assert killed.status == -signal.SIGKILL, (moment, killed.output)
        found[moment] = runs.differences(run_dir)
    require_no_differences(found)


def test_run_killed_at_random_moments_resumes_bit_for_bit(runs: Runs) -> None:
    generator, kills, found = random.Random(0), 0, {}
    while kills < NUMBER:
        run_dir, times = runs.new_dir(), list[float]()
        while kills < NUMBER and saved_steps(run_dir) < saved_steps(runs.reference):
            times.append(generator.uniform(0, runs.undisturbed.seconds))
            outcome = runs.go_on(run_dir, kill_after=times[-1])
            assert outcome.status in (0, -signal.SIGKILL), outcome.output
            kills += outcome.status != 0
        found[tuple(times)] = runs.differences(run_dir)
    require_no_differences(found)

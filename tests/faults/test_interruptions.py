"""Signals save the run; streams that end do not end it."""

from __future__ import annotations

import os
import signal

import pytest
from fault_harness import (
    BETWEEN,
    BETWEEN_STEPS,
    TOTAL,
    Moment,
    Runs,
    Streams,
    at,
    computed,
    kill_before,
    saved_steps,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, signal.SIGINT, signal.SIGHUP],
    ids=lambda number: number.name,
)
def test_signal_saves_the_run(runs: Runs, number: signal.Signals) -> None:
    run_dir = runs.new_dir()
    outcome = runs.train(run_dir, at(BETWEEN, lambda pid: os.kill(pid, number)))
    assert outcome.status in (0, 128 + number), outcome.output
    assert f"stopped by {number.name} and saved" in outcome.text
    assert BETWEEN_STEPS <= saved_steps(run_dir) < TOTAL
    assert runs.differences(run_dir) == []


@pytest.mark.parametrize("operation", ["fsync checkpoints/N.partial", "rename checkpoints/N.partial"])
def test_evaluation_stopped_and_then_killed_before_it_is_saved_is_one_row(runs: Runs, operation: str) -> None:
    """The resumed run writes the row of the evaluation, and is killed before the checkpoint that knows of it."""
    moments = [moment for moment in runs.undisturbed.moments if moment.operation.startswith(("write m", "open e"))]
    before = moments[[moment.operation for moment in moments].index("open evaluations.partial") - 1]
    run_dir = runs.new_dir()
    stopped = runs.train(run_dir, at(before, lambda pid: os.kill(pid, signal.SIGTERM)))
    assert "stopped by SIGTERM and saved" in stopped.text
    assert not (run_dir / "evaluations.csv").exists()
    killed = runs.resume(run_dir, kill_before(Moment(operation)))
    assert killed.status == -signal.SIGKILL, killed.output
    assert (run_dir / "evaluations.csv").exists()
    assert runs.differences(run_dir) == []


def test_second_interrupt_while_saving_loses_no_earlier_checkpoint(runs: Runs) -> None:
    run_dir, sent = runs.new_dir(), 0

    def interrupt_twice(moment: Moment, pid: int) -> int:
        nonlocal sent
        if (sent == 0 and moment == BETWEEN) or (sent == 1 and moment.operation.startswith("write checkpoints")):
            sent += 1
            os.kill(pid, signal.SIGINT)
        return 0

    outcome = runs.train(run_dir, interrupt_twice)
    assert sent == 2
    assert outcome.status == 130, outcome.output
    assert "Traceback" not in outcome.output
    assert runs.differences(run_dir) == []


@pytest.mark.parametrize(
    ("names", "moment"),
    [
        (["stdout"], Moment("open lock")),
        (["stdout"], BETWEEN),
        (["stderr"], BETWEEN),
        (["stdout", "stderr"], BETWEEN),
    ],
)
def test_reader_of_the_output_that_ends_does_not_end_the_run(runs: Runs, names: list[str], moment: Moment) -> None:
    run_dir = runs.new_dir()
    reader, writer = os.pipe()
    streams = Streams(**dict.fromkeys(names, writer))
    outcome = runs.train(run_dir, at(moment, lambda _pid: os.close(reader)), streams=streams)
    os.close(writer)
    assert outcome.status >= 0
    assert "Traceback" not in outcome.output
    assert saved_steps(run_dir) == TOTAL
    assert computed(run_dir) == runs.expected


def test_closed_terminal_saves_the_run(runs: Runs) -> None:
    run_dir = runs.new_dir()
    screen, terminal = os.openpty()  # all that is shown fits into the terminal's buffer
    streams = Streams(terminal, terminal, terminal, terminal=True)
    outcome = runs.train(run_dir, at(BETWEEN, lambda _pid: os.close(screen)), streams=streams)
    os.close(terminal)
    assert outcome.status >= 0
    assert BETWEEN_STEPS <= saved_steps(run_dir) < TOTAL
    assert runs.differences(run_dir) == []

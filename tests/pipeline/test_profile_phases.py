"""The timers of `saltus profile`, with a clock that the tests move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.profile import cuda
from pipeline.profile.phases import PhaseTimer


class Clock:
    """A clock that moves when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float, then: Callable[[], Any] = lambda: None) -> None:
        self.now += seconds
        then()


def test_nested_phases_are_charged_once():
    clock = Clock()
    timer = PhaseTimer(clock)
    physics = timer.wrap("physics", lambda: clock.work(3))
    step = timer.wrap("transition", lambda: clock.work(1, lambda: (physics(), clock.work(2))))
    timer.begin()
    clock.work(0.5)
    step()
    clock.work(0.25)
    assert timer.end_step() == {"transition": 3, "physics": 3, "rest": 0.75}
    physics()
    assert timer.end_step() == {"physics": 3, "rest": 0}


def test_whole_phases_include_the_ones_they_call_except_waiting():
    clock = Clock()
    timer = PhaseTimer(clock)
    physics, waiting = (timer.wrap(name, lambda: clock.work(1)) for name in ("physics", "waiting"))
    reset = timer.wrap("reset", lambda: (physics(), waiting(), physics()))
    timer.begin()
    reset()
    assert timer.end_step() == {"reset": 2, "waiting": 1, "rest": 0}


def test_an_error_leaves_the_phase():
    clock = Clock()
    timer = PhaseTimer(clock)

    def fail() -> None:
        clock.work(1)
        raise KeyError

    with pytest.raises(KeyError):
        timer.wrap("physics", fail)()
    clock.work(2)
    assert timer.end_step() == {"rest": 2, "physics": 1}


class Event:
    """A stand-in for a CUDA event, at a time of the GPU."""

    def __init__(self, now: float):
        self.now = now

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.now - self.now)


def test_events_give_the_times_of_the_gpu(monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    monkeypatch.setattr(cuda, "_event", lambda: Event(clock.now))
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: False)
    timer = cuda.EventTimer()
    physics = timer.wrap("physics", lambda: clock.work(3))
    timer.begin()
    physics()
    clock.work(1)
    assert {*timer.end_step()} == {"physics", "rest"}
    physics()
    timer.end_step()
    assert timer.device_seconds() == [{"physics": 3, "rest": 1}, {"physics": 3, "rest": 0}]


def test_captured_rounds_are_divided_by_their_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cuda, "_part_seconds", lambda run: {"sample": 1.0, "critic update": 3.0})
    steps = [{"captured round": 8.0, "act": 1.0}, {"act": 1.0}]
    cuda.split_rounds(None, steps)  # type: ignore[arg-type]
    assert steps[0] == {"act": 1, "sample": 2, "critic update": 6}
    assert sum(steps[1].values()) == 1

"""Phases of a vector step: which methods belong to them, and exclusive timing of nested ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from envs import BatchEnv
from pipeline.logger import Logger
from pipeline.run import Run

REST, WAITING, ROUND = "rest", "waiting", "captured round"
PHASES = (
    "act", "physics", "task functions", "reset", "transition", "buffer write", "sample", "critic update",
    "actor and temperature update", "critic, actor and temperature update", ROUND, "logging", WAITING, REST,
)  # fmt: skip
OUTSIDE = ("evaluation", "checkpoint")  # happen between vector steps, and are counted separately
_WHOLE = {"act", "reset", "logging", *OUTSIDE}  # include the phases of the methods that they call
# Graphs of a captured step with Warp's physics, between and in which Warp launches its own.
_GRAPHS_OF_A_STEP = ("transition", "physics", "task functions", "reset", "reset")

Wrap = Callable[[str, Any], Any]


class PhaseTimer:
    """Charges every moment between `begin` and `end_step` to exactly one phase: the innermost one entered.

    Args:
        clock: seconds.

    Attributes:
        seconds: time per phase since `begin` or the last `end_step`.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self.begin()

    def begin(self) -> None:
        """Begin a vector step, outside all phases."""
        self._stack, self._since, self.seconds = [REST], self._clock(), dict[str, float]()

    def end_step(self) -> dict[str, float]:
        """End a vector step and begin the next; return the seconds of each phase."""
        self.charge()
        seconds, self.seconds = self.seconds, {}
        return seconds

    def wrap(self, phase: str, function: Any) -> Any:
        """A function whose calls are charged to a phase, unless they are part of a whole one."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            outer = self._stack[-1]
            self.charge()
            self._stack.append(outer if outer in _WHOLE and phase != WAITING else phase)
            try:
                return function(*args, **kwargs)
            finally:
                self.charge()
                self._stack.pop()

        return timed

    def charge(self) -> None:
        """Add the time since the last call to the innermost phase."""
        now, phase = self._clock(), self._stack[-1]
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._since
        self._since = now


def worlds_of(run: Run) -> BatchEnv:
    """The worlds of a run on a task of saltus; others are not profiled."""
    assert isinstance(run.env, BatchEnv)
    return run.env


@contextmanager
def attached(run: Run, logger: Logger, wrap: Wrap) -> Iterator[None]:
    """Wrap the methods of each phase on these objects alone, and restore them at the end."""
    before: list[tuple[Any, str, Any]] = []

    def replace(owner: Any, name: str, value: Any) -> None:
        before.append((owner, name, vars(owner).get(name)))
        setattr(owner, name, value)

    for phase, owner, names in _methods(run, logger):
        for name in names:
            replace(owner, name, wrap(phase, getattr(owner, name)))
    updates = run.learner.updates
    timed = [(always, wrap(update_name(index, updates), one)) for index, (always, one) in enumerate(updates)]
    replace(run.learner, "updates", timed)
    graph = worlds_of(run)._graph
    if graph is not None and len(graph._parts) == len(_GRAPHS_OF_A_STEP):
        replace(graph, "_parts", [wrap(*pair) for pair in zip(_GRAPHS_OF_A_STEP, graph._parts, strict=True)])
    try:
        yield
    finally:
        for owner, name, value in reversed(before):
            if value is None:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def _methods(run: Run, logger: Logger) -> list[tuple[str, Any, tuple[str, ...]]]:
    env = worlds_of(run)
    episodes = env._episodes
    methods = [
        ("act", run, ("act",)),
        ("transition", run, ("step",)),
        ("physics", env.physics, ("step", "read", "unstable", "overflowed")),
        ("task functions", episodes._functions, ("observation", "reward", "terminated", "control", "advance")),
        ("reset", episodes, ("begin",)),
        ("buffer write", run.buffer, ("extend",)),
        ("sample", run.buffer, ("sample",)),
        ("logging", run, ("log",)),
        ("logging", logger, ("phase", "set_progress", "say")),
        ("evaluation", run, ("evaluate",)),
        ("checkpoint", run, ("save",)),
    ]
    if run.device.type == "cuda":  # where reading a value waits for the GPU
        waiting = [(WAITING, run, ("_to_physics",)), (WAITING, run.agent, ("check_finite",))]
        if run.learner.captured:  # which hides sampling and updates
            methods.append((ROUND, run.learner, ("round",)))
        return [*methods, *waiting, (WAITING, env, ("statistics",))]
    return methods


def update_name(index: int, updates: list[Any]) -> str:
    """The phase of an update of the learner."""
    if len(updates) == 1:  # one graph
        return "critic, actor and temperature update"
    return ("critic update", "actor and temperature update")[index]

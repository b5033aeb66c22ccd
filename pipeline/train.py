"""The training loop, and the signals that stop it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

from pipeline.logger import Logger
from pipeline.run import Run


def train(run: Run, logger: Logger, stopping: Callable[[], bool] = lambda: False) -> None:
    """Continue a run to its end, or until `stopping()` is true; save it in either case.

    Raises:
        DivergenceError: a loss, parameter or action became infinite or NaN; the last checkpoint precedes it.
        CheckpointError: a checkpoint could not be written.
    """
    config = run.config
    if run.env_steps == 0:
        run.save(logger)
    while run.env_steps < config.total_env_steps and not stopping():
        action = run.act()
        # Updates precede the step, so that a GPU learns while the CPU simulates.
        if run.env_steps <= config.learning_starts:
            logger.phase("random actions")
        elif run.vector_steps % config.steps_per_round == 0:
            run.learn(logger)
        run.buffer.extend(run.step(action))
        logger.advance(run.env_steps)
        finished = run.env_steps >= config.total_env_steps
        if finished or run.due(config.log_every):
            run.log(logger)
        if finished or run.due(config.eval_every):
            run.evaluate(logger)
        if finished or run.due(config.checkpoint_every):
            run.save(logger)
    if run.env_steps < config.total_env_steps:
        run.save(logger)


class StopSignal:
    """Stops the loop after the current step on SIGINT or SIGTERM; a second signal, if SIGINT, interrupts at once.

    Attributes:
        received: the name of the last signal received, or None.
    """

    def __init__(self) -> None:
        self.received: str | None = None

    def __enter__(self) -> StopSignal:
        self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return self.received is not None

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

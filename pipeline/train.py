"""The training loop, and the signals that stop it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from threading import Thread, current_thread, main_thread
from types import FrameType

from pipeline.logger import Logger
from pipeline.run import Run


def train(run: Run, logger: Logger, stopping: Callable[[], bool] = lambda: False) -> None:
    """Continue a run to its end, or until `stopping()` is true; save it in either case.

    Of several ranks each runs this loop. They stop at the same step: that of the first rank where `stopping()` is true.

    Raises:
        DivergenceError: a loss, parameter or action became infinite or NaN; the last checkpoint precedes it.
        CheckpointError: the first or the last checkpoint could not be written.
    """
    config = run.config
    if run.env_steps == 0:
        run.save(logger)
    else:
        run.recall(logger)
    if run.evaluation_pending:
        run.evaluate(logger, stopping)
        run.save(logger, optional=not run.ended)
    logger.advance(run.progress)
    while not (run.ended or run.ranks.any_rank(stopping())):
        due = run.learning and run.vector_steps % config.steps_per_round == 0
        if due and run.compile(logger, stopping):
            continue  # a run that was stopped meanwhile is saved as it was
        action = run.act()
        # Updates precede the step, so that a GPU learns while the CPU simulates.
        if not run.learning:
            logger.phase("random actions")
        elif due:
            run.learn(logger)
        run.buffer.extend(run.step(action))
        progress = run.progress  # read once: it may depend on the clock
        run.ended = progress == 1
        logger.advance(progress)
        if run.ended or run.due(config.log_every):
            run.log(logger)
        if run.ended or run.due(config.eval_every):
            run.evaluate(logger, stopping)
        if run.ended or run.due(config.checkpoint_every):
            run.save(logger, optional=not run.ended)
    if not run.ended:
        run.save(logger)


_END = b"\0"  # no signal has this number


class StopSignal:
    """Stops the loop after the current step on SIGINT, SIGTERM or SIGHUP; a second SIGINT interrupts at once.

    SIGHUP stays ignored if it was (``nohup``). A forked process gets the handlers of before, except that of SIGINT:
    Ctrl-C reaches it as well, and the step that ends the run may need it.

    In a thread other than the main one, signals are left alone: Python handles them in the main thread only.

    Args:
        announce: gets a line of text at the first signal, in a thread, at once even if the main thread is busy.

    Attributes:
        received: the name of the last signal received, or None.
    """

    def __init__(self, announce: Callable[[str], None] = lambda text: None) -> None:
        self.received: str | None = None
        self._announce = announce
        self._numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            self._numbers.append(signal.SIGHUP)

    def __enter__(self) -> StopSignal:
        if current_thread() is not main_thread():
            return self
        # Python's C handler writes the number of each signal to the pipe; the Python handler waits for the main thread.
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread = Thread(target=self._announce_first, name="saltus signals", daemon=True)
        self._thread.start()
        self._before = {number: signal.signal(number, self._receive) for number in self._numbers}
        _active.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self not in _active:  # a forked process, which has no thread, or not the main thread
            return
        _active.remove(self)
        self.restore()
        os.set_blocking(self._writer, True)
        os.write(self._writer, _END)  # closing the pipe ends nothing while a forked process has it open
        self._thread.join()
        os.close(self._writer)
        os.close(self._reader)

    def silence(self) -> None:
        """Announce no signal from now on, because nothing can be saved."""
        self._announce = lambda text: None

    def restore(self, *kept: signal.Signals) -> None:
        """Install the handlers of before, except those of the signals `kept`."""
        signal.set_wakeup_fd(self._wakeup_before)
        for number in self._before.keys() - set(kept):
            signal.signal(number, self._before[number])

    def __call__(self) -> bool:
        return self.received is not None

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def _announce_first(self) -> None:
        announced = False
        while (data := os.read(self._reader, 1)) != _END:
            if data[0] in self._numbers and not announced:
                announced = True
                again = "; Ctrl-C again stops without saving" if data[0] == signal.SIGINT else ""
                self._announce(f"{signal.Signals(data[0]).name}: saving after the current step or compilation{again}")


_active: list[StopSignal] = []


def _restore_in_child() -> None:
    """Let a forked process end on signals that its parent survives, and let its parent not announce them."""
    while _active:
        _active.pop().restore(signal.SIGINT)


os.register_at_fork(after_in_child=_restore_in_child)

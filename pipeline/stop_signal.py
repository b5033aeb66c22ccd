"""StopSignal: the signals that stop a training, which is saved first."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from threading import Thread, current_thread, main_thread
from types import FrameType

_END = b"\0"  # no signal has this number


class StopSignal:
    """Stops the loop after the current step on SIGINT, SIGTERM or SIGHUP; a second SIGINT interrupts at once.

    SIGHUP stays ignored if it was (``nohup``). A forked process gets the previous handlers, except that of SIGINT:
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
        """Install the previous handlers, except those of the signals `kept`."""
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

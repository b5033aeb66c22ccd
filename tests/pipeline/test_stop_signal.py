"""Signals that stop a training."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from threading import Event, Timer

import pytest

from pipeline.stop_signal import StopSignal

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def hangup_not_ignored() -> Iterator[None]:
    """As it is under ``nohup pytest``."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_is_announced_at_once_while_the_main_thread_is_busy(number: signal.Signals) -> None:
    said, announced = list[str](), Event()

    def announce(line: str) -> None:
        said.append(line)
        announced.set()

    with StopSignal(announce):
        Timer(0.1, os.kill, (os.getpid(), number)).start()
        assert announced.wait(10)
        if number != signal.SIGINT:  # whose second one interrupts
            os.kill(os.getpid(), number)
    again = "; Ctrl-C again stops without saving" if number == signal.SIGINT else ""
    assert said == [f"{number.name}: saving after the current step or compilation{again}"]


def test_other_signals_are_not_announced() -> None:
    said = list[str]()
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    with StopSignal(said.append) as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert not stop()
    signal.signal(signal.SIGUSR1, before)
    assert said == []


def test_ignored_hangup_stays_ignored() -> None:
    """As ``nohup`` asks for."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop()


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_asks_to_stop_without_interrupting(number: signal.Signals) -> None:
    with StopSignal() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        assert stop.received == number.name


def test_second_interrupt_raises_at_once() -> None:
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_signal_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopSignal():
        assert all(signal.getsignal(number) not in before for number in SIGNALS)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


@contextmanager
def forked() -> Iterator[int]:
    """A forked process that sleeps for ten seconds; its id, as soon as it sleeps."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, b"started")
            time.sleep(10)
        finally:
            os._exit(1)
    os.read(reader, 7)
    yield pid
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_a_forked_process_and_is_not_announced_by_its_parent(number: signal.Signals) -> None:
    said = list[str]()
    with StopSignal(said.append) as stop, forked() as pid:
        os.kill(pid, number)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -number
        assert not stop()
    assert said == []


def test_second_interrupt_ends_a_forked_process() -> None:
    """The first one does not: a step in progress may need the process."""
    said = list[str]()
    with StopSignal(said.append), forked() as pid:
        os.kill(pid, signal.SIGINT)
        time.sleep(0.1)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        os.kill(pid, signal.SIGINT)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert said == []


def test_forked_process_does_not_delay_the_end() -> None:
    with ExitStack() as stack:
        with StopSignal():
            pid = stack.enter_context(forked())
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it still runs"
    os.waitpid(pid, 0)


def test_forked_process_that_leaves_the_block_ends_nothing_of_its_parent() -> None:
    said = list[str]()
    with StopSignal(said.append) as stop:
        pid = os.fork()
        if pid == 0:
            stop.__exit__()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        os.kill(os.getpid(), signal.SIGTERM)
    assert said == ["SIGTERM: saving after the current step or compilation"]

"""Commands of saltus in processes of their own, forked from one that has imported everything (see zygote.py)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Timer
from types import TracebackType
from typing import IO

ROOT = Path(__file__).resolve().parents[1]


class Unsupported(OSError):
    """This kernel cannot intercept file operations."""


class Zygote:
    """Starts processes of saltus, one at a time, with one thread.

    Args:
        folder: their current folder, by default.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        settings = {
            "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
            "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        command = [sys.executable, str(Path(__file__).with_name("zygote.py")), str(other.fileno())]
        with other:
            self._process = subprocess.Popen(
                command, env=os.environ | settings, pass_fds=[other.fileno()], stdout=subprocess.DEVNULL
            )
        assert self._channel.recv(1 << 16) == b"ready"

    def close(self) -> None:
        self._channel.close()
        self._process.wait()

    def start(
        self,
        arguments: Sequence[object],
        streams: Sequence[int],
        cwd: Path | None = None,
        terminal: bool = False,
        file_size: int | None = None,
        intercept: bool = False,
    ) -> tuple[int, int]:
        """Start ``saltus``.

        Args:
            arguments: the command line.
            streams: descriptors of its stdin, stdout and stderr.
            cwd: its current folder; by default `folder`.
            terminal: whether stdin is its controlling terminal.
            file_size: the largest file that it may write, in bytes.
            intercept: whether its file operations wait for answers.

        Returns:
            Its process id, and the descriptor of its `Listener`, -1 without interception.

        Raises:
            Unsupported: this kernel cannot intercept file operations.
        """
        request = {
            "arguments": [str(argument) for argument in arguments], "cwd": str(cwd or self.folder),
            "terminal": terminal, "file_size": file_size, "intercept": intercept,
        }  # fmt: skip
        socket.send_fds(self._channel, [json.dumps(request).encode()], list(streams))
        message, listeners, *_ = socket.recv_fds(self._channel, 1 << 16, 1)
        answer = json.loads(message)
        if "error" in answer:
            self.wait()
            raise Unsupported(answer["error"])
        return answer["pid"], listeners[0] if intercept else -1

    def wait(self) -> int:
        """Wait for the end of the process; its exit status, or minus the signal that killed it."""
        return json.loads(self._channel.recv(1 << 16))["status"]

    def poll(self) -> int | None:
        """The status that `wait` returns; None if the process runs."""
        with suppress(BlockingIOError):
            return json.loads(self._channel.recv(1 << 16, socket.MSG_DONTWAIT))["status"]
        return None


class ForkedSaltus:
    """A process of saltus with the interface of `subprocess.Popen`; stderr is in stdout, stdin is empty.

    A context manager: it kills the process at the end if it still runs.
    """

    def __init__(self, zygote: Zygote, arguments: Sequence[object], cwd: Path | None = None):
        reader, writer = os.pipe()
        with open(os.devnull, "rb") as nothing:
            self.pid, _ = zygote.start(arguments, [nothing.fileno(), writer, writer], cwd)
        os.close(writer)
        self.stdout: IO[str] = open(reader)  # noqa: SIM115 - closed by `__exit__` and `communicate`
        self.returncode: int | None = None
        self._zygote = zygote

    def __enter__(self) -> ForkedSaltus:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.kill()
        self.stdout.close()

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._zygote.poll()
        return self.returncode

    def wait(self, timeout: float = 150) -> int:
        """Wait for the end; kill the process after `timeout` seconds."""
        if self.returncode is None:
            timer = Timer(timeout, self.send_signal, (signal.SIGKILL,))
            timer.start()
            self.returncode = self._zygote.wait()
            timer.cancel()
        return self.returncode

    def communicate(self, timeout: float = 150) -> tuple[str, None]:
        """The rest of the output, after the end; the process is killed after `timeout` seconds."""
        timer = Timer(timeout, self.send_signal, (signal.SIGKILL,))
        timer.start()
        with self.stdout:
            output = self.stdout.read()
        timer.cancel()
        self.wait(timeout)
        return output, None

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it ended
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process if it still runs, and wait for its end."""
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)
            self.wait()


def finish(process: ForkedSaltus | subprocess.Popen[str], timeout: float = 150) -> str:
    """Wait for a process to succeed; return its output."""
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return output

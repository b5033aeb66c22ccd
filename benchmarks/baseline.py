"""Another checkout of saltus as a case, to measure the present one against an earlier commit."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import checkout

SERVER = Path(__file__).with_name("case_server.py")


class ServedCase:
    """A case of a checkout in a process of its own, which is idle between calls and turns.

    The process ends with the object.

    Args:
        folder: the checkout.
        settings: what to build, see `case_server.build`.

    Raises:
        RuntimeError: the process ended. It prints the reason on stderr.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        folder = folder.resolve()
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(SERVER), json.dumps(settings | {"checkout": str(folder)})],
            env=checkout.environment(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._close = weakref.finalize(self, _end, self._process)
        self._reply()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def __call__(self) -> int:
        """Do one call of the case's work; return its units."""
        return self.turn(0.0)[0]

    def turn(self, seconds: float) -> tuple[int, float]:
        """Work for at least `seconds`; return units and seconds as that process timed them, without the pipe."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # `_reply` says that the process ended
            self._process.stdin.write(f"{seconds}\n")
            self._process.stdin.flush()
        return self._reply()

    def _reply(self) -> tuple[int, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of the case ended with exit code {self._process.wait()}")
        units, seconds = json.loads(line)
        return units, seconds


def _end(process: subprocess.Popen[str]) -> None:
    """Close the pipes, at which the process ends, and wait for it."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def against(name: str, folder: Path | None, settings: dict[str, Any]) -> dict[str, Callable[[], ServedCase]]:
    """A case of this checkout and of another one, both in processes of their own; no case without a `folder`.

    Args:
        name: the case's name; that of the other checkout is ``NAME at COMMIT``.
        folder: the other checkout.
        settings: what to build, see `case_server.build`.
    """
    if folder is None:
        return {}
    return {
        name: partial(ServedCase, checkout.ROOT, settings),
        f"{name} at {checkout.label(checkout.commit(folder))}": partial(ServedCase, folder, settings),
    }

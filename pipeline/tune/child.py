"""Entry point of a trial's process: `saltus` that saves and stops when its worker ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run ``saltus`` with the arguments after the first, which is the worker's process id."""
    worker = int(sys.argv.pop(1))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != worker:  # it has ended already
        sys.exit("saltus: the worker has ended")
    from saltus.__main__ import main as run

    run()


if __name__ == "__main__":
    main()

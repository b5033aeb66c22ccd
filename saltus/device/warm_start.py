"""An early start for the C++ compiler, in the background of imports and simulation."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import Event, Thread


class WarmStart(Thread):
    """What Inductor does before its first C++ kernel: probe vector instructions, precompile its header.

    On x86 Inductor probes by compiling a library for each instruction set. Both results are cached on disk and serve
    all kernels. Errors are not raised here: the first real compilation meets them again.

    Non-daemon, so that exit never leaves partial cache files.

    Attributes:
        probed: set when the vector instructions are known. Inductor must not probe in two threads at once.
    """

    def __init__(self) -> None:
        super().__init__(name="saltus warm start")
        self.probed = Event()
        self._probe: Callable[[], object] = lambda: None
        self._precompile_header: Callable[[], object] = lambda: None
        with suppress(
            ImportError, AttributeError
        ):  # internals of Inductor, which other versions of torch may have moved
            from torch._inductor.codecache import CppPythonBindingsCodeCache
            from torch._inductor.cpu_vec_isa import pick_vec_isa
            from torch._inductor.runtime.cache_dir_utils import cache_dir

            cache_dir()  # sets an environment variable, which is for the main thread to do
            self._probe = pick_vec_isa
            empty = '#include <torch/csrc/inductor/cpp_prefix.h>\nextern "C" void kernel() {}'
            self._precompile_header = partial(CppPythonBindingsCodeCache.load_pybinding_async, [], empty)

    def run(self) -> None:
        # Compilers inherit the signal mask. A probe that Ctrl-C kills would be cached as "no vector instructions".
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        with suppress(Exception):
            try:
                self._probe()
            finally:
                self.probed.set()
            if can_precompile_header():
                self._precompile_header()

    def wait_until_probed(self) -> None:
        """Block until `probed`; return at once in a forked process, where the thread does not run."""
        while self.is_alive() and not self.probed.wait(timeout=1.0):
            pass


_thread: WarmStart | None = None


def warm_start() -> None:
    """Start this process's `WarmStart` thread, once."""
    global _thread
    if _thread is None:
        _thread = WarmStart()
        _thread.start()


def wait_until_probed() -> None:
    """Wait for the thread that `warm_start` started, if any, to have probed the vector instructions."""
    if _thread is not None:
        _thread.wait_until_probed()


def can_precompile_header() -> bool:
    """Whether Inductor can precompile its C++ header. It hashes the header with the program ``openssl``."""
    from torch._inductor import config

    return config.cpp_cache_precompile_headers and shutil.which("openssl") is not None

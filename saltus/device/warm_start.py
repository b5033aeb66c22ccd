"""Early preparation of Inductor's C++ compiler, in the background of imports and simulation."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import Event, Thread

from saltus.errors import warn_once


class WarmStart(Thread):
    """A thread that does the work before Inductor's first C++ kernel.

    It probes the CPU's vector instructions (on x86, by compiling a library for each set) and precompiles Inductor's
    header. Inductor caches both results on disk, for all kernels. The thread raises no errors: the first compilation
    will meet them again. Non-daemon, so that exit never leaves partial cache files.

    Attributes:
        probed: set when the vector instructions are known. Inductor must not probe in two threads at once.
    """

    def __init__(self) -> None:
        super().__init__(name="saltus warm start")
        self.probed = Event()
        self._probe: Callable[[], object] = lambda: None
        self._precompile_header: Callable[[], object] = lambda: None
        try:
            from torch._inductor.codecache import CppPythonBindingsCodeCache
            from torch._inductor.cpu_vec_isa import pick_vec_isa
            from torch._inductor.runtime.cache_dir_utils import cache_dir

            precompile = CppPythonBindingsCodeCache.load_pybinding_async
            cache_dir()  # sets an environment variable, which only the main thread should do
        except Exception as error:  # a version of torch with other internals, or no folder to cache in
            warn_once(f"torch's compiler cannot be prepared early, so the first updates take longer: {error}")
            return
        self._probe = pick_vec_isa
        empty = '#include <torch/csrc/inductor/cpp_prefix.h>\nextern "C" void kernel() {}'
        self._precompile_header = partial(precompile, [], empty)

    def run(self) -> None:
        # Compilers inherit the signal mask. Inductor would cache a probe killed by Ctrl-C as "no vector instructions".
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
    """Start the `WarmStart` thread of this process, once."""
    global _thread
    if _thread is None:
        _thread = WarmStart()
        _thread.start()


def wait_until_probed() -> None:
    """Block until the thread of `warm_start`, if it was started, has probed the vector instructions."""
    if _thread is not None:
        _thread.wait_until_probed()


def can_precompile_header() -> bool:
    """Whether Inductor can precompile its C++ header, which it hashes with the program ``openssl``."""
    from torch._inductor import config

    return config.cpp_cache_precompile_headers and shutil.which("openssl") is not None

"""Early preparation of Inductor's C++ compiler, in the background of imports and simulation."""

from __future__ import annotations

import atexit
import getpass
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import Event, Thread

from saltus.errors import SaltusError, warn_once

_TEMPORARY = "saltus_cache_"  # begins the names of folders that are removed at exit
_UNWRITABLE = "/dev/fd"  # exists, as torch requires, and nobody can write files to it


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
        # Compilers inherit the mask. Inductor would cache a probe killed by a signal as "no vector instructions".
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
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


def ensure_cache_folder() -> None:
    """Let torch cache compiled code in a temporary folder if its own cannot be written; warn about it.

    Without a temporary folder, nothing is compiled (see `can_compile`). Call it before tensordict is imported,
    which imports torch's compiler, which makes the folder or fails.
    """
    try:
        folder = cache_folder()
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        try:
            folder = temporary_cache_folder("TORCHINDUCTOR_CACHE_DIR", error)
        except SaltusError as refusal:
            warn_once(f"{refusal}. Without one, updates run eagerly, at about half the speed")
            folder = _UNWRITABLE
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder


def can_compile() -> bool:
    """Whether `ensure_cache_folder`, if it was called, found a folder for compiled code."""
    return os.environ.get("TORCHINDUCTOR_CACHE_DIR") != _UNWRITABLE


def cache_lasts() -> bool:
    """Whether the folder of torch's compiled code outlives this process and its parent."""
    return can_compile() and not os.path.basename(cache_folder()).startswith(_TEMPORARY)


def temporary_cache_folder(variable: str, reason: OSError) -> str:
    """Make a folder for compiled code that lasts as long as the process, and warn about it.

    Args:
        variable: the environment variable that names the lasting folder.
        reason: why that folder cannot be used.

    Raises:
        SaltusError: no folder for temporary files can be written.
    """
    try:
        folder = tempfile.mkdtemp(prefix=_TEMPORARY)
    except OSError as error:
        raise SaltusError(f"no folder can be written for temporary files: set TMPDIR to one ({error})") from error
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    warn_once(
        f"compiled code cannot be cached ({reason}), so each run compiles for up to a minute: set {variable} to a "
        "folder that can be written"
    )
    return folder


def cache_folder() -> str:
    """The folder of torch's compiled code."""
    return os.environ.get("TORCHINDUCTOR_CACHE_DIR") or _default_cache_folder()


def _default_cache_folder() -> str:
    """The folder of torch._inductor.runtime.cache_dir_utils, which cannot be imported without making it."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        user = f"uid_{os.getuid()}"
    return os.path.join(tempfile.gettempdir(), f"torchinductor_{user}")


_thread: WarmStart | None = None


def warm_start() -> None:
    """Start the `WarmStart` thread of this process, once, if it can compile."""
    global _thread
    if _thread is None and can_compile():
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

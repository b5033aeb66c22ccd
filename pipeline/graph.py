"""An update as one compiled graph.

torch.compile follows Python, and an update goes through TorchRL's and TensorDict's, which it would have to guard at
every call. Here the update runs once on fake tensors, which records all it does to real ones: forward and backward
passes, Adam, target networks, as one list of operations. Inductor (torch.compile's back end) compiles these, and at a
call no Python of the update is left.
"""

from __future__ import annotations

import functools
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from threading import Event, Thread
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, fx
from torch._inductor import config as inductor_config
from torch._inductor import standalone_compile
from torch._inductor.codecache import CppPythonBindingsCodeCache
from torch._inductor.cpu_vec_isa import pick_vec_isa
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch.fx.experimental.proxy_tensor import make_fx

from pipeline.onednn import UseOneDNN

Update = Callable[[TensorDict], dict[str, Tensor]]


class Preparation(Thread):
    """What Inductor does before the first C++ kernel, begun while the caller imports, simulates and traces.

    It finds the processor's vector instructions (on x86 by building a library with each, which Inductor's cache keeps),
    and compiles a header of its own for all kernels to come, which stays in the folder of temporary files: work for
    one core, the same for every graph. A compiler that is missing is told when a graph is compiled. The
    process ends after the thread: whoever starts next is not to find files that are half written.

    Attributes:
        probed: set when the vector instructions are known; finding them cannot be done by two threads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.probed = Event()
        cache_dir()  # sets an environment variable, which no thread should do

    def run(self) -> None:
        # Compilers inherit the mask. A Ctrl-C that ended one would have kernels without vector instructions, also in
        # the cache, for later runs.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        with suppress(Exception):
            try:
                pick_vec_isa()
            finally:
                self.probed.set()
            if can_precompile_headers():
                nothing = '#include <torch/csrc/inductor/cpp_prefix.h>\nextern "C" void kernel() {}'
                CppPythonBindingsCodeCache.load_pybinding_async([], nothing)  # compiles the header, and no kernel

    def wait_until_probed(self) -> None:
        """Wait for the vector instructions; not in a forked process, where nobody looks for them."""
        while self.is_alive() and not self.probed.wait(timeout=1.0):
            pass


_preparation: Preparation | None = None


def prepare_compiler() -> None:
    """Start the `Preparation` of this process, which goes on beside the caller."""
    global _preparation
    if _preparation is None:
        _preparation = Preparation()
        _preparation.start()


def can_precompile_headers() -> bool:
    """Whether Inductor may precompile its C++ header, which it knows again by what the program openssl says of it."""
    return inductor_config.cpp_cache_precompile_headers and shutil.which("openssl") is not None


class Graph:
    """A function of a batch, compiled at its first call; where that fails it goes on as it is, with a warning, one
    for each reason in a process.

    The compiled function changes the same tensors as the plain one, draws the same random numbers and agrees with it
    within rounding.

    Args:
        function: batch -> tensors by name; it may change tensors of `state` in place, and its Python must not depend on
            their values.
        state: the tensors that the function changes. Tracing changes some; they are put back.

    Attributes:
        pending: whether the next call compiles.
        seconds: what compilation took.
    """

    def __init__(self, function: Update, state: Callable[[], Iterable[Tensor]]):
        self.function, self._state = function, state
        self.seconds, self._failed = 0.0, False
        self._run: Callable[..., Any] | None = None
        self._names: list[str] = []
        self._inputs: list[Tensor] = []

    @property
    def pending(self) -> bool:
        return self._run is None and not self._failed

    @property
    def compiled(self) -> bool:
        """Whether calls run what was compiled."""
        return self._run is not None

    def __call__(self, batch: TensorDict) -> dict[str, Tensor]:
        keys, values = _flat(batch)
        if self.pending:
            self._try_to_compile(batch, keys, values)
        if self._run is None:
            return self.function(batch)
        with torch.no_grad():
            return dict(zip(self._names, self._run(*self._inputs, *values), strict=True))

    def _try_to_compile(self, batch: TensorDict, keys: list[Any], values: list[Tensor]) -> None:
        start = time.monotonic()
        for attempt in (1, 2):  # a Ctrl-C ends the compiler's processes, too: that is no reason to give up
            try:
                self._compile(batch, keys, values)
                break
            except Exception as error:  # whatever it is: the plain function computes the same
                if attempt == 2:
                    self._failed = True
                    _warn(str(error).strip().partition("\n")[0] or type(error).__name__)
        self.seconds = time.monotonic() - start

    def _compile(self, batch: TensorDict, keys: list[Any], values: list[Tensor]) -> None:
        def flat_function(*tensors: Tensor) -> list[Tensor]:
            # A TensorDict of its own: TorchRL's losses write into what they are given.
            result = self.function(_nested(dict(zip(keys, tensors, strict=True)), batch.batch_size))
            self._names = list(result)
            return list(result.values())

        state = list(self._state())
        before = [tensor.detach().clone() for tensor in state]
        try:
            # On CUDA a backward pass has a thread of its own, which would have to know that it is being traced.
            with torch.autograd.set_multithreading_enabled(False):
                traced = make_fx(flat_function, tracing_mode="fake", _allow_non_fake_inputs=True)(*values)
        finally:
            with torch.no_grad():
                for tensor, value in zip(state, before, strict=True):
                    tensor.copy_(value)
        self._inputs = _make_placeholders(traced)
        if _preparation is not None:
            _preparation.wait_until_probed()
        options: dict[str, Any] = {
            "fallback_random": True,  # the random numbers of the plain function
            # Kernels are tuned at the first call, by its data. While compiling they would be by invented numbers, which
            # need not be valid as indices.
            "triton.autotune_at_compile_time": False,
            "cpp_cache_precompile_headers": can_precompile_headers(),
        }
        if values[0].device.type == "cpu" and UseOneDNN.available():
            options["post_grad_custom_post_pass"] = UseOneDNN()
        with torch.no_grad():
            self._run = standalone_compile(
                traced,
                [*self._inputs, *values],
                dynamic_shapes="from_example_inputs",
                options={"config_patches": options},
            )


def _make_placeholders(traced: fx.GraphModule) -> list[Tensor]:
    """Turn the tensors that a traced function found in its surroundings into its first inputs; return them.

    Tensors that are the same memory become one input, so that what is written to one is read from the other.
    """
    graph = traced.graph
    first = next(iter(graph.nodes))
    inputs: dict[Any, tuple[fx.Node, Tensor]] = {}
    for node in list(graph.nodes):
        if node.op != "get_attr":
            continue
        tensor = getattr(traced, node.target)
        identity = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if identity not in inputs:
            with graph.inserting_before(first):
                placeholder = graph.placeholder(f"state_{len(inputs)}")
            placeholder.meta = dict(node.meta)
            inputs[identity] = placeholder, tensor.detach()
        node.replace_all_uses_with(inputs[identity][0])
        graph.erase_node(node)
    traced.recompile()
    return [tensor for _, tensor in inputs.values()]


def _flat(batch: TensorDict) -> tuple[list[Any], list[Tensor]]:
    items = list(batch.items(include_nested=True, leaves_only=True))
    return [key for key, _ in items], [value for _, value in items]


def _nested(items: Mapping[Any, Tensor], batch_size: torch.Size) -> TensorDict:
    result = TensorDict({}, batch_size=batch_size)
    for key, value in items.items():
        result.set(key, value)
    return result


@functools.cache  # what fails for one graph fails for the next: once is enough
def _warn(reason: str) -> None:
    warnings.warn(
        f"torch.compile failed, going on without it: updates take two to four times as long. The reason: {reason}. It "
        "needs a C++ compiler and Python's headers (Debian, Ubuntu: apt install g++ python3-dev)",
        stacklevel=2,
    )

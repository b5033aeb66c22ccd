"""An update as one compiled graph: forward and backward pass, optimiser and targets.

torch.compile traces Python, here that of TorchRL and TensorDict, and would check its guards at every call. Instead,
make_fx runs the update once on fake tensors and records its operations as one list. Inductor, torch.compile's back end,
compiles that list. Calls then run none of the update's Python.

Inductor's internals are imported where they are used. If another version of torch lacks one, updates run eagerly.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, fx

from saltus.device.warm_start import can_compile, can_precompile_header, wait_until_probed
from saltus.errors import warn_once

Update = Callable[[TensorDict], dict[str, Tensor]]


@dataclass(frozen=True)
class TracedUpdate:
    """A function of a batch as a list of operations.

    Attributes:
        graph: (inputs, then the batch's entries) -> the function's results.
        inputs: the tensors that the function reads or modifies, each once.
        names: the results' names.
    """

    graph: fx.GraphModule
    inputs: list[Tensor]
    names: list[str]


def trace(function: Update, batch: TensorDict, state: Iterable[Tensor]) -> TracedUpdate:
    """Record the operations of a function of a batch.

    Args:
        function: batch -> tensors by name. It must not branch on tensor values.
        batch: a batch of the shapes of those to come.
        state: the tensors that the function modifies. They are restored.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    keys, values = flatten(batch)
    names: list[str] = []

    def flat_function(*tensors: Tensor) -> list[Tensor]:
        # A new TensorDict, because TorchRL's losses write into their input.
        result = function(_unflatten(dict(zip(keys, tensors, strict=True)), batch.batch_size))
        names[:] = result
        return list(result.values())

    state = list(state)
    before = [tensor.detach().clone() for tensor in state]
    try:
        # On CUDA the backward pass runs in another thread, which tracing would miss.
        with torch.autograd.set_multithreading_enabled(False):
            graph = make_fx(flat_function, tracing_mode="fake", _allow_non_fake_inputs=True)(*values)
    finally:
        with torch.no_grad():
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)
    return TracedUpdate(graph, _make_placeholders(graph), names)


class CompiledUpdate:
    """A function of a batch, compiled at its first call.

    The compiled function modifies the same tensors as the plain one, draws the same random numbers and agrees with it
    within rounding. If compilation fails, the plain function runs, with one warning per reason and process.

    Args:
        function: batch -> tensors by name. It may modify tensors of `state` in place. It must not branch on tensor
            values.
        state: returns the tensors that the function modifies. Tracing restores them.
        any_process: whether an argument is true in any process that trains together with this one. If compilation
            fails in one, updates run eagerly in all, because compiled ones round differently.
        num_processes: number of the processes that train together. If there are several, they must round alike.

    Attributes:
        attempted: whether it was compiled, or compilation failed.
        seconds: duration of the compilation.
        cached: whether the compiled code was in torch's cache.
    """

    def __init__(
        self,
        function: Update,
        state: Callable[[], Iterable[Tensor]],
        any_process: Callable[[bool], bool] = lambda failed: failed,
        num_processes: int = 1,
    ):
        self._num_processes = num_processes
        self.function, self._state, self._any_process = function, state, any_process
        self.attempted = False
        self.seconds, self.cached, self._failed = 0.0, False, not can_compile()
        self._run: Callable[..., Any] | None = None
        self._traced: TracedUpdate | None = None

    @property
    def pending(self) -> bool:
        """Whether the next call compiles."""
        return self._run is None and not self._failed

    @property
    def compiled(self) -> bool:
        """Whether calls run compiled code."""
        return self._run is not None

    def __call__(self, batch: TensorDict) -> dict[str, Tensor]:
        if not self.attempted:
            self.compile(batch)
        if self._run is None or self._traced is None:
            return self.function(batch)
        with torch.no_grad():
            results = self._run(*self._traced.inputs, *flatten(batch)[1])
        return dict(zip(self._traced.names, results, strict=True))

    def compile(self, batch: TensorDict, stopping: Callable[[], bool] = lambda: False) -> None:
        """Compile ahead of the first call, and keep the compiled code if no process failed.

        A compilation that fails when `stopping()` is true does not count: the signal to stop may have ended the
        compiler. The next call of any method compiles again.

        Args:
            batch: a batch of the shapes of those to come.
            stopping: whether the program is to end.
        """
        if self.pending and not stopping():
            self._try_to_compile(batch, stopping)
        self._failed = self._any_process(self._failed)
        if self._failed:
            self._run = None
        self.attempted = not self.pending

    def _try_to_compile(self, batch: TensorDict, stopping: Callable[[], bool]) -> None:
        start = time.monotonic()
        for attempt in (1, 2):  # Ctrl-C also kills the compiler's processes: try once more
            try:
                self._compile(batch)
                break
            except Exception as error:  # whatever failed, the plain function computes the same
                if stopping():
                    break
                if attempt == 2:
                    self._failed = True
                    warn_once(
                        "compilation failed, so updates run eagerly, at about half the speed. It needs a C++ "
                        "compiler, Python's headers (Debian, Ubuntu: apt install g++ python3-dev) and a version of "
                        f"torch that saltus supports (this is {torch.__version__}). The reason: {_first_line(error)}"
                    )
        self.seconds = time.monotonic() - start

    def _compile(self, batch: TensorDict) -> None:
        from torch._dynamo.utils import counters
        from torch._inductor import standalone_compile

        traced, values = trace(self.function, batch, self._state()), flatten(batch)[1]
        self._traced = traced
        wait_until_probed()
        options = inductor_options(values[0].device.type, self._num_processes)
        hits = counters["inductor"]["fxgraph_cache_hit"]
        with torch.no_grad():
            self._run = standalone_compile(
                traced.graph,
                [*traced.inputs, *values],
                dynamic_shapes="from_example_inputs",
                options={"config_patches": options},
            )
        self.cached = counters["inductor"]["fxgraph_cache_hit"] > hits


def inductor_options(device_type: str, num_processes: int = 1) -> dict[str, Any]:
    """Inductor's options for an update on a kind of device, in processes that train together."""
    from torch._inductor import config

    options: dict[str, Any] = {
        "fallback_random": True,  # draw the random numbers of eager code
        # Tune kernels at the first call, on real data: generated data may hold invalid indices.
        "triton.autotune_at_compile_time": False,
        "shape_padding": False,  # on CUDA it times products while it compiles, so that runs would round differently
        "cpp_cache_precompile_headers": can_precompile_header(),
    }
    if num_processes > 1 and device_type == "cuda" and hasattr(config, "deterministic"):
        # Each process times kernels, and those that it may choose from for a reduction add in different orders.
        options["deterministic"] = True
    if device_type == "cpu" and (onednn_pass := _onednn_pass()) is not None:
        options["post_grad_custom_post_pass"] = onednn_pass
    return options


@functools.cache
def _onednn_pass() -> Any:
    """The pass that computes matrix products with oneDNN, or None if this processor or torch does not support it."""
    try:
        from saltus.device.onednn import UseOneDNN
    except Exception as error:  # a torch with other internals; the pass is only an optimization
        warn_once(
            f"torch {torch.__version__} lacks an internal that saltus uses, so matrix products run in torch's default "
            f"library instead of oneDNN, up to two times slower: {_first_line(error)}"
        )
        return None
    return UseOneDNN() if UseOneDNN.available() else None


def _make_placeholders(traced: fx.GraphModule) -> list[Tensor]:
    """Turn the tensors that a traced function captured into its first inputs; return them.

    Tensors that share memory become one input, so that reads see writes through either.
    """
    graph, captured = traced.graph, set[str]()
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
        captured.add(str(node.target))
    for name in captured:  # Inductor copies the module, and a tensor with a gradient's history cannot be copied
        delattr(traced, name)
    traced.recompile()
    return [tensor for _, tensor in inputs.values()]


def flatten(batch: TensorDict) -> tuple[list[Any], list[Tensor]]:
    """Keys and values of a batch's entries, in the order in which traced graphs take them."""
    items = list(batch.items(include_nested=True, leaves_only=True))
    return [key for key, _ in items], [value for _, value in items]


def _unflatten(items: Mapping[Any, Tensor], batch_size: torch.Size) -> TensorDict:
    result = TensorDict({}, batch_size=batch_size)
    for key, value in items.items():
        result.set(key, value)
    return result


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__

"""Compiles a preset's updates for an H100 on a machine without a GPU: ``python compile_for_cuda.py PRESET TASK``.

Inductor writes CUDA code for the traced updates and Triton compiles each kernel to machine code for sm_90. Neither
needs a device, but both ask for its properties, so this program replaces the functions that they ask. It changes torch
for the whole process: run it in one of its own.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import torch
import torch._inductor
from torch import Tensor, fx

from pipeline import presets
from pipeline.warmup import make_learner

CUDA = torch.device("cuda", 0)
H100 = types.SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132, total_memory=85 * 10**9,
    regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, max_threads_per_block=1024, warp_size=32,
    L2_cache_size=50 * 2**20, shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472,
    shared_memory_per_block=49152, gcnArchName="",
)  # fmt: skip


class _TracedError(Exception):
    """Ends a compilation once the update is traced."""


def traced_updates(preset: str, task: str) -> list[tuple[fx.GraphModule, list[Tensor], dict[str, Any]]]:
    """The traced updates of a preset, as on CUDA, with their inputs and the options of their compilation."""
    learner, batch = make_learner(presets.preset(preset, task, device="cpu"))
    loss = learner.agent.loss
    loss.deactivate_vmap = False  # CUDA applies the critics as one batch
    loss._make_vmap()
    found: list[tuple[fx.GraphModule, list[Tensor], dict[str, Any]]] = []

    def keep(traced: fx.GraphModule, inputs: list[Tensor], options: dict[str, Any], **_others: Any) -> None:
        found.append((traced, inputs, options["config_patches"]))
        raise _TracedError

    torch._inductor.standalone_compile = keep  # type: ignore[assignment]
    for update in learner.compiled_updates:
        try:
            update._compile(batch)
        except _TracedError:
            continue
        raise AssertionError("the update was not compiled by standalone_compile")
    return found


def move_to_cuda(traced: fx.GraphModule) -> None:
    """Let a traced graph make its new tensors on CUDA."""
    for node in traced.graph.nodes:
        if node.op == "call_function":
            node.kwargs = {
                name: CUDA if name == "device" and one is not None else one for name, one in node.kwargs.items()
            }
            node.args = fx.node.map_aggregate(node.args, lambda one: CUDA if isinstance(one, torch.device) else one)
        node.meta.pop("val", None)
        node.meta.pop("tensor_meta", None)
    traced.recompile()


def pretend_h100() -> list[str]:
    """Replace what Inductor and Triton ask of a GPU; return the list that receives the names of compiled kernels."""
    import torch._inductor.fx_passes.joint_graph as joint_graph
    import torch.utils._triton as triton_support
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor import async_compile
    from torch._inductor.runtime import triton_helpers
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend
    from triton.runtime.driver import driver

    target = GPUTarget("cuda", 90, 32)
    for interface in (CudaInterface, CudaInterface.Worker):
        interface.get_device_properties = staticmethod(lambda device=None: H100)
        interface.current_device = staticmethod(lambda: 0)
    CudaInterface.is_available = staticmethod(lambda: True)
    CudaInterface.get_compute_capability = staticmethod(lambda device=None: 90)
    CudaInterface.device_count = staticmethod(lambda: 1)
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch.cuda.get_device_properties = lambda device=None: H100
    torch.cuda.current_device = lambda: 0
    torch.cuda.device_count = lambda: 1
    triton_support.triton_backend = lambda: make_backend(target)
    for module in [one for one in sys.modules.values() if getattr(one, "__name__", "").startswith("torch.")]:
        if callable(getattr(module, "has_triton", None)):
            module.has_triton = lambda *_: True
    driver._active = driver._default = types.SimpleNamespace(
        get_current_target=lambda: target,
        get_active_torch_device=lambda: CUDA,
        get_current_device=lambda: 0,
        get_current_stream=lambda device=None: 0,
    )
    triton_helpers.set_driver_to_gpu = lambda: None
    compiled: list[str] = []

    def compile_kernel(_self: Any, name: str, source: str, device_str: str = "cuda") -> Any:
        kernel = async_compile._load_triton_kernel_from_source(name, source)
        kernel.precompile(warm_cache_only=True)
        assert kernel.compile_results, f"Triton compiled nothing for {name}"
        compiled.append(name)
        return kernel

    async_compile.AsyncCompile.triton = compile_kernel
    deduce = joint_graph.UniformValueConstantFolder._deduce_value

    def deduce_on_cpu(self: Any, node: fx.Node) -> Any:
        """Fold constants, which makes real tensors, on the CPU."""
        before = node.kwargs
        if "device" in before:
            node.kwargs = {**before, "device": torch.device("cpu")}
        try:
            return deduce(self, node)
        finally:
            node.kwargs = before

    joint_graph.UniformValueConstantFolder._deduce_value = deduce_on_cpu
    return compiled


def compile_for_cuda(traced: fx.GraphModule, inputs: list[Tensor], options: dict[str, Any]) -> None:
    """Compile a traced update with Inductor, for inputs on CUDA."""
    from torch._inductor.compile_fx import compile_fx
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    move_to_cuda(traced)
    mode = FakeTensorMode(shape_env=ShapeEnv())
    with mode:
        fakes = [torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device=CUDA) for one in inputs]
    on_cuda = {name: value for name, value in options.items() if name != "post_grad_custom_post_pass"}
    patches = {**on_cuda, "compile_threads": 1, "fx_graph_cache": False}
    context = torch._guards.TracingContext(mode)
    with torch.no_grad(), torch._guards.tracing(context), torch._functorch.config.patch("enable_autograd_cache", False):
        compile_fx(traced, fakes, config_patches=patches, ignore_shape_env=True)


if __name__ == "__main__":
    updates = traced_updates(*sys.argv[1:3])
    kernels = pretend_h100()
    for update in updates:
        compile_for_cuda(*update)
    print(f"compiled {len(updates)} updates with {len(kernels)} kernels")

"""Compiles the Warp kernels of tasks for an H100 without a GPU: ``python compile_warp_for_cuda.py PREFIX TASK ...``.

The tasks' worlds are made, reset and stepped on Warp's CPU device, which mujoco_warp takes for a GPU. Launches are
recorded instead of run. NVRTC, which Warp contains, then compiles the recorded kernels to machine code for sm_90, which
needs no device. PREFIX begins the names of the modules to compile; "" compiles all. Code that is in Warp's cache is not
compiled again. This program changes Warp for the whole process: run it in one of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import envs
from envs.physics.warp_model import modules

ARCHITECTURE = 90
WITHOUT_NVRTC = "the installed warp-lang contains no NVRTC"
WORLDS = (64, 4096)  # some kernels depend on the number of worlds
Variant = tuple[Any, int]  # a module of Warp, and the number of threads in a block


class _PretendedGpu:
    """Warp's CPU device with the properties of an H100."""

    is_cuda, is_cpu, sm_count, arch = True, False, 132, ARCHITECTURE
    max_shared_memory_per_block = 232448

    def __init__(self, device: Any):
        self._device = device

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)


def pretend_gpu(wp: Any) -> None:
    """Let mujoco_warp, but not Warp itself, see a GPU."""

    def wrap(find: Callable[..., Any]) -> Callable[..., Any]:
        return lambda name=None: find(name._device if isinstance(name, _PretendedGpu) else name)

    runtime, get_device = wp._src.context.runtime, wrap(wp.get_device)

    def get_device_for_caller(name: Any = None) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        return _PretendedGpu(get_device(name)) if caller.startswith("mujoco_warp") else get_device(name)

    runtime.get_device, wp.get_device = wrap(runtime.get_device), get_device_for_caller
    wp.is_conditional_graph_supported = lambda: True


def record_launches(wp: Any) -> dict[tuple[int, int], Variant]:
    """Replace launches; return the variants of modules that later launches will add to."""
    found: dict[tuple[int, int], Variant] = {}

    def note(kernel: Any, block_dim: int | None) -> None:
        threads = block_dim if block_dim is not None and block_dim > 0 else 256
        found[id(kernel.module), threads] = kernel.module, threads

    def launch(kernel: Any, dim: Any, inputs: Any = (), outputs: Any = (), block_dim: Any = None, **_: Any) -> None:
        if 0 in (dim if isinstance(dim, Sequence) else (dim,)):
            return  # Warp launches nothing
        if kernel.is_generic:
            kernel = kernel._add_normalized_overload(kernel.infer_argument_types([*inputs, *outputs]))
        note(kernel, block_dim)

    def launch_tiled(
        kernel: Any, dim: Any, inputs: Any = (), outputs: Any = (), block_dim: Any = 256, **_: Any
    ) -> None:
        launch(kernel, dim, inputs, outputs, block_dim)

    def suggest_block_size(kernel: Any, device: Any = None) -> tuple[int, int]:
        note(kernel, kernel.module.options["block_dim"])
        return 256, 4 * _PretendedGpu.sm_count

    def run_both(condition: Any, on_true: Any = None, on_false: Any = None, **_: Any) -> None:
        for branch in (on_true, on_false):
            if branch is not None:
                branch()

    wp.launch, wp.launch_tiled, wp.get_suggested_block_size = launch, launch_tiled, suggest_block_size
    wp.capture_while = lambda condition, while_body, stream=None, **arguments: while_body(**arguments)
    wp.capture_if = run_both
    return found


def simulate(task: str) -> None:
    """Launch what a training launches: worlds are made, reset and stepped."""
    for worlds in WORLDS:
        env = envs.make(task, worlds, physics="warp", check_task=False)
        env.reset()
        env.step(torch.zeros(worlds, env.action_dim))


def compile_for_cuda(variant: Variant) -> str:
    """Compile a module for `ARCHITECTURE`; return what failed, or an empty string."""
    wp, _ = modules()
    module, threads = variant
    module.get_module_hash(threads)
    name = module.get_module_identifier(block_dim=threads)
    folder = Path(wp.config.kernel_cache_dir, name)
    output = f"{name}.sm{ARCHITECTURE}.cubin"
    try:
        module._compile(None, folder, output, ARCHITECTURE, False, module.resolved_options[threads])
    except Exception as error:
        return f"{module.name}: {error}"
    return "" if (folder / output).stat().st_size else f"{module.name}: NVRTC wrote no code"


def main(prefix: str, *tasks: str) -> None:
    """Compile the kernels of tasks; exit with a message if one fails."""
    wp, _ = modules()
    if not wp._src.context.runtime.core.wp_is_cuda_enabled():
        print(WITHOUT_NVRTC)
        return
    pretend_gpu(wp)
    recorded = record_launches(wp)
    for task in tasks:
        simulate(task)
    variants = [variant for variant in recorded.values() if variant[0].name.startswith(prefix)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        failures = [text for text in pool.map(compile_for_cuda, variants) if text]
    if failures:
        sys.exit("\n".join(failures))
    print(f"compiled {len(variants)} modules")


if __name__ == "__main__":
    main(*sys.argv[1:])

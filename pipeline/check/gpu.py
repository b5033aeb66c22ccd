"""Runs a task's functions as if they were on a GPU: lines that would wait for it, or fail there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from envs import BatchEnv, Task
from envs.drawn_fields import DrawnFields
from envs.function_errors import is_dtype_error, line_of
from envs.state import NameIndex, State
from envs.task_functions import defines, split_start
from pipeline.check.findings import Finding, Findings
from saltus.device.fake_gpu import FakeGpu

# Messages by kind: those of FakeGpu, and two more.
_TEXTS = {
    "numpy": "raise TypeError, because NumPy does not read a GPU's tensors: {}. Use torch's functions",
    "mixed": "mix tensors on the CPU with those on the GPU, and wait or fail: {}. Make tensors with "
    "device=self.qpos0.device, and constant ones in `bind`",
    "generator": "draw random numbers on another device than the generator's, and fail: {}. Pass "
    "device=generator.device",
    "result": "return tensors on the CPU, and fail: {}. Make tensors with device=self.qpos0.device",
    "dtype": "get float32 tensors, and fail: {}. Convert others with .to(self.qpos0), constant tensors in `bind`",
    "read": "would wait for it, and steps could not be a CUDA graph: {}. Use torch.where instead of boolean indexing, "
    ".item(), .tolist() or if",
    "copy": "would copy numbers to it in every step and wait, and steps could not be a CUDA graph: {}. Make tensors "
    "with device=self.qpos0.device; constant ones, and indices in place of lists, in `bind`",
}


def probe_gpu(env: BatchEnv, task: Task) -> Findings:
    """Findings about the task's functions on a GPU, without one.

    Args:
        env: worlds of the task, which have been reset.
        task: another object of the task, with the same options. It is bound as on a GPU.
    """
    gpu = FakeGpu()
    places: dict[str, list[str]] = {kind: [] for kind in _TEXTS}
    for name, call in _calls(env, task, gpu):
        gpu.found.clear()
        refused = False
        try:
            with warnings.catch_warnings(), gpu:
                warnings.simplefilter("ignore")
                results = call()
        except Exception as error:  # of the task's code, which may refuse what it is given here
            place, text = line_of(type(task), error), next(iter(str(error).splitlines()), "")
            if not is_dtype_error(error):
                yield Finding("note", f"not checked for a GPU, from {place} on: {type(error).__name__}: {text}")
                refused = True
            else:
                places["dtype"].append(f"{place} ({name}: {text})")
        else:
            on_cpu = any(isinstance(one, Tensor) and not gpu.holds(one) for one in tree_leaves(results))
            if on_cpu and not gpu.found:
                places["result"].append(name)
        for kind, place in gpu.found:
            if name != "bind" or kind not in ("read", "copy"):  # which runs once
                places[kind].append(f"{place} ({name})")
        if refused:
            break
    for subject, found in places.items():
        if found:
            which = "functions" if subject == "result" else "lines"
            text = _TEXTS[subject].format(", ".join(dict.fromkeys(found)))
            yield Finding("warning", f"on a GPU these {which} {text}")


def _calls(env: BatchEnv, task: Task, gpu: FakeGpu) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The task's functions by name, as calls on states and actions on the GPU."""
    yield "bind", lambda: task.bind(env.task.model, torch.float32, gpu.device)
    start: list[Any] = []

    def reset() -> Any:
        start.append(task.reset(env.num_envs, gpu.generator(0)))
        return start

    yield "reset", reset
    values = {name: gpu.place(value) for name, value in env.state.values().items()}
    if start:
        own = split_start(task, start[0], env.num_envs).own
        values |= {name: value if gpu.holds(value) else gpu.place(value) for name, value in own.items()}
    drawn = {name: gpu.place(env.state.drawn[name]) for name in env.state.drawn}
    worlds = gpu.place(torch.arange(env.num_envs))
    state = State(values, NameIndex(task.model, task.fields), DrawnFields(drawn, worlds, torch.float32))
    action = gpu.place(torch.zeros(env.num_envs, env.action_dim))
    yield "observation", lambda: task.observation(state)
    yield "reward", lambda: task.reward(state, action, state)
    yield "terminated", lambda: task.terminated(state)
    if defines(task, "control"):
        yield "control", lambda: task.control(state, action)
    if defines(task, "advance"):
        yield "advance", lambda: task.advance(state, action, gpu.generator(0))

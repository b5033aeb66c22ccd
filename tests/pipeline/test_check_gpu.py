"""`saltus check` names the lines of a task that would wait for a GPU or fail there, and says what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from check_helpers import Cart

import envs
from envs import Task
from envs.task_ref import find_task
from pipeline.check.gpu import probe_gpu

WEIGHTS = torch.ones(1, 1, dtype=torch.float64)


@torch.no_grad()
def found(task: type[Task], severity: str = "warning") -> list[str]:
    env = envs.make(task, 2, num_threads=1)
    env.reset()
    return [one.text for one in probe_gpu(env, task()) if one.severity == severity]


def reset_to_zeros(self: Task, num_envs: int, _generator: torch.Generator) -> Any:
    return torch.zeros(num_envs, 1, dtype=torch.float64), torch.zeros(num_envs, 1, dtype=torch.float64)


def bind_on_cpu(self: Task, *model: Any) -> None:
    Task.bind(self, *model)
    self.scale = torch.ones(1, 1)


@pytest.mark.parametrize(
    ("functions", "text"),
    [
        (
            {"observation": lambda self, state: torch.from_numpy(np.tanh(state.qpos.numpy()))},
            "on a GPU these lines raise TypeError, because NumPy does not read a GPU's tensors: LINE (observation). "
            "Use torch's functions",
        ),
        (
            {"bind": bind_on_cpu, "observation": lambda self, state: state.qpos * self.scale},
            "on a GPU these lines mix tensors on the CPU with those on the GPU, and wait or fail: LINE (observation). "
            "Make tensors with device=self.qpos0.device, and constant ones in `bind`",
        ),
        (
            {"reset": lambda self, n, g: (self.qpos0 + torch.rand(n, 1, generator=g), self.qvel0.repeat(n, 1))},
            "on a GPU these lines draw random numbers on another device than the generator's, and fail: LINE (reset). "
            "Pass device=generator.device",
        ),
        (
            {"reset": reset_to_zeros},
            "on a GPU these functions return tensors on the CPU, and fail: reset. Make tensors with "
            "device=self.qpos0.device",
        ),
        (
            {"observation": lambda self, state: state.qpos @ WEIGHTS.to(state.qpos.device)},
            "on a GPU these lines get float32 tensors, and fail: LINE (observation: expected m1 and m2 to have the "
            "same dtype, but got: float != double). Convert others with .to(self.qpos0), constant tensors in `bind`",
        ),
        (
            {"reward": lambda self, state, action, after: after.qpos[:, 0] + 0 * len(after.qpos.tolist())},
            "on a GPU these lines would wait for it, and steps could not be a CUDA graph: LINE (reward). Use "
            "torch.where instead of boolean indexing, .item(), .tolist() or if",
        ),
        (
            {"terminated": lambda self, state: state.qpos[:, [0]][:, 0] > 9},
            "on a GPU these lines would copy numbers to it in every step and wait, and steps could not be a CUDA "
            "graph: LINE (terminated). Make tensors with device=self.qpos0.device; constant ones, and indices in place "
            "of lists, in `bind`",
        ),
    ],
)
def test_lines_that_a_gpu_waits_for_or_refuses_are_named(functions: dict[str, Callable[..., Any]], text: str) -> None:
    line = next(reversed(functions.values())).__code__.co_firstlineno
    expected = text.replace("LINE", f"test_check_gpu.py:{line}")
    assert expected in found(type("Planted", (Cart,), functions))


class Constant(Cart):
    """Copies a constant to its device where it is made, once."""

    def bind(self, model: Any, dtype: torch.dtype, device: torch.device) -> None:
        super().bind(model, dtype, device)
        self.scale = torch.tensor([[2.0]]).to(self.qpos0)

    def observation(self, state: Any) -> torch.Tensor:
        return state.qpos @ self.scale


class Own(Cart):
    """Draws a tensor of its own and a model, and renews the tensor."""

    def reset(self, num_envs: int, generator: torch.Generator) -> Any:
        return {"goal": torch.rand(num_envs, 1, generator=generator, device=generator.device)}

    def advance(self, state: Any, action: torch.Tensor, generator: torch.Generator) -> Any:
        return {"goal": torch.where(state.qpos > 1, torch.empty_like(state.goal).uniform_(generator=generator), action)}

    def randomize(self, num_envs: int, generator: torch.Generator) -> Any:
        return envs.draw_fields(self.model, num_envs, generator, envs.scale("body_mass", 0.5, 2))

    def observation(self, state: Any) -> torch.Tensor:
        return torch.cat([state.qpos - state.goal, state.drawn["body_mass"]], dim=-1)


@pytest.mark.parametrize("task", [Constant, Own, find_task("Humanoid-v5")])
def test_tasks_for_a_gpu_have_no_warnings(task: type[Task]) -> None:
    assert found(task) == found(task, "note") == []


def test_functions_that_refuse_the_tensors_are_noted_with_earlier_finds() -> None:
    def observe(_task: Task, state: Any) -> torch.Tensor:
        if state.qpos.dtype != torch.float64:
            raise ValueError("float64 only\nand more")
        return state.qpos

    task = type("Refusing", (Cart,), {"observation": observe, "reset": reset_to_zeros})
    (note,) = found(task, "note")
    line = observe.__code__.co_firstlineno + 2
    assert note == f"not checked for a GPU, from test_check_gpu.py:{line} on: ValueError: float64 only"
    (earlier,) = found(task)
    assert earlier.startswith("on a GPU these functions return tensors on the CPU, and fail: reset.")

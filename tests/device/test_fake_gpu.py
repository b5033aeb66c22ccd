"""FakeGpu finds what waits for a GPU or fails there, and nothing in code that a GPU runs."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from saltus.device.fake_gpu import FakeGpu

CONSTANT = torch.tensor([1.0, 2.0, 3.0])


def fill(x: Tensor, index: Any, value: Any) -> Tensor:
    result = x.clone()
    result[index] = value
    return result


Call = Callable[[Tensor, Generator], Any]


def run(call: Call) -> tuple[Any, FakeGpu]:
    """Call with a tensor (4, 3) and a generator, on the GPU."""
    gpu = FakeGpu()
    x, generator = gpu.place(torch.linspace(0, 2, 12, dtype=torch.float64).reshape(4, 3)), gpu.generator(0)
    with torch.no_grad(), warnings.catch_warnings(), gpu:
        warnings.simplefilter("ignore")  # of NumPy about torch, and of torch about tensors of tensors
        return call(x, generator), gpu


RUNS_ON_GPU: dict[str, Call] = {
    "arithmetic": lambda x, _: torch.cat([x.sin(), 2 * x[:, :1], x.square().sum(-1, keepdim=True)], dim=-1),
    "device": lambda x, _: x + torch.zeros(4, 3, device=x.device),
    "device of a generator": lambda x, g: x + torch.rand(4, 3, generator=g, device=g.device),
    "like": lambda x, _: x + torch.zeros_like(x) + x.new_zeros(3),
    "uniform": lambda x, g: torch.empty_like(x).uniform_(generator=g),
    "number": lambda x, _: torch.maximum(x, torch.tensor(0.5)),
    "NumPy's number": lambda x, _: np.float64(2) * x.clamp(np.float64(0), np.float64(1)),
    "dtype": lambda x, _: x.to(torch.float64).float(),
    "where": lambda x, _: torch.where(x > 0, x, 0.0),
    "number into a mask": lambda x, _: fill(x, x > 0, 0.0),
    "tensor into a slice": lambda x, _: fill(x, (slice(None), 0), x[:, 1]),
    "indices": lambda x, _: x[torch.arange(4, device=x.device), 0],
    "one_hot": lambda x, _: one_hot(x[:, 0].long(), 3),
    "vmap": lambda x, _: torch.vmap(lambda row: row * row.sum())(x),
    "network": lambda x, _: torch.nn.Linear(3, 2, device=x.device)(x),
    "a branch for the CPU": lambda x, _: x.numpy() if x.device.type == "cpu" or x.is_cpu else x.sin(),
    "type_as": lambda x, _: torch.ones_like(x).double().type_as(x),
    "tensor by name": lambda x, _: torch.maximum(x, torch.tensor(data=0.5)),
    "deepcopy": lambda x, _: copy.deepcopy(x) * x,
}


@pytest.mark.parametrize("name", RUNS_ON_GPU)
def test_code_that_a_gpu_runs_has_no_finds(name: str) -> None:
    result, gpu = run(RUNS_ON_GPU[name])
    assert gpu.found == []
    assert gpu.holds(result)


FOUND: list[tuple[str, str, Call]] = [
    ("read", "item", lambda x, _: x[0, 0].item()),
    ("read", "float", lambda x, _: float(x[0, 0])),
    ("read", "if", lambda x, _: 1 if x.max() > 1 else 2),
    ("read", "max", lambda x, _: max(x[0, 0], 0.5)),
    ("read", "math", lambda x, _: math.sin(x[0, 0])),
    ("read", "tolist", lambda x, _: x.tolist()),
    ("read", "cpu", lambda x, _: x.cpu() * CONSTANT),
    ("read", "to", lambda x, _: x.to("cpu") * CONSTANT),
    ("read", "format", lambda x, _: f"{x[0, 0]:.2f}"),
    ("read", "repr", lambda x, _: repr(x)),
    ("read", "mask", lambda x, _: x[x > 0]),
    ("read", "tensors of a list", lambda x, _: torch.tensor([x[0, 0], x[0, 1]])),
    ("read", "allclose", lambda x, _: torch.allclose(x, x)),
    ("read", "eigh", lambda x, _: torch.linalg.eigh(x[:3])),
    ("read", "masked_fill", lambda x, _: x.masked_fill(x > 0, x[0, 0])),
    ("copy", "tensor", lambda x, _: x * torch.tensor([1.0, 2, 3], device=x.device)),
    ("copy", "new_tensor", lambda x, _: x * x.new_tensor([1.0, 2, 3])),
    ("copy", "as_tensor", lambda x, _: x * torch.as_tensor(np.ones(3), device=x.device)),
    ("copy", "to", lambda x, _: x * CONSTANT.to(x)),
    ("copy", "network", lambda x, _: torch.nn.Linear(3, 2).to(x)(x)),
    ("copy", "list of indices", lambda x, _: x[:, [0, 2]]),
    ("copy", "array of indices", lambda x, _: fill(x, (slice(None), np.array([0, 2])), 0.0)),
    ("copy", "CPU tensor of indices", lambda x, _: x[:, torch.tensor([0, 2])]),
    ("copy", "CPU tensor into a slice", lambda x, _: fill(x, (slice(None), 0), torch.zeros(4))),
    ("numpy", "numpy", lambda x, _: x.numpy()),
    ("numpy", "abs", lambda x, _: np.abs(x)),
    ("numpy", "asarray", lambda x, _: np.asarray(x)),
    ("numpy", "linalg", lambda x, _: np.linalg.norm(x, axis=-1)),
    ("numpy", "product", lambda x, _: x * np.ones(3)),
    ("mixed", "constant", lambda x, _: x * CONSTANT),
    ("mixed", "tensor", lambda x, _: x * torch.tensor([1.0, 2, 3])),
    ("mixed", "from_numpy", lambda x, _: x * torch.from_numpy(np.ones(3))),
    ("mixed", "zeros", lambda x, _: torch.cat([x, torch.zeros(4, 1)], dim=-1)),
    ("mixed", "FloatTensor", lambda x, _: torch.FloatTensor([1, 2, 3]) * x),
    ("mixed", "into a CPU tensor", lambda x, _: fill(torch.zeros(4, 3), 0, x[0])),
    ("mixed", "network", lambda x, _: torch.nn.Linear(3, 2)(x)),
    ("mixed", "vmap", lambda x, _: torch.vmap(lambda row: row * CONSTANT)(x)),
    ("generator", "rand", lambda _, g: torch.rand(4, generator=g)),
    ("generator", "uniform", lambda _, g: torch.empty(4).uniform_(generator=g)),
    ("generator", "of the CPU", lambda x, _: torch.empty_like(x).normal_(generator=Generator())),
]


@pytest.mark.parametrize(
    ("kind", "call"), [pytest.param(kind, call, id=f"{kind} {name}") for kind, name, call in FOUND]
)
def test_what_a_gpu_waits_for_or_refuses_is_found_with_its_line(kind: str, call: Call) -> None:
    _, gpu = run(call)
    assert {found for found, _ in gpu.found} == {kind}
    assert all(place.startswith(f"{Path(__file__).name}:") for _, place in gpu.found)


def test_numbers_that_come_back_from_numpy_are_read_and_copied() -> None:
    result, gpu = run(lambda x, _: torch.from_numpy(np.sin(x.cpu().numpy())).to(x.device))
    assert [kind for kind, _ in gpu.found] == ["read", "copy"]
    assert gpu.holds(result)

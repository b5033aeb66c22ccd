"""The oneDNN pass: which products it replaces, and that they stay equal within rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from update_helpers import Regression, make_batch

from saltus.device import multiplies_bfloat16
from saltus.device.compiled_update import CompiledUpdate
from saltus.device.onednn import UseOneDNN

pytestmark = [
    pytest.mark.skipif(not UseOneDNN.available(), reason="no oneDNN on this machine"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]
ONEDNN = {"saltus.matmul.default"}
convert = torch.ops.prims.convert_element_type.default


def apply_pass(function: Callable[..., Tensor], *tensors: Tensor) -> fx.GraphModule:
    traced: fx.GraphModule = make_fx(function, tracing_mode="fake")(*tensors)
    UseOneDNN()(traced.graph)
    traced.graph.lint()
    traced.recompile()
    return traced


def products(function: Callable[..., Tensor], *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> set[str]:
    """The products that a function computes after the pass, on random tensors; asserts that results stay equal."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes]
    traced = apply_pass(function, *tensors)
    exact = function(*(tensor.double() for tensor in tensors)).double()
    tolerance = (2e-6 if dtype != torch.bfloat16 else 2**-8) * exact.abs().max().item()
    torch.testing.assert_close(traced(*tensors).double(), exact, rtol=0, atol=tolerance)
    torch.testing.assert_close(function(*tensors).double(), exact, rtol=0, atol=tolerance)
    names = {str(node.target) for node in traced.graph.nodes}
    return {name for name in names if "mm" in name or "matmul" in name}


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        pytest.param(lambda x, w: x @ w, [(64, 8), (8, 64)], id="mm"),
        pytest.param(lambda x, w: x @ w.t(), [(256, 17), (256, 17)], id="transposed right"),
        pytest.param(lambda x, g: x.t() @ g, [(100, 65), (100, 77)], id="transposed left"),
        pytest.param(lambda x, g: x.t() @ g.t(), [(100, 65), (77, 100)], id="both transposed"),
        pytest.param(lambda x, w: x[::2, 1:] @ w, [(200, 31), (30, 80)], id="strided"),
        pytest.param(lambda x, g: x.t() @ g, [(256, 256), (256, 8)], id="thin"),
        pytest.param(lambda x, w: (x @ w)[:, 20:35], [(256, 256), (256, 80)], id="some columns"),
        pytest.param(
            lambda x, w, b: torch.nn.functional.linear(x, w, b).relu(), [(64, 30), (80, 30), (80,)], id="relu"
        ),
        pytest.param(lambda x, w, b: torch.nn.functional.linear(x, w, b), [(64, 30), (80, 30), (80,)], id="linear"),
        pytest.param(lambda x, w, b: torch.addmm(b, x, w), [(64, 30), (30, 80), (80,)], id="addmm"),
        pytest.param(lambda x, v, w: (x @ v).relu() @ w, [(64, 64), (64, 64), (64, 64)], id="two"),
    ],
)
def test_large_products_use_onednn(function: Callable[..., Tensor], shapes: list[tuple[int, ...]]) -> None:
    assert products(function, *shapes) == ONEDNN


def test_bfloat16_products_use_onednn() -> None:
    shapes = [(64, 65), (65, 80)]
    assert products(lambda x, w: x @ w, *shapes, dtype=torch.bfloat16) == ONEDNN
    assert products(lambda x, w: convert(x @ w, torch.float32)[:, 20:35], *shapes, dtype=torch.bfloat16) == ONEDNN


@pytest.mark.parametrize("shapes", [[(63, 8), (8, 64)], [(64, 7), (7, 99)], [(99, 99), (99, 7)], [(7, 99), (99, 99)]])
def test_small_products_are_unchanged(shapes: list[tuple[int, int]]) -> None:
    assert products(lambda x, w: x @ w, *shapes) == {"aten.mm.default"}


def test_outer_products_become_multiplications() -> None:
    assert products(lambda x, w: x @ w, (256, 1), (1, 256)) == set()
    assert products(lambda x, w, b: torch.addmm(b, x, w), (256, 1), (1, 256), (256,)) == {"aten.addmm.default"}


def test_only_columns_that_are_read_are_computed() -> None:
    def shapes(function: Callable[..., Tensor]) -> list[tuple[int, ...]]:
        tensors = [torch.randn(64, 32), torch.randn(32, 90)]
        traced = apply_pass(function, *tensors)
        torch.testing.assert_close(traced(*tensors), function(*tensors))
        return [tuple(node.meta["val"].shape) for node in traced.graph.nodes if "matmul" in str(node.target)]

    assert shapes(lambda x, w: (x @ w)[:, 30:50]) == [(64, 20)]
    assert shapes(lambda x, w: convert(x @ w, torch.float64)[:, 30:50]) == [(64, 20)]
    assert shapes(lambda x, w: convert(y := x @ w, torch.float64)[:, 30:50] + y.sum()) == [(64, 90)]
    assert shapes(lambda x, w: (y := convert(x @ w, torch.float64))[:, 30:50] + y.sum()) == [(64, 90)]
    assert shapes(lambda x, w: (x @ w)[:, 30:50] + (x @ w)[:, 70:]) == [(64, 20), (64, 20)]
    assert shapes(lambda x, w: (x @ w)[:, 1::2]) == [(64, 90)]
    assert shapes(lambda x, w: (x @ w)[3:]) == [(64, 90)]
    assert shapes(lambda x, w: (y := x @ w)[:, :9] + y.sum()) == [(64, 90)]


def test_other_products_are_unchanged() -> None:
    large = [(64, 64), (64, 64)]
    assert products(lambda x, w: x @ w, *large, dtype=torch.float64) == {"aten.mm.default"}
    assert products(lambda b, x, w: torch.addmm(b, x, w), (64, 64), *large) == {"aten.addmm.default"}
    assert products(lambda b, x, w: torch.addmm(b, x, w, beta=2, alpha=0.5), (64,), *large) == {"aten.addmm.default"}
    assert products(lambda x, w: x @ w[:, 1:], (64, 64), (64, 80)) == {"aten.mm.default"}, "dense in no memory order"
    assert products(lambda x, w: torch.bmm(x, w), (3, 64, 64), (3, 64, 64)) == {"aten.bmm.default"}


@pytest.mark.slow
def test_compiled_update_calls_onednn_for_large_products_only() -> None:
    regression = Regression(width=64)
    weight = torch.randn(64, 64)

    def wide(batch: TensorDict) -> dict[str, Tensor]:
        return {"product": torch.relu(batch["observation"]) @ weight} | regression.update(batch)

    batch = make_batch(rows=64, width=64)
    update = CompiledUpdate(wide, regression.state)
    update(batch)
    with torch.profiler.profile() as profile:
        found = update(batch)["product"]
    assert sum(event.name == "mkldnn::_linear_pointwise" for event in profile.events()) == 1
    torch.testing.assert_close(found, torch.relu(batch["observation"]) @ weight, rtol=1e-5, atol=1e-4)


def test_instructions_for_bfloat16_are_those_of_the_processor() -> None:
    words = {word for line in Path("/proc/cpuinfo").read_text().splitlines() for word in line.split()}
    assert multiplies_bfloat16() == bool(words & {"avx512_bf16", "amx_tile"})

"""Matrix products by oneDNN instead of MKL, within compiled graphs.

PyTorch gives float32 matrix products on x86 to MKL, which on processors that are not Intel's does without AVX-512.
oneDNN, which PyTorch carries as well, uses what the processor has: twice as fast on an AMD EPYC, in the same precision.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor, fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

_SMALLEST = (64, 8, 64)  # rows, summed dimension and columns; below, MKL's calls are cheaper
_library = torch.library.Library("saltus", "DEF")
_library.define("matmul(Tensor left, Tensor right, Tensor? bias) -> Tensor")


def _matmul(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(left, right.t(), bias, "none", [], "")


def _shape(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    return left.new_empty(left.shape[0], right.shape[1])


_library.impl("matmul", _matmul, "CPU")
_library.impl("matmul", _shape, "Meta")


class UseOneDNN(CustomGraphPass):
    """Inductor's pass that replaces mm and addmm (with a bias for each column) of float32."""

    @staticmethod
    def available() -> bool:
        """Whether this PyTorch has oneDNN on x86."""
        return torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")

    def __call__(self, graph: fx.Graph) -> None:
        aten = torch.ops.aten
        for node in graph.nodes:
            if node.target not in (aten.mm.default, aten.addmm.default) or node.kwargs:
                continue
            *bias, left, right = node.args
            if any(argument.meta["val"].dim() != 1 for argument in bias) or not _large(left, right):
                continue
            node.target = torch.ops.saltus.matmul.default
            node.args = (left, right, bias[0] if bias else None)

    def uuid(self) -> bytes:
        """Identifies the pass in the cache of compiled graphs."""
        return get_hash_for_files((__file__,))


def _large(left: fx.Node, right: fx.Node) -> bool:
    rows, summed = left.meta["val"].shape
    sizes = rows, summed, right.meta["val"].shape[1]
    return left.meta["val"].dtype == torch.float32 and all(
        size >= least for size, least in zip(sizes, _SMALLEST, strict=True)
    )

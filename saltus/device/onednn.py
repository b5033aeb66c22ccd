"""An Inductor pass that computes matrix products with oneDNN instead of MKL, and removes needless ones.

On x86, PyTorch computes float32 matrix products with MKL, which uses AVX-512 on Intel processors only. oneDNN, which
PyTorch contains too, uses it everywhere: twice as fast on an AMD EPYC, at the same precision.

Importing this module requires internals of Inductor that another version of torch may lack.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, fx
from torch._inductor import ir
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch._inductor.lowering import register_lowering

# oneDNN's calls cost more than MKL's below these limits.
_MIN_SIZE = 8  # of each of rows, summed dimension and columns
_MIN_WORK = 64 * 8 * 64  # rows * summed dimension * columns
_DTYPES = torch.float32, torch.bfloat16
_aten = torch.ops.aten
_convert = torch.ops.prims.convert_element_type.default
_library = torch.library.Library("saltus", "DEF")
# activation(left @ right.T + bias), with activation "none" or "relu".
_library.define("matmul(Tensor left, Tensor right, Tensor? bias, str activation) -> Tensor")


def _matmul(left: Tensor, right: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(left, right, bias, activation, [], "")


def _shape(left: Tensor, right: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return left.new_empty(left.shape[0], right.shape[0])


_library.impl("matmul", _matmul, "CPU")
_library.impl("matmul", _shape, "Meta")


@register_lowering(torch.ops.saltus.matmul.default, type_promotion_kind=None)
def _lower(left: Any, right: Any, bias: Any, activation: str) -> Any:
    """Lower to oneDNN's kernel. It reads a right factor of either memory order, but would copy a strided left one."""
    kernel = torch.ops.mkldnn._linear_pointwise.default
    left = ir.ExternKernel.require_contiguous(ir.ExternKernel.realize_input(left))
    return ir.TensorBox.create(ir.FallbackKernel.create(kernel, left, right, bias, activation, [], ""))


class UseOneDNN(CustomGraphPass):
    """An Inductor pass over a graph's float32 and bfloat16 products (mm, and addmm with a bias per column).

    It computes only the columns that are read, turns outer products into multiplications, which Inductor fuses, and
    replaces other products by oneDNN's where that is faster.
    """

    @staticmethod
    def available() -> bool:
        """Whether this PyTorch has oneDNN on x86."""
        return torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")

    def __call__(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.target not in (_aten.mm.default, _aten.addmm.default) or node.kwargs:
                continue
            if any(factor.meta["val"].dtype not in _DTYPES for factor in node.args):
                continue
            if node.target == _aten.mm.default:
                node = _narrow(node)
            *bias, left, right = node.args
            if not bias and left.meta["val"].shape[1] == 1:
                _replace(node, _aten.mul.Tensor, left, right)
            elif all(argument.meta["val"].dim() == 1 for argument in bias) and _onednn_is_faster(left, right):
                _to_onednn(node, left, right, *bias)

    def uuid(self) -> bytes:
        """Identify the pass in Inductor's cache of compiled graphs."""
        return get_hash_for_files((__file__,))


def _onednn_is_faster(left: fx.Node, right: fx.Node) -> bool:
    rows, summed = left.meta["val"].shape
    columns = right.meta["val"].shape[1]
    dense = right.meta["val"].is_contiguous() or right.meta["val"].t().is_contiguous()  # oneDNN copies other layouts
    return dense and min(rows, summed, columns) >= _MIN_SIZE and rows * summed * columns >= _MIN_WORK


def _narrow(product: fx.Node) -> fx.Node:
    """Compute only the columns of a product that are read, if one slice of them is (the gradient of a cat).

    The dtype may change between product and slice. Returns the product that is left.
    """
    converted = _only_user(product)
    if converted is not None and converted.target != _convert:
        converted = None
    user = _only_user(converted or product)
    if user is None or user.target != _aten.slice.Tensor or user.args[1:2] != (1,) or len(user.args) != 4:
        return product
    left, right = product.args
    columns = _insert(user, _aten.slice.Tensor, right, *user.args[1:])
    columns = _insert(user, _aten.clone.default, columns, memory_format=torch.contiguous_format)
    result = _insert(user, _aten.mm.default, left, columns)
    user.replace_all_uses_with(result if converted is None else _insert(user, _convert, result, converted.args[1]))
    for node in (user, converted, product):
        if node is not None:
            product.graph.erase_node(node)
    return result


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _to_onednn(product: fx.Node, left: fx.Node, right: fx.Node, bias: fx.Node | None = None) -> None:
    """Replace a product, and its ReLU if nothing else reads the product."""
    activation, last, user = "none", product, _only_user(product)
    if bias is not None and user is not None and user.target == _aten.relu.default:
        activation, last = "relu", user
    matmul = torch.ops.saltus.matmul.default
    columns = _insert(last, _aten.permute.default, right, [1, 0])
    if bias is None and not _contiguous(left) and _numel(right) < _numel(left):
        transposed = _insert(last, matmul, columns, left, None, activation)  # copies the smaller factor
        _replace(last, _aten.permute.default, transposed, [1, 0])
    else:
        _replace(last, matmul, left, columns, bias, activation)
    if last is not product:
        product.graph.erase_node(product)


def _contiguous(node: fx.Node) -> bool:
    return node.meta["val"].is_contiguous()


def _numel(node: fx.Node) -> int:
    return node.meta["val"].numel()


def _insert(before: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    with before.graph.inserting_before(before):
        node = before.graph.call_function(target, args, kwargs)
    values = [argument.meta["val"] if isinstance(argument, fx.Node) else argument for argument in args]
    node.meta["val"] = target(*values, **kwargs)
    return node


def _replace(node: fx.Node, target: Any, *args: Any) -> fx.Node:
    result = _insert(node, target, *args)
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)
    return result

"""An Inductor pass: matrix products of compiled graphs by oneDNN instead of MKL, and fewer of them.

PyTorch gives float32 matrix products on x86 to MKL, which does not use AVX-512 on processors of other makers than
Intel.
oneDNN, which PyTorch also contains, uses it: twice as fast on an AMD EPYC, at the same precision.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, fx
from torch._inductor import ir
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch._inductor.lowering import register_lowering

_SMALLEST = 8  # rows, summed dimension and columns, and
_LEAST_WORK = 64 * 8 * 64  # their product; below, oneDNN's calls cost more than MKL's
_DTYPES = torch.float32, torch.bfloat16
_aten = torch.ops.aten
_convert = torch.ops.prims.convert_element_type.default
_library = torch.library.Library("saltus", "DEF")
# left @ right.T + bias, then "none" or "relu".
_library.define("matmul(Tensor left, Tensor right, Tensor? bias, str then) -> Tensor")


def _matmul(left: Tensor, right: Tensor, bias: Tensor | None, then: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(left, right, bias, then, [], "")


def _shape(left: Tensor, right: Tensor, bias: Tensor | None, then: str) -> Tensor:
    return left.new_empty(left.shape[0], right.shape[0])


_library.impl("matmul", _matmul, "CPU")
_library.impl("matmul", _shape, "Meta")


@register_lowering(torch.ops.saltus.matmul.default, type_promotion_kind=None)
def _lower(left: Any, right: Any, bias: Any, then: str) -> Any:
    """A call of oneDNN, which reads a right factor of either order as it is, and would itself copy the left one."""
    kernel = torch.ops.mkldnn._linear_pointwise.default
    left = ir.ExternKernel.require_contiguous(ir.ExternKernel.realize_input(left))
    return ir.TensorBox.create(ir.FallbackKernel.create(kernel, left, right, bias, then, [], ""))


class UseOneDNN(CustomGraphPass):
    """Inductor's pass over the matrix products (mm, and addmm with a bias for each column) of a graph.

    Of float32 and bfloat16 products it leaves those columns alone that nobody reads, makes outer products
    multiplications, which fuse with what follows, and gives the others to oneDNN where that pays.
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
                node = _narrowed(node)
            *bias, left, right = node.args
            if not bias and left.meta["val"].shape[1] == 1:
                _replace(node, _aten.mul.Tensor, left, right)
            elif all(argument.meta["val"].dim() == 1 for argument in bias) and _worth_it(left, right):
                _to_onednn(node, left, right, *bias)

    def uuid(self) -> bytes:
        """Identifies the pass in the cache of compiled graphs."""
        return get_hash_for_files((__file__,))


def _worth_it(left: fx.Node, right: fx.Node) -> bool:
    rows, summed = left.meta["val"].shape
    columns = right.meta["val"].shape[1]
    dense = right.meta["val"].is_contiguous() or right.meta["val"].t().is_contiguous()  # else there is no fast way
    return dense and min(rows, summed, columns) >= _SMALLEST and rows * summed * columns >= _LEAST_WORK


def _narrowed(product: fx.Node) -> fx.Node:
    """A product of which one slice of columns is read (the gradient of a cat), as the product of that slice.

    Between product and slice the dtype may change.
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
    """Replace a product, and the ReLU after it where nothing else reads it."""
    then, last, user = "none", product, _only_user(product)
    if bias is not None and user is not None and user.target == _aten.relu.default:
        then, last = "relu", user
    matmul = torch.ops.saltus.matmul.default
    columns = _insert(last, _aten.permute.default, right, [1, 0])
    if bias is None and not _contiguous(left) and _numel(right) < _numel(left):
        transposed = _insert(last, matmul, columns, left, None, then)  # copies the smaller factor
        _replace(last, _aten.permute.default, transposed, [1, 0])
    else:
        _replace(last, matmul, left, columns, bias, then)
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

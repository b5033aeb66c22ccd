"""FakeGpu: runs functions on the CPU as if their tensors were on a GPU, and finds what would wait or fail there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from saltus.device.synchronizations import INDEXING, calling_line, synchronizes

Kind = Literal["read", "copy", "numpy", "mixed", "generator"]

_MODULE_TO = torch.nn.Module.to
_NUMPY: tuple[Any, ...] = (Tensor.numpy, Tensor.__array__)
_READS = frozenset({Tensor.tolist, Tensor.__repr__})
_CLONES = frozenset({Tensor.cuda, Tensor.__deepcopy__})
_MOVES = frozenset({Tensor.to, Tensor.type_as, Tensor.cpu, Tensor.cuda})
_COPIES = _MOVES | {Tensor.new_tensor, torch.tensor, torch.as_tensor, torch.asarray}


class FakeGpu(TorchFunctionMode):
    """Within it, tensors of `place` and results computed from them say that they are on `device`; others are not.

    They are on the CPU and have values there, so that functions run to their end, whatever a GPU would refuse.

    Attributes:
        device: the device of the tensors.
        found: what was found: a kind, and the ``file:line`` of the call.

            - ``"read"``: the host waits for values of the GPU.
            - ``"copy"``: the host copies numbers to the GPU, and waits.
            - ``"numpy"``: NumPy's functions refuse a tensor on a GPU.
            - ``"mixed"``: one operation has tensors on both devices.
            - ``"generator"``: random numbers are drawn on another device than the generator's.
    """

    device = torch.device("cuda", 0)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Kind, str]] = []
        self._storages: dict[int, torch.UntypedStorage] = {}  # on the GPU; held, so that no other gets their addresses
        self._operations = _Operations(self)
        self._on_gpu = False  # the present call has tensors on the GPU
        self._waits_on_cpu_only = False  # it reads values that it does not read on a GPU

    def __enter__(self) -> FakeGpu:
        super().__enter__()
        self._operations.__enter__()
        torch.nn.Module.to = self._module_to  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *error: Any) -> None:
        torch.nn.Module.to = _MODULE_TO  # type: ignore[method-assign]
        self._operations.__exit__(*error)
        super().__exit__(*error)

    @property
    def _module_to(self) -> Callable[..., torch.nn.Module]:
        """Module.to, which reads the device of a tensor argument in C++."""

        def to(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
            like = kwargs.pop("tensor", args[0] if args else None)
            if isinstance(like, Tensor):
                args = (self.device if self.holds(like) else like.device, like.dtype)
            return _MODULE_TO(module, *args, **kwargs)

        return to

    def place(self, value: Tensor) -> Tensor:
        """A copy on the GPU, in single precision if it is floating-point."""
        copy = value.detach().to(torch.float32, copy=True) if value.is_floating_point() else value.detach().clone()
        self._move(copy, to_gpu=True)
        return copy

    def generator(self, seed: int) -> torch.Generator:
        """A generator on the GPU."""
        return _Generator().manual_seed(seed)

    def holds(self, value: Any) -> bool:
        """Whether a tensor is on the GPU."""
        return _storage(value) in self._storages

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _PROPERTIES and self.holds(args[0]):
            return _PROPERTIES[func]
        if func in _NUMPY and self.holds(args[0]):
            self._find("numpy")
        elif func in _READS and self.holds(args[0]):
            self._find("read")
        elif func in (Tensor.__getitem__, Tensor.__setitem__) and self.holds(args[0]) and _has_list(args[1]):
            self._find("copy")
        args, kwargs, to_gpu = self._on_cpu(func, args, kwargs)
        self._on_gpu = any(map(self.holds, tree_leaves((args, kwargs))))
        self._waits_on_cpu_only = _waits_on_cpu_only(func, args, kwargs)
        try:
            result = args[0].clone() if func in _CLONES else func(*args, **kwargs)
        finally:
            self._on_gpu = self._waits_on_cpu_only = False
        if func in _COPIES:
            result = self._copied(func, args, kwargs, result, to_gpu)
        elif to_gpu is not None:
            self._move(result, to_gpu)
        for one in (*args, *kwargs.values()):
            if isinstance(one, torch.Generator) and isinstance(one, _Generator) != self.holds(result):
                self._find("generator")
                self._move(result, to_gpu=True)
        return result

    def _on_cpu(self, func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any], bool | None]:
        """Arguments that name the CPU instead of the GPU, and whether they named it; None: they name no device."""
        to_gpu = {Tensor.cpu: False, Tensor.cuda: True}.get(func)
        if func in (Tensor.to, Tensor.type_as):
            for one in (*args[1:], kwargs.get("other")):
                if isinstance(one, Tensor):
                    to_gpu = self.holds(one)
                elif isinstance(one, torch.device | str):
                    to_gpu = torch.device(one).type == "cuda"
            args = [args[0], *("cpu" if isinstance(one, torch.device | str) else one for one in args[1:])]
        if kwargs.get("device") is not None:
            to_gpu = torch.device(kwargs["device"]).type == "cuda"
            kwargs["device"] = "cpu"
        return args, kwargs, to_gpu

    def _copied(self, func: Any, args: Any, kwargs: dict[str, Any], result: Tensor, to_gpu: bool | None) -> Tensor:
        """The result of one of `_COPIES`, on its device."""
        data = args[0] if func in _MOVES else (*args, *(kwargs[name] for name in ("data", "obj") if name in kwargs))[-1]
        from_gpu = self.holds(data)
        if to_gpu is None:
            to_gpu = self.holds(args[0]) if func is Tensor.new_tensor else from_gpu
        if not isinstance(data, Tensor) and any(map(self.holds, tree_leaves(data))):
            self._find("read")
        if to_gpu != from_gpu:
            self._find("copy" if to_gpu else "read")
            if _storage(result) == _storage(data):
                result = result.clone()
        self._move(result, to_gpu)
        return result

    def _move(self, value: Any, to_gpu: bool) -> None:
        key = _storage(value)
        if key is not None and to_gpu:
            self._storages[key] = value.untyped_storage()
        elif key is not None:
            self._storages.pop(key, None)

    def _find(self, kind: Kind) -> None:
        self.found.append((kind, calling_line()))

    def _after(self, operation: str, args: Any, tensors: list[Tensor], results: list[Any]) -> None:
        """Judge an operation on `tensors`, and place its results."""
        if not any(map(self.holds, tensors)) and not (self._on_gpu and not tensors):
            return
        if synchronizes(operation, args) and not self._waits_on_cpu_only:
            self._find("read")
        on_cpu = [one for one in tensors if one.dim() and _storage(one) is not None and not self.holds(one)]
        if on_cpu:
            self._find(self._kind_of_mixture(operation.partition(".")[0], args, on_cpu))
        given = set(map(_storage, tensors))
        for one in results:
            if isinstance(one, Tensor) and _storage(one) not in given:
                self._move(one, to_gpu=True)

    def _kind_of_mixture(self, name: str, args: Any, on_cpu: list[Tensor]) -> Kind:
        """The kind of an operation on tensors of both devices, of which `on_cpu` are on the CPU."""
        if name == "copy_":
            return "copy" if self.holds(args[0]) else "mixed"
        only_indices = name in INDEXING and all(any(one is index for index in args[1]) for one in on_cpu)
        return "copy" if only_indices else "mixed"


class _Operations(TorchDispatchMode):
    """Shows a FakeGpu every operation, in Python and in torch's C++ alike."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        self._gpu._after(str(func).removeprefix("aten."), args, tensors, tree_leaves(result))
        return result


class _Generator(torch.Generator):
    """A generator on the CPU that says it is on the GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return FakeGpu.device


_PROPERTIES = {
    Tensor.device.__get__: FakeGpu.device,
    Tensor.is_cuda.__get__: True,  # type: ignore[attr-defined]
    Tensor.is_cpu.__get__: False,  # type: ignore[attr-defined]
    Tensor.get_device: FakeGpu.device.index,
}


def _storage(value: Any) -> int | None:
    """The address of a tensor's storage; None: not a tensor, or one of torch.func, which has none."""
    try:
        return value.untyped_storage()._cdata if isinstance(value, Tensor) else None
    except RuntimeError:
        return None


def _has_list(index: Any) -> bool:
    """Whether an index has lists or arrays of NumPy, which become tensors."""
    return any(isinstance(one, list | range | np.ndarray) for one in (index if isinstance(index, tuple) else (index,)))


def _waits_on_cpu_only(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call reads values on the CPU that it does not read on a GPU."""
    if func is torch.nn.functional.one_hot:
        return (args[1] if len(args) > 1 else kwargs.get("num_classes", -1)) != -1
    return func is Tensor.__setitem__ and isinstance(args[2], int | float)  # a mask's worlds are filled

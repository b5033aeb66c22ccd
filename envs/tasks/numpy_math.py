"""NumPy's functions on tensors, for numbers that equal Gymnasium's bit for bit.

torch rounds a few results differently. In single precision and on a GPU, where results are not bit-exact anyway, these
are torch's functions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def sin(values: Tensor) -> Tensor:
    """Sine, as `numpy.sin`."""
    return torch.from_numpy(np.sin(values.contiguous().numpy())) if _is_reference(values) else values.sin()


def cos(values: Tensor) -> Tensor:
    """Cosine, as `numpy.cos`."""
    return torch.from_numpy(np.cos(values.contiguous().numpy())) if _is_reference(values) else values.cos()


def norm(vectors: Tensor) -> Tensor:
    """Length of vectors, as `numpy.linalg.norm` of each: (N, n) -> (N,).

    NumPy takes the product of one vector with itself from BLAS, which may fuse multiplication and addition.
    """
    if not _is_reference(vectors):
        return vectors.square().sum(-1).sqrt()
    values = vectors.contiguous().numpy()
    return torch.from_numpy(np.sqrt(np.vecdot(values, values)))


def square(values: Tensor) -> Tensor:
    """``x**2`` of NumPy's scalars: pow of the C library, which may differ from ``x * x`` in the last bit."""
    return torch.from_numpy(np.float_power(values.numpy(), 2.0)) if _is_reference(values) else values.square()


def square_float32(actions: Tensor, state: Tensor) -> Tensor:
    """``x**2`` of NumPy's float32 scalars: powf of the C library, which no function of NumPy's arrays calls.

    Args:
        actions: float32 numbers.
        state: a field of the engine's state, which says whether these are numbers of the CPU engine.
    """
    if not _is_reference(state):
        return actions.square()
    squares = [value**2 for value in actions.numpy().ravel()]
    return torch.from_numpy(np.array(squares, dtype=np.float32)).reshape(actions.shape)


def _is_reference(values: Tensor) -> bool:
    """Whether values are of the CPU engine."""
    return values.dtype == torch.float64 and values.device.type == "cpu"

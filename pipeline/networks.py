"""Networks of actor and critics, their layers, and weight normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.ranks import ALONE, Ranks

LOG_STD_RANGE = (-20.0, 2.0)
TANH_LOG_STD_RANGE = (-10.0, 2.0)


class BatchNorm(nn.Module):
    """Batch normalisation with running statistics (Ioffe and Szegedy 2015), (B, features) -> (B, features).

    In training mode the batch's statistics normalise it, and the running statistics move towards them by `momentum`.
    In evaluation mode the running statistics normalise. Unlike torch.nn.BatchNorm1d it consists of plain tensor
    operations, so that it works under vmap over an ensemble of critics and fuses into the compiled update. The batch is
    that of all `ranks` together.

    Args:
        features: width of the input.
        momentum: weight of the batch's statistics in the running ones.
        eps: added to the variance.
    """

    running_mean: Tensor
    running_var: Tensor
    ranks: Ranks = ALONE

    def __init__(self, features: int, momentum: float = 0.01, eps: float = 1e-3):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return self.standardize(x) * self.weight + self.bias

    def standardize(self, x: Tensor) -> Tensor:
        """Normalise without scale and shift, (B, features) -> (B, features)."""
        if self.training:
            mean, var = self.ranks.merge(x.mean(0), x.var(0, correction=0))
            rows = x.shape[0] * self.ranks.size
            unbiased = var.detach() * (rows / (rows - 1))
            # Not lerp_: it has no batching rule, so vmap would loop over the critics.
            self.running_mean.mul_(1 - self.momentum).add_(mean.detach() * self.momentum)
            self.running_var.mul_(1 - self.momentum).add_(unbiased * self.momentum)
        else:
            mean, var = self.running_mean, self.running_var
        return (x - mean) * torch.rsqrt(var + self.eps)


class RMSNorm(nn.Module):
    """Root mean square normalisation, (B, features) -> (B, features) (Zhang and Sennrich 2019)."""

    def __init__(self, features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class HiddenLinear(nn.Linear):
    """Linear layer whose matrix product may have lower precision, (B, inputs) -> (B, outputs) float32.

    Attributes:
        matmul_dtype: dtype of the matrix products' factors and results, also in the backward pass.
    """

    matmul_dtype = torch.float32

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(x, self.weight, self.bias)

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``x @ weight.T + bias`` in the layer's precision."""
        if self.matmul_dtype == torch.float32:
            return nn.functional.linear(x, weight, bias)
        result = nn.functional.linear(x.to(self.matmul_dtype), weight.to(self.matmul_dtype)).float()
        return result if bias is None else result + bias


class ResidualBlock(nn.Module):
    """Residual block ``x + relu(norm(W2 relu(norm(W1 x))))``, (B, width) -> (B, width) (FlashSAC, arXiv 2604.04539).

    The inner layer is four times as wide.
    """

    def __init__(self, width: int):
        super().__init__()
        layers = []
        for inputs, outputs in ((width, 4 * width), (4 * width, width)):
            layers += [HiddenLinear(inputs, outputs, bias=False), BatchNorm(outputs, eps=1e-5), nn.ReLU()]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Layers(nn.Sequential):
    """Sequential layers, (B, inputs) -> (B, outputs).

    Scale and shift of a batch norm on the input are folded into the linear layer that follows. Their gradients then
    derive from those of its weight and bias, which saves a matrix product as large as the layer's.
    """

    def forward(self, x: Tensor) -> Tensor:
        first, second, *rest = self
        if isinstance(first, BatchNorm) and isinstance(second, HiddenLinear):
            bias = second.weight @ first.bias
            if second.bias is not None:
                bias = bias + second.bias
            x = second.affine(first.standardize(x), second.weight * first.weight, bias)
        else:
            x = second(first(x))
        for layer in rest:
            x = layer(x)
        return x


class Actor(nn.Module):
    """Tanh-Gaussian policy: observation (B, obs_dim) -> loc and scale before the tanh, (B, action_dim) each.

    Args:
        body: observation (B, obs_dim) -> loc and the logarithm of scale, concatenated, (B, 2 action_dim).
        bounded: squash the logarithm into `TANH_LOG_STD_RANGE` by a tanh; otherwise clip it to `LOG_STD_RANGE`.
    """

    def __init__(self, body: nn.Module, bounded: bool = False):
        super().__init__()
        self.body, self.bounded = body, bounded

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_std = self.body(observation).chunk(2, dim=-1)
        if self.bounded:
            low, high = TANH_LOG_STD_RANGE
            return loc, (low + (high - low) / 2 * (1 + log_std.tanh())).exp()
        return loc, log_std.clamp(*LOG_STD_RANGE).exp()

    @torch.no_grad()
    def sample(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Actions of the stochastic policy, (B, action_dim) in [-1, 1], for standard normal `noise` (B, action_dim)."""
        loc, scale = self(observation)
        return torch.tanh(loc + scale * noise)

    @torch.no_grad()
    def mode(self, observation: Tensor) -> Tensor:
        """Actions of the deterministic policy, (B, action_dim) in [-1, 1]."""
        return self.deterministic(observation)

    def deterministic(self, observation: Tensor) -> Tensor:
        """`mode`, as a program to export."""
        return torch.tanh(self(observation)[0])

    def standalone(self) -> Actor:
        """A copy with the same `mode`, as a module that can be traced."""
        return deepcopy(self)

    def random(self, uniform: Tensor) -> Tensor:
        """Uniformly random actions, (N, action_dim), for numbers that are uniform in [0, 1), (N, action_dim)."""
        return 2 * uniform - 1


class Critic(nn.Module):
    """Value of an observation (B, obs_dim) and an action (B, action_dim) in [-1, 1], or of an observation alone.

    A privileged observation (B, privileged_dim) may follow the observation.

    Args:
        body: all inputs concatenated -> the value, (B, 1), or the logits of its distribution, (B, atoms).
    """

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.body(torch.cat(inputs, dim=-1))


def mlp(
    widths: Sequence[int], norm: str = "none", order: Literal["after", "before"] = "after", dropout: float = 0.0
) -> Layers:
    """A multilayer perceptron with ReLU.

    Args:
        widths: widths of the input, the hidden layers and the output.
        norm: ``"batch"``: on the input and at each hidden layer; ``"layer"``: before each ReLU; or ``"none"``.
        order: batch norm ``"after"`` each ReLU (CrossQ), or ``"before"`` it, without biases in the linear layers (XQC).
        dropout: fraction of units dropped after each hidden linear layer (DroQ).
    """
    batch, before = norm == "batch", norm == "batch" and order == "before"
    layers: list[nn.Module] = [BatchNorm(widths[0])] if batch else []
    for inputs, outputs in pairwise(widths[:-1]):
        layers.append(HiddenLinear(inputs, outputs, bias=not before))
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        if norm == "layer":
            layers.append(nn.LayerNorm(outputs))
        layers += [BatchNorm(outputs), nn.ReLU()] if before else [nn.ReLU()]
        if batch and not before:
            layers.append(BatchNorm(outputs))
    return Layers(*layers, nn.Linear(widths[-2], widths[-1]))


def residual(widths: Sequence[int]) -> Layers:
    """FlashSAC's network: batch norm, linear embedding, residual blocks, RMS norm and a linear head.

    Args:
        widths: widths of the input, the blocks (all equal) and the output.
    """
    inputs, width, outputs = widths[0], widths[1], widths[-1]
    blocks = [ResidualBlock(width) for _ in widths[1:-1]]
    embedding = [BatchNorm(inputs, eps=1e-5), HiddenLinear(inputs, width, bias=False)]
    return Layers(*embedding, *blocks, RMSNorm(width), nn.Linear(width, outputs))


def initialize_units(network: nn.Module) -> None:
    """Initialise linear layers: orthogonal weights, rescaled to norm 1 for each unit; biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.orthogonal_(module.weight)
            module.weight.data /= module.weight.data.norm(dim=-1, keepdim=True)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def set_matmul_dtype(network: nn.Module, dtype: torch.dtype) -> None:
    """Set the precision of the hidden layers' matrix products; heads and norms keep float32."""
    for module in network.modules():
        if isinstance(module, HiddenLinear):
            module.matmul_dtype = dtype


def merge_batch_statistics(network: nn.Module, ranks: Ranks) -> None:
    """Let batch norms normalise by the batches of all ranks together."""
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.ranks = ranks


class WeightNormalization:
    """Rescales parameters in place after an optimiser step, which keeps the effective learning rate from falling.

    Each row of a linear weight gets norm 1. With `scales`, weight and bias of each batch norm together, and the weight
    of each RMS norm, get the norm of a vector of ones (FlashSAC; XQC does not rescale them).

    Args:
        network: defines which parameter belongs to which kind of layer.
        parameters: the parameters by their names in `network`, possibly stacked over critics.
        scales: whether to rescale the parameters of normalisations.
    """

    def __init__(self, network: nn.Module, parameters: Mapping[str, Tensor], scales: bool):
        self._rows: list[Tensor] = []
        self._scales: list[list[Tensor]] = []
        for layer, module in network.named_modules():
            if isinstance(module, nn.Linear):
                self._rows.append(parameters[f"{layer}.weight"])
            elif isinstance(module, BatchNorm | RMSNorm) and scales:
                self._scales.append([parameters[f"{layer}.{name}"] for name, _ in module.named_parameters()])

    @torch.no_grad()
    def project(self) -> None:
        """Rescale the parameters."""
        for weight in self._rows:
            weight /= weight.norm(dim=-1, keepdim=True)
        for group in self._scales:
            square = sum(value.square().sum(-1, keepdim=True) for value in group)
            for value in group:
                value *= (value.shape[-1] / square) ** 0.5

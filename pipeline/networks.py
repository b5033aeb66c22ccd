"""Actor and critics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

LOG_STD_RANGE = (-20.0, 2.0)
TANH_LOG_STD_RANGE = (-10.0, 2.0)


class BatchNorm(nn.Module):
    """Batch normalisation with running statistics (Ioffe and Szegedy 2015), (B, features) -> (B, features).

    In training mode a batch is normalised by its own statistics, and the running ones move by `momentum` towards
    them; in evaluation mode the running ones serve. Unlike torch's it is made of plain tensor operations, so that
    it works under vmap over an ensemble of critics and fuses into the compiled update.
    """

    running_mean: Tensor
    running_var: Tensor

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
        """What `forward` does before it scales and shifts."""
        if self.training:
            mean, var = x.mean(0), x.var(0, correction=0)
            unbiased = var.detach() * (x.shape[0] / (x.shape[0] - 1))
            # lerp_ has no batching rule: under vmap it would loop over the critics.
            self.running_mean.mul_(1 - self.momentum).add_(mean.detach() * self.momentum)
            self.running_var.mul_(1 - self.momentum).add_(unbiased * self.momentum)
        else:
            mean, var = self.running_mean, self.running_var
        return (x - mean) * torch.rsqrt(var + self.eps)


class RMSNorm(nn.Module):
    """Division by the root mean square of the features, (B, features) -> (B, features) (Zhang and Sennrich 2019)."""

    def __init__(self, features: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class HiddenLinear(nn.Linear):
    """A linear layer, (B, inputs) -> (B, outputs) float32, whose product may round its factors.

    Attributes:
        matmul_dtype: of the matrix products' factors and results, in the backward pass, too.
    """

    matmul_dtype = torch.float32

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(x, self.weight, self.bias)

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``x @ weight.T + bias``, of weights that need not be the layer's own."""
        if self.matmul_dtype == torch.float32:
            return nn.functional.linear(x, weight, bias)
        result = nn.functional.linear(x.to(self.matmul_dtype), weight.to(self.matmul_dtype)).float()
        return result if bias is None else result + bias


class ResidualBlock(nn.Module):
    """``x + relu(norm(W2 relu(norm(W1 x))))``, four times as wide inside (FlashSAC, arXiv 2604.04539)."""

    def __init__(self, width: int):
        super().__init__()
        layers = []
        for inputs, outputs in ((width, 4 * width), (4 * width, width)):
            layers += [HiddenLinear(inputs, outputs, bias=False), BatchNorm(outputs, eps=1e-5), nn.ReLU()]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Layers(nn.Sequential):
    """Layers in a row, (B, inputs) -> (B, outputs).

    A batch norm on the input leaves its scale and shift to the linear layer after it: their gradients then come from
    the weights' and the bias's, and not from a matrix product as large as that layer's.
    """

    def forward(self, x: Tensor) -> Tensor:
        first, following, *layers = self
        if isinstance(first, BatchNorm) and isinstance(following, HiddenLinear):
            bias = following.weight @ first.bias
            if following.bias is not None:
                bias = bias + following.bias
            x = following.affine(first.standardize(x), following.weight * first.weight, bias)
        else:
            x = following(first(x))
        for layer in layers:
            x = layer(x)
        return x


class Actor(nn.Module):
    """Gaussian policy before the tanh: observation (B, obs_dim) -> loc and scale, (B, action_dim) each.

    Args:
        body: observation (B, obs_dim) -> (B, 2 action_dim), from which loc and the logarithm of scale are made.
        bounded: squash the logarithm smoothly into its range instead of clipping it.
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
        """The policy's actions for standard normal `noise`, both (B, action_dim), in [-1, 1]."""
        loc, scale = self(observation)
        return torch.tanh(loc + scale * noise)

    @torch.no_grad()
    def mode(self, observation: Tensor) -> Tensor:
        """The deterministic policy, (B, action_dim) in [-1, 1]."""
        return torch.tanh(self(observation)[0])


class Critic(nn.Module):
    """Value of observation (B, obs_dim) and action (B, action_dim) in [-1, 1].

    Args:
        body: (B, obs_dim + action_dim) -> the value (B, 1), or the logits of its distribution (B, atoms).
    """

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.body(torch.cat([observation, action], dim=-1))


def mlp(
    widths: Sequence[int], norm: str = "none", order: Literal["after", "before"] = "after", dropout: float = 0.0
) -> Layers:
    """Linear layers of these widths with ReLU between them.

    Args:
        widths: of input, hidden layers and output.
        norm: ``"batch"``: on the input and at each hidden layer; ``"layer"``: before each ReLU; or ``"none"``.
        order: whether batch norm comes after each ReLU (CrossQ) or before it, where linear layers need no bias (XQC).
        dropout: share of units dropped before each layer norm (DroQ).
    """
    batch, before = norm == "batch", norm == "batch" and order == "before"
    layers: list[nn.Module] = [BatchNorm(widths[0])] if batch else []
    for width, following in pairwise(widths[:-1]):
        layers.append(HiddenLinear(width, following, bias=not before))
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        if norm == "layer":
            layers.append(nn.LayerNorm(following))
        layers += [BatchNorm(following), nn.ReLU()] if before else [nn.ReLU()]
        if batch and not before:
            layers.append(BatchNorm(following))
    return Layers(*layers, nn.Linear(widths[-2], widths[-1]))


def residual(widths: Sequence[int]) -> Layers:
    """FlashSAC's network: batch norm, a linear embedding, blocks of the width ``widths[1]``, RMS norm, a head."""
    inputs, width, outputs = widths[0], widths[1], widths[-1]
    blocks = [ResidualBlock(width) for _ in widths[1:-1]]
    embedding = [BatchNorm(inputs, eps=1e-5), HiddenLinear(inputs, width, bias=False)]
    return Layers(*embedding, *blocks, RMSNorm(width), nn.Linear(width, outputs))


def initialize_units(network: nn.Module) -> None:
    """Orthogonal weights, each unit's rescaled to norm 1; biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.orthogonal_(module.weight)
            module.weight.data /= module.weight.data.norm(dim=-1, keepdim=True)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def set_matmul_dtype(network: nn.Module, dtype: torch.dtype) -> None:
    """Let the hidden layers' matrix products have factors of `dtype`; heads, norms and losses keep float32."""
    for module in network.modules():
        if isinstance(module, HiddenLinear):
            module.matmul_dtype = dtype


class WeightNormalization:
    """Rescales parameters in place after an optimiser's step, which keeps the effective learning rate up.

    Linear weights: each row to norm 1. With `scales`, also (weight, bias) of each batch norm together, and each RMS
    norm's weight, to the norm of a vector of ones (FlashSAC; XQC leaves them free).

    Args:
        network: tells which parameter belongs to what kind of layer.
        parameters: the parameters by their names in `network`; stacked over critics or not.
        scales: whether to rescale normalisations.
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
        """Rescale."""
        for weight in self._rows:
            weight /= weight.norm(dim=-1, keepdim=True)
        for group in self._scales:
            square = sum(value.square().sum(-1, keepdim=True) for value in group)
            for value in group:
                value *= (value.shape[-1] / square) ** 0.5

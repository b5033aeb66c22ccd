"""SAC's losses in float64 and elementary tensor operations, written from the equations.

This shares no code with `pipeline`: it reads a loss module's parameters by their names, and nothing else.

SAC: Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications", eq. 5, 6, 7, 9 and 18.
Its first form: Haarnoja et al. 2018, "Soft Actor-Critic: Off-Policy Maximum Entropy Deep Reinforcement Learning with a
Stochastic Actor", eq. 5, 7, 8 and 12.
REDQ: Chen et al. 2021, algorithm 1: a random subset of targets, and the mean of all critics for the actor.
DroQ: Hiraoka et al. 2022: dropout, then layer norm, after each hidden linear layer of the critics.
CrossQ: Bhatt et al. 2024: no target networks, and one pass of (s, a) and (s', a') together through batch norm.
XQC and FlashSAC: cross-entropy to a projected distribution (Bellemare et al. 2017), and batch norm in the actor.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from pipeline_helpers import ACTION_DIM, small_config
from tensordict import TensorDict
from torch import Tensor

from pipeline.config import Config
from pipeline.torchrl_adapter import Loss

CATEGORICAL = ["xqc", "flashsac", "fast"]
BATCH, GAMMA, NUM_ATOMS, VALUE_RANGE = 24, 0.9, 11, 5.0
NO_MASKS: Iterator[Tensor] = iter(())
PLAIN = "linear relu linear relu linear"
BEFORE = "batch linear batch relu linear batch relu linear"
BLOCK = "( linear batch relu linear batch relu )"
RESIDUAL = f"batch linear {BLOCK} {BLOCK} rms linear"
ACTORS = {"xqc": BEFORE, "flashsac": RESIDUAL}
CRITICS = {
    "sac": PLAIN,
    "sac-v1": PLAIN,
    "redq": PLAIN,
    "droq": "linear dropout layer relu linear dropout layer relu linear",
    "crossq": "batch linear relu batch linear relu batch linear",
    "fast": "batch linear relu batch linear relu batch linear",
    "xqc": BEFORE,
    "flashsac": RESIDUAL,
}


def loss_config(preset: str, **overrides: Any) -> Config:
    """A small configuration, with different widths if the network allows them, and without dropout."""
    widths = ((6, 6), (5, 5)) if preset == "flashsac" else ((8, 6), (7, 5))
    settings = {"gamma": GAMMA, "batch_size": BATCH, "learning_starts": 100, "num_atoms": NUM_ATOMS, "dropout": 0.0}
    hidden = dict(zip(("actor_hidden", "critic_hidden"), widths, strict=True))
    return small_config(preset=preset, **{**settings, **hidden, **overrides})


def to_double(params: TensorDict) -> dict[str, Tensor]:
    """Copies by name, in float64; parameters require gradients."""
    copies = {name: value.detach().double().clone() for name, value in params.flatten_keys(".").items()}
    return {name: value if ".running_" in name else value.requires_grad_() for name, value in copies.items()}


def trainable(params: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in params.items() if value.requires_grad}


def running_statistics(params: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in params.items() if ".running_" in name}


def layers(params: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Parameters and statistics of each layer that has any, in the order of the layers."""
    found: defaultdict[tuple[int, ...], dict[str, Tensor]] = defaultdict(dict)
    for name, value in params.items():
        path, _, kind = name.rpartition(".")
        found[tuple(map(int, re.findall(r"\d+", path)))][kind] = value
    return [found[path] for path in sorted(found)]


def batch_norm(x: Tensor, layer: dict[str, Tensor], eps: float, training: bool) -> Tensor:
    mean, var = layer["running_mean"], layer["running_var"]
    if training:
        mean, var = x.sum(0) / len(x), ((x - x.sum(0) / len(x)) ** 2).sum(0) / len(x)
        with torch.no_grad():
            layer["running_mean"].mul_(0.99).add_(0.01 * mean)
            layer["running_var"].mul_(0.99).add_(0.01 * var * len(x) / (len(x) - 1))
    return (x - mean) / (var + eps).sqrt() * layer["weight"] + layer["bias"]


def output(
    kinds: str, params: dict[str, Tensor], x: Tensor, training: bool, masks: Iterator[Tensor] = NO_MASKS
) -> Tensor:
    """The output of a network of these layers; `masks` are the factors of its dropout layers."""
    parts, skip = iter(layers(params)), x
    eps = 1e-5 if kinds == RESIDUAL else 1e-3
    for kind in kinds.split():
        if kind == "relu":
            x = x.clamp(min=0)
        elif kind == "(":
            skip = x
        elif kind == ")":
            x = x + skip
        elif kind == "dropout":
            x = x * next(masks, torch.ones(()))
        elif kind == "batch":
            x = batch_norm(x, next(parts), eps, training)
        elif kind == "rms":
            x = x / ((x**2).mean(-1, keepdim=True) + 1e-6).sqrt() * next(parts)["weight"]
        elif kind == "layer":
            layer, centred = next(parts), x - x.mean(-1, keepdim=True)
            x = centred / ((centred**2).mean(-1, keepdim=True) + 1e-5).sqrt() * layer["weight"] + layer["bias"]
        else:
            layer = next(parts)
            x = x @ layer["weight"].T + layer.get("bias", 0)
    assert not list(parts)
    return x


@dataclass
class Reference:
    """The parameters of a loss in float64, and the equations."""

    preset: str
    actor: dict[str, Tensor]
    critic: dict[str, Tensor]
    value: dict[str, Tensor]
    target: dict[str, Tensor]
    log_alpha: Tensor
    num_critics: int
    gamma: float
    actor_value: str
    metrics: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, preset: str, loss: Loss, **overrides: Any) -> Reference:
        config = loss_config(preset, **overrides)
        actor, critic = to_double(loss.actor_network_params), to_double(loss.qvalue_network_params)
        target = to_double(loss.target_qvalue_network_params) if config.target_network else {}
        value: dict[str, Tensor] = {}
        if preset == "sac-v1":
            value, target = to_double(loss.value_network_params), to_double(loss.target_value_network_params)
        log_alpha = loss.log_alpha.detach().double().requires_grad_()
        numbers = config.num_critics, config.gamma, config.actor_value
        return cls(preset, actor, critic, value, target, log_alpha, *numbers)

    @property
    def alpha(self) -> Tensor:
        return self.log_alpha.detach().exp()

    def policy(self, observation: Tensor, noise: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """The action for this noise, and its log-probability: a Gaussian's minus log of tanh's derivative."""
        x = output(ACTORS.get(self.preset, PLAIN), self.actor, observation, training)
        loc, log_std = x[:, :ACTION_DIM], x[:, ACTION_DIM:]
        log_std = -10 + 6 * (1 + torch.tanh(log_std)) if self.preset == "flashsac" else log_std.clamp(-20, 2)
        u = loc + log_std.exp() * noise
        gaussian = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
        # log(1 - tanh(u)^2) = -2 log cosh(u), where cosh(u) does not overflow
        log_slope = -2 * (u.abs() + torch.log1p(torch.exp(-2 * u.abs())) - math.log(2))
        return torch.tanh(u), (gaussian - log_slope).sum(-1)

    def critics(
        self, params: dict[str, Tensor], pairs: tuple[Tensor, Tensor], training: bool, masks: Iterator[Tensor]
    ) -> Tensor:
        """The outputs of all critics, (critics, batch, 1 or atoms)."""
        members = [{name: value[k] for name, value in params.items()} for k in range(self.num_critics)]
        return torch.stack(
            [output(CRITICS[self.preset], each, torch.cat(pairs, -1), training, masks) for each in members]
        )

    def critic_loss(
        self,
        batch: TensorDict,
        noise: Tensor,
        subset: list[int] | slice = slice(None),
        masks: Iterator[Tensor] = NO_MASKS,
    ) -> Tensor:
        obs, action, next_obs = batch["observation"], batch["action"], batch["next", "observation"]
        next_action, log_prob = (part.detach() for part in self.policy(next_obs, noise, training=False))
        if "batch" in CRITICS[self.preset]:
            both = torch.cat([obs, next_obs]), torch.cat([action, next_action])
            values, next_values = self.critics(self.critic, both, True, masks).split(BATCH, dim=1)
            if self.target:
                next_values = self.critics(self.target, both, True, masks)[:, BATCH:]
        elif self.value:
            next_values = output(PLAIN, self.target, next_obs, False).unsqueeze(0)
            values = self.critics(self.critic, (obs, action), False, masks)
        else:
            next_values = self.critics(self.target, (next_obs, next_action), False, masks)
            values = self.critics(self.critic, (obs, action), False, masks)
        steps = batch.get("steps_to_next_obs", torch.ones(BATCH, 1, dtype=torch.float64))
        discount = self.gamma**steps * (1 - batch["next", "terminated"].double())
        reward, entropy = batch["next", "reward"], (-self.alpha * log_prob).unsqueeze(-1)
        if self.value:
            entropy = torch.zeros_like(entropy)  # V contains it
        if self.preset not in CATEGORICAL:
            target = reward + discount * (next_values.detach()[subset].min(0).values + entropy)
            self.metrics = {"q_mean": values.detach().mean(), "target_mean": target.mean()}
            return ((values - target) ** 2).mean(1).sum()
        loss, atoms = torch.zeros(()), linspace()
        mean, clipped = torch.zeros(()), torch.zeros(())
        for row in range(BATCH):
            distributions = next_values[:, row].detach().softmax(-1)
            smallest = min(distributions, key=lambda distribution: float((distribution * atoms).sum()))
            returns = reward[row] + discount[row] * (atoms + entropy[row])
            target = split(smallest, returns, atoms)
            mean = mean + (target * atoms).sum() / BATCH
            clipped = clipped + smallest[returns.abs() > VALUE_RANGE].sum() / BATCH
            loss = loss - (target * values[:, row].log_softmax(-1)).sum() / BATCH
        q_mean = (values.detach().softmax(-1) @ atoms).mean()
        self.metrics = {"q_mean": q_mean, "target_mean": mean, "clipped_targets": clipped}
        return loss

    def value_loss(self, batch: TensorDict, noise: Tensor) -> Tensor:
        """Twice J_V: the equation has a factor 1/2."""
        obs = batch["observation"]
        action, log_prob = (part.detach() for part in self.policy(obs, noise, training=False))
        values = self.critics(self.critic, (obs, action), False, NO_MASKS).squeeze(-1).detach()
        error = output(PLAIN, self.value, obs, False).squeeze(-1) - (values.min(0).values - self.alpha * log_prob)
        return (error**2).mean()

    def actor_loss(self, batch: TensorDict, noise: Tensor, masks: Iterator[Tensor] = NO_MASKS) -> tuple[Tensor, Tensor]:
        action, log_prob = self.policy(batch["observation"], noise, training=True)
        outputs = self.critics(self.critic, (batch["observation"], action), False, masks)
        values = outputs.softmax(-1) @ linspace() if self.preset in CATEGORICAL else outputs.squeeze(-1)
        value = values.mean(0) if self.actor_value == "mean" else values.min(0).values
        return (self.alpha * log_prob - value).mean(), log_prob.detach()

    def alpha_loss(self, log_prob: Tensor, target_entropy: float, form: str) -> Tensor:
        factor = self.log_alpha if form == "log" else torch.e**self.log_alpha
        return -(factor * (log_prob + target_entropy)).mean()


def linspace() -> Tensor:
    return torch.tensor([-VALUE_RANGE + 2 * VALUE_RANGE * i / (NUM_ATOMS - 1) for i in range(NUM_ATOMS)]).double()


def split(probabilities: Tensor, values: Tensor, atoms: Tensor) -> Tensor:
    """Project a distribution over values onto atoms, by hat functions around the atoms."""
    values = values.clamp(atoms[0], atoms[-1])
    weights = (1 - (values[:, None] - atoms).abs() / (atoms[1] - atoms[0])).clamp(min=0)
    return probabilities @ weights


def double(batch: TensorDict) -> TensorDict:
    return batch.apply(lambda entry: entry.double() if entry.is_floating_point() else entry)


def seeded_noise(seed: int) -> Tensor:
    """The standard normal numbers that a loss draws after this seed. Leaves the generator seeded."""
    torch.manual_seed(seed)
    noise = torch.normal(torch.zeros(BATCH, ACTION_DIM), torch.ones(BATCH, ACTION_DIM)).double()
    torch.manual_seed(seed)
    return noise


def seeded_subset(seed: int, num_critics: int) -> list[int]:
    """The two critics that a loss draws after the noise. Leaves the generator seeded."""
    seeded_noise(seed)
    torch.randn(BATCH, ACTION_DIM)
    order = torch.rand(num_critics).argsort().tolist()
    torch.manual_seed(seed)
    return order[:2]


def assert_equal(ours: Tensor, reference: Tensor, name: str, least: float = 0.0) -> None:
    atol = max(2e-5 * float(reference.detach().abs().max()), least)
    torch.testing.assert_close(ours.double(), reference, rtol=2e-5, atol=atol, msg=lambda text: name + text)


def assert_gradients_equal(
    ours: Tensor, our_parameters: dict[str, Tensor], reference: Tensor, parameters: dict[str, Tensor]
) -> None:
    assert list(our_parameters) == list(parameters)
    gradients = torch.autograd.grad(ours, list(our_parameters.values()))
    expected = torch.autograd.grad(reference, list(parameters.values()))
    largest = {name: float(gradient.abs().max()) for name, gradient in zip(parameters, expected, strict=True)}
    scale = max(largest.values())
    # XQC's first bias has no effect: the batch norm after the linear layer subtracts constants.
    assert all(value > 1e-9 * scale for name, value in largest.items() if not name.endswith("body.0.bias"))
    for name, left, right in zip(parameters, gradients, expected, strict=True):
        assert_equal(left, right, f"gradient of {name}: ", least=1e-6 * scale)

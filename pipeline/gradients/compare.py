"""Bias and variance of the estimators of `pipeline.estimators`, on an agent and a batch of states."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pipeline import estimators
from pipeline.agent import Agent
from pipeline.estimators import TanhGaussian
from pipeline.torchrl_adapter import action_value
from saltus.errors import SaltusError

DETERMINISTIC = "deterministic (DDPG)"
_ROWS = 8192
"""State-action pairs in a pass through the critics."""


@dataclass(frozen=True)
class Estimator:
    """The estimates of one estimator, in units of the reference's norm.

    Attributes:
        name: of the estimator.
        difference: norm of the mean estimate's difference from the reference.
        noise: norm that the difference would have, in root mean square, without a bias.
        largest_noise: a norm that noise alone practically never exceeds.
        std: root mean square norm of an estimate's deviation from the mean estimate.
        cosines: cosine between each estimate and the reference, (estimates,).
    """

    name: str
    difference: float
    noise: float
    largest_noise: float
    std: float
    cosines: list[float]

    @property
    def biased(self) -> bool:
        """Whether the difference from the reference is too large for noise."""
        return self.difference > self.largest_noise

    @property
    def bias(self) -> float:
        """Norm of the bias: of the difference, less the part of noise."""
        return math.sqrt(max(0.0, self.difference**2 - self.noise**2))

    def error(self, count: int) -> float:
        """Root mean square error of the mean of `count` estimates; a bias too small to tell counts as none."""
        return math.hypot(self.bias if self.biased else 0.0, self.std / math.sqrt(count))


class ActorGradient:
    """The gradient of an agent's actor loss on a batch of states, by any estimator.

    A surrogate is differentiated for the policy's loc and scale first, and for the actor's parameters then. The second
    step is linear and the same for all, so the mean over many actions takes it once.

    Args:
        agent: the agent; its networks are not changed, but running statistics of an actor with batch norm are.
        states: B states with ``"observation"``, and ``"privileged"`` if the critics see it, as the environment returned
            them.

    Attributes:
        alpha: the temperature, a scalar.
    """

    def __init__(self, agent: Agent, states: TensorDictBase):
        self._loss, self._parameters = agent.loss, list(agent.actor.parameters())
        self._states = agent.normalizers.normalize_states(states)
        agent.actor.train()  # batch norms of the actor normalise by the batch in the actor's loss
        self._outputs = agent.actor(self._states["observation"])
        agent.actor.eval()
        self.policy = TanhGaussian(*(output.detach().requires_grad_() for output in self._outputs))
        self.alpha = agent.loss.log_alpha.detach().exp()

    def value(self, action: Tensor) -> Tensor:
        """Q(s, a) of actions (..., B, action_dim), (..., B)."""
        states = self._states.expand(action.shape[:-1]).reshape(-1)
        return action_value(self._loss, states, action.flatten(0, -2)).view(action.shape[:-1])

    def for_outputs(self, surrogate: Tensor) -> tuple[Tensor, ...]:
        """The surrogate's gradient for loc and scale, (B, action_dim) each, averaged over N; zero for one not used."""
        loc, scale = self.policy.loc, self.policy.scale
        average = surrogate.sum() / (surrogate.numel() / len(loc))
        gradients = torch.autograd.grad(average, (loc, scale), materialize_grads=True, allow_unused=True)
        return tuple(gradients)

    def for_parameters(self, outputs: tuple[Tensor, ...]) -> Tensor:
        """The gradient for the actor's parameters of the mean over states, (parameters,), from `for_outputs`."""
        mean = [gradient / len(gradient) for gradient in outputs]
        gradients = torch.autograd.grad(self._outputs, self._parameters, mean, retain_graph=True)
        return torch.cat([gradient.flatten() for gradient in gradients])


Surrogate = Callable[[ActorGradient, Tensor, Tensor], Tensor]
"""Gradient, mean loss of each state (B,), standard normal noise (N, B, action_dim) -> surrogate, (N, B) or (B,)."""
ESTIMATORS: dict[str, Surrogate] = {
    "reparameterised": lambda of, _, noise: estimators.reparameterized(of.policy, of.value, of.alpha, noise),
    "implicit": lambda of, _, noise: estimators.implicit(of.policy, of.value, of.alpha, noise),
    "score with baseline": lambda of, loss, noise: estimators.score(of.policy, of.value, of.alpha, noise, loss),
    "score": lambda of, _, noise: estimators.score(of.policy, of.value, of.alpha, noise),
    DETERMINISTIC: lambda of, _, _noise: estimators.deterministic(of.policy, of.value),
}
"""The estimators by name; first that of the reference."""


def compare(
    agent: Agent,
    states: TensorDictBase,
    estimates: int,
    reference: int,
    seed: int,
    report: Callable[[int], None] = lambda done: None,
) -> list[Estimator]:
    """Compare the estimators of the actor's gradient on a batch of states.

    The reference is the mean of other estimates by `reparameterized`. The states are given: only actions vary.

    Args:
        agent: a trained agent.
        states: at least 2 states, as of `ActorGradient`.
        estimates: number of estimates of each estimator, at least 2.
        reference: number of estimates in the reference.
        seed: of the actions.
        report: called with the number of estimates done, those of the reference included.

    Raises:
        SaltusError: the reference is zero or not finite.
    """
    torch.manual_seed(seed)  # of dropout in the critics
    generator = torch.Generator(agent.device).manual_seed(seed)
    gradient = ActorGradient(agent, states)
    shape = gradient.policy.loc.shape

    def noise(count: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator, device=agent.device)

    target, baseline = _reference(gradient, noise, reference, report)
    norm = float(target.norm())
    if not 0 < norm < math.inf:
        raise SaltusError(
            f"the actor's gradient is {norm} on this batch: the critics do not depend on the action, or have diverged"
        )
    found: list[Estimator] = []
    reference_spread: _Spread | None = None
    for name, surrogate in ESTIMATORS.items():
        outputs = [gradient.for_outputs(surrogate(gradient, baseline, noise(1))) for _ in range(estimates)]
        matrix = torch.stack([gradient.for_parameters(each) for each in outputs]) / norm
        spread = _Spread.of(matrix)
        reference_spread = reference_spread or spread  # the first estimator is the reference's
        found.append(_describe(name, matrix, target / norm, spread, reference_spread.over(reference)))
        report(reference + len(found) * estimates)
    return found


def _reference(
    gradient: ActorGradient, noise: Callable[[int], Tensor], count: int, report: Callable[[int], None]
) -> tuple[Tensor, Tensor]:
    """The mean of `count` estimates by `reparameterized`, and the mean loss of each state, (B,)."""
    chunk = max(1, _ROWS // len(gradient.policy.loc))
    outputs = [torch.zeros_like(gradient.policy.loc), torch.zeros_like(gradient.policy.scale)]
    baseline = torch.zeros_like(outputs[0][:, 0])
    for start in range(0, count, chunk):
        size = min(chunk, count - start)
        cost = estimators.reparameterized(gradient.policy, gradient.value, gradient.alpha, noise(size))
        baseline += cost.detach().sum(0) / count
        for total, part in zip(outputs, gradient.for_outputs(cost), strict=True):
            total += part * (size / count)
        report(start + size)
    return gradient.for_parameters(tuple(outputs)), baseline


@dataclass(frozen=True)
class _Spread:
    """Size of a covariance matrix: its trace, and its Frobenius norm."""

    trace: float
    frobenius: float

    @classmethod
    def of(cls, estimates: Tensor) -> _Spread:
        """Of the covariance of estimates, (estimates, parameters)."""
        centred = (estimates - estimates.mean(0)).double()
        products = centred @ centred.T / (len(estimates) - 1)
        return cls(float(products.trace()), float(products.norm()))

    def over(self, count: int) -> _Spread:
        """Of the mean of `count` independent estimates."""
        return _Spread(self.trace / count, self.frobenius / count)


def _describe(name: str, estimates: Tensor, reference: Tensor, spread: _Spread, reference_spread: _Spread) -> Estimator:
    """The numbers of an estimator, from its estimates (estimates, parameters) and the reference (parameters,).

    Without a bias the squared difference of two means has the mean ``trace`` and a standard deviation of at most
    ``sqrt(2) frobenius``, summed over the two. Four such deviations count as the largest noise.
    """
    own = spread.over(len(estimates))
    noise = own.trace + reference_spread.trace
    largest = noise + 4 * math.sqrt(2) * (own.frobenius + reference_spread.frobenius)
    cosines = torch.nn.functional.cosine_similarity(estimates, reference.unsqueeze(0))
    difference = float((estimates.mean(0) - reference).norm())
    std = math.sqrt(spread.trace)
    return Estimator(name, difference, math.sqrt(noise), math.sqrt(largest), std, cosines.tolist())

"""Estimators of the gradient of the actor's loss ``E[alpha log pi(a|s) - Q(s, a)]``, ``a ~ pi(s)``.

Each function returns a surrogate: numbers whose gradient, by autograd, is the estimate. The estimators differ in bias
and variance, and in what they need:

=======================  =========================  ===============================================================
estimator                needs                      source
=======================  =========================  ===============================================================
`score`                  log pi(a|s), Q(s, a)       Williams 1992 (REINFORCE), with or without a baseline
`reparameterized`        the gradient of Q in a,    Kingma and Welling 2014; Haarnoja et al. 2018b, eq. 10
                         a = f(noise, s)
`implicit`               the gradient of Q in a,    Figurnov et al. 2018, "Implicit Reparameterization Gradients"
                         the CDF of a
`deterministic`          the gradient of Q in a     Silver et al. 2014, theorem 1; Lillicrap et al. 2016 (DDPG)
=======================  =========================  ===============================================================

Discrete actions also have an exact gradient, of `pipeline.discrete_losses.ExactLoss` (Christodoulou 2019, eq. 12).

`deterministic` alone is biased: it is the limit of the others for a temperature and a scale that go to zero. SAC uses
`reparameterized`, which `pipeline.torchrl_adapter.actor_loss` computes; `saltus gradients` compares them on a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Value = Callable[[Tensor], Tensor]
"""Q(s, .) of B states: actions (..., B, action_dim) in [-1, 1] -> values (..., B)."""


@dataclass(frozen=True)
class TanhGaussian:
    """The policy in B states: ``a = tanh(u)`` with a Gaussian ``u``, the preimage.

    Attributes:
        loc: mean of the preimage, (B, action_dim).
        scale: standard deviation of the preimage, (B, action_dim).
    """

    loc: Tensor
    scale: Tensor

    def preimage(self, noise: Tensor) -> Tensor:
        """``loc + scale noise``, (..., B, action_dim), for standard normal noise of that shape."""
        return self.loc + self.scale * noise

    def log_prob(self, preimage: Tensor) -> Tensor:
        """log pi(tanh(preimage)|s), (..., B): the Gaussian's density over the slope of the tanh.

        The slope is ``1 - tanh(u)^2 = 4 / (exp(u) + exp(-u))^2``, here without overflow or cancellation.
        """
        log_slope = 2 * (math.log(2) - preimage - torch.nn.functional.softplus(-2 * preimage))
        return (self._gaussian_log_prob(preimage) - log_slope).sum(-1)

    def implicit_preimage(self, noise: Tensor) -> Tensor:
        """`preimage`, with the gradient of `implicit_sample` in place of the formula's own."""
        with torch.no_grad():
            preimage = self.preimage(noise)
            log_density = self._gaussian_log_prob(preimage)
        cdf = torch.special.ndtr((preimage - self.loc) / self.scale)
        return implicit_sample(preimage, cdf, log_density)

    def _gaussian_log_prob(self, preimage: Tensor) -> Tensor:
        noise = (preimage - self.loc) / self.scale
        return -0.5 * noise.square() - self.scale.log() - 0.5 * math.log(2 * math.pi)


def reparameterized(policy: TanhGaussian, value: Value, alpha: Tensor | float, noise: Tensor) -> Tensor:
    """The surrogate of the reparameterised gradient, (..., B): the loss itself, of ``a = tanh(loc + scale noise)``.

    Args:
        policy: the policy in B states.
        value: the critic.
        alpha: the temperature.
        noise: standard normal, (..., B, action_dim).
    """
    preimage = policy.preimage(noise)
    return alpha * policy.log_prob(preimage) - value(preimage.tanh())


def implicit(policy: TanhGaussian, value: Value, alpha: Tensor | float, noise: Tensor) -> Tensor:
    """The surrogate of the implicit reparameterised gradient, (..., B). Arguments as of `reparameterized`.

    For a Gaussian it equals `reparameterized`, sample by sample. It also serves distributions whose CDF has no inverse.
    """
    preimage = policy.implicit_preimage(noise)
    return alpha * policy.log_prob(preimage) - value(preimage.tanh())


def score(
    policy: TanhGaussian, value: Value, alpha: Tensor | float, noise: Tensor, baseline: Tensor | float = 0.0
) -> Tensor:
    """The surrogate of the score-function gradient, (..., B). Other arguments as of `reparameterized`.

    Args:
        baseline: a number for each state, (B,), such as the loss that the policy expects there.
    """
    preimage = policy.preimage(noise).detach()
    log_prob = policy.log_prob(preimage)
    with torch.no_grad():
        cost = alpha * log_prob - value(preimage.tanh())
    return score_function(log_prob, cost, baseline)


def deterministic(policy: TanhGaussian, value: Value) -> Tensor:
    """The surrogate of DDPG's gradient, (B,): ``-Q(s, tanh(loc))``, without noise and without entropy."""
    return -value(policy.loc.tanh())


def score_function(log_prob: Tensor, cost: Tensor, baseline: Tensor | float = 0.0) -> Tensor:
    """The surrogate of the gradient of ``E[cost(a)]`` for given actions, of any distribution, discrete ones included.

    The baseline changes no expectation, because the score, the gradient of log pi(a), has the mean zero. For the same
    reason the gradient of ``log pi`` inside the cost drops out: the cost counts as a number.

    Args:
        log_prob: log pi(a), (...), with gradients for the distribution's parameters and none for the actions.
        cost: the cost of the actions, (...).
        baseline: a number that does not depend on the action, (...).
    """
    return (cost - baseline).detach() * log_prob


def implicit_sample(sample: Tensor, cdf: Tensor, log_density: Tensor) -> Tensor:
    """Give samples of a distribution in one dimension their gradient for its parameters.

    By the implicit function theorem the gradient of a sample x is ``-(dF/dparameters) / p(x)``, where F is the CDF and
    p the density. No inverse of F is needed. The distribution must be continuous, with F differentiable.

    Args:
        sample: x, (...), without gradients.
        cdf: F(x), (...), with gradients for the parameters.
        log_density: log p(x), (...).

    Returns:
        The samples, (...), with that gradient.
    """
    return sample.detach() - (cdf - cdf.detach()) * torch.exp(-log_density.detach())


def entropy_surrogate(log_prob: Tensor, constant: Tensor | float = 0.0) -> Tensor:
    """The surrogate of the gradient of the entropy for given actions: ``-(log pi(a) + constant)^2 / 2``.

    Its gradient is ``-(log pi(a) + constant)`` times the score. It is unbiased without reparameterisation, whatever the
    constant: `score_function` of the cost ``-log pi(a)`` with the baseline `constant`.

    Args:
        log_prob: log pi(a), (...), with gradients for the distribution's parameters and none for the actions.
        constant: any number that does not depend on the action.
    """
    return -0.5 * (log_prob + constant).square()

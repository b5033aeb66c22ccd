"""Losses of discrete soft actor-critic (Christodoulou 2019, arXiv 1910.07207).

V(s) = E[Q(s, a) - alpha log pi(a|s)] over a ~ pi(s) is computed by one of three rules, `Config.discrete_update`:

===========  ===============================================================  =======================================
rule         critic                                                           expectation over actions
===========  ===============================================================  =======================================
``exact``    values all levels: joint (eq. 10 to 12), or a sum over actuators  exact, by enumeration
``score``    takes the action as an input                                     sampled, score-function gradient
``soft-q``   as ``exact``                                                     exact: pi is exp(Q / alpha), without actor
===========  ===============================================================  =======================================

With a factored policy and a sum over actuators, E[Q] and the entropy are sums over actuators, so enumeration is exact
without a joint grid. The approximation is the critic's form, which cannot hold interactions between actuators.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.distributions import Categorical
from torchrl.modules import ProbabilisticActor

from pipeline.config import Config
from pipeline.dimensions import Dimensions
from pipeline.discrete import ActionLevels, CategoricalActor, make_levels, quantile_index
from pipeline.estimators import score_function
from pipeline.networks import Critic, Layers, mlp, set_matmul_dtype
from pipeline.target_entropy import discrete_target
from pipeline.torchrl_adapter import DiscreteVariant, prepare
from saltus.errors import SaltusError

_SAMPLES = 4  # actions per state of the score-function form


class ExactLoss(DiscreteVariant):
    """Exact expectations, with critics that value all levels (Christodoulou 2019, eq. 10 to 12).

    With a joint policy the minimum over critics is taken for each action, as in the paper. With a factored one it is
    taken over the critics' expected values: values of single actuators are defined up to constants only.
    """

    def next_value(self, next_batch: TensorDictBase) -> Tensor:
        log_prob = self.log_probs(next_batch, differentiable=False)
        values = self._values(next_batch, self.target_qvalue_network_params)
        return self._expected_value(values, log_prob) - self.alpha * _expectation(log_prob, log_prob)

    def chosen_values(self, batch: TensorDictBase) -> Tensor:
        values = self._values(batch, self.qvalue_network_params)
        index = self.levels.index(batch["action"])[None, :, :, None].expand(len(values), -1, -1, -1)
        return values.gather(-1, index).sum((-2, -1))

    def actor_loss(self, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        log_prob = self.log_probs(batch, differentiable=True)
        values = self._values(batch, self.frozen_critic_params)
        negative_entropy = _expectation(log_prob, log_prob)
        loss = self.alpha * negative_entropy - self._expected_value(values, log_prob)
        return loss.mean(), {"log_prob": negative_entropy.detach()}

    def _values(self, batch: TensorDictBase, params: TensorDictBase) -> Tensor:
        """The critics' values of all levels, (critics, B, heads, choices).

        The value of an action is the sum of its levels' values over the heads. With one head this is any function of
        the joint action. With a head for each actuator it is an additive one, as
        in Seyde et al. 2023 (arXiv 2210.12566), who take the mean over heads: their parts are larger by that factor.
        """
        return self.levels.split(self.critics(batch.select(*self.qvalue_network.in_keys), params))

    def _expected_value(self, values: Tensor, log_prob: Tensor) -> Tensor:
        """The expectation of the smallest value over critics, (B,)."""
        if self.levels.joint:
            return _expectation(values.amin(0), log_prob)
        return _expectation(values, log_prob).amin(0)


class ScoreLoss(DiscreteVariant):
    """Sampled expectations, with critics that take the action as an input.

    The actor's gradient is the score function's: the mean over actions a_i ~ pi(s) of grad log pi(a_i|s) times
    alpha log pi(a_i|s) - Q(s, a_i) - b_i (Williams 1992), where b_i is the mean of the others (Kool et al. 2019).
    Its mean equals the gradient of the exact expectation.
    """

    def next_value(self, next_batch: TensorDictBase) -> Tensor:
        index, log_prob = self._sample(self.log_probs(next_batch, differentiable=False), 1)
        values = self._values(next_batch, index, self.target_qvalue_network_params)
        return (values - self.alpha * log_prob).squeeze(0)

    def chosen_values(self, batch: TensorDictBase) -> Tensor:
        return self.critics(batch.select(*self.qvalue_network.in_keys), self.qvalue_network_params).squeeze(-1)

    def actor_loss(self, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        index, log_prob = self._sample(self.log_probs(batch, differentiable=True), _SAMPLES)
        with torch.no_grad():
            costs = self.alpha * log_prob - self._values(batch, index, self.frozen_critic_params)
            advantages = (costs - costs.mean(0)) * (_SAMPLES / (_SAMPLES - 1))  # minus the mean of the others
        score = score_function(log_prob, advantages).mean()
        return costs.mean() + score - score.detach(), {"log_prob": log_prob.detach().mean(0)}

    @staticmethod
    def _sample(log_probs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Choices of `count` actions per state, (count, B, heads), and their log-probabilities, (count, B)."""
        uniform = torch.rand(count, *log_probs.shape[:-1], device=log_probs.device, dtype=log_probs.dtype)
        index = quantile_index(log_probs.detach().exp().expand(count, -1, -1, -1), uniform)
        chosen = log_probs.expand(count, -1, -1, -1).gather(-1, index.unsqueeze(-1))
        return index, chosen.sum((-2, -1))

    def _values(self, batch: TensorDictBase, index: Tensor, params: TensorDictBase) -> Tensor:
        """The smallest value over critics of chosen actions, (count, B, heads) -> (count, B)."""
        count, size = index.shape[:2]
        action = self.levels.actions(index)
        observed = batch.select(*self.qvalue_network.in_keys, strict=False).exclude("action")
        pairs = observed.expand(count, size).clone(False).set("action", action).flatten()
        return self.critics(pairs, params).squeeze(-1).amin(0).unflatten(0, (count, size))


class SoftQLoss(ExactLoss):
    """Soft Q-learning (Haarnoja et al. 2017, arXiv 1702.08165) with two critics: there is no actor.

    V(s) = alpha log sum exp(Q(s, .) / alpha), the smallest over target networks. The policy is proportional to
    exp(Q / alpha), with the mean of the critics as Q; a sum over actuators makes it a product over actuators.
    """

    def next_value(self, next_batch: TensorDictBase) -> Tensor:
        values = self._values(next_batch, self.target_qvalue_network_params)
        soft = values.amax(-1) + self.alpha * self.levels.boltzmann(values, self.alpha).logsumexp(-1)
        return soft.sum(-1).amin(0)

    def log_probs(self, batch: TensorDictBase, differentiable: bool) -> Tensor:
        values = self._values(batch, self.frozen_critic_params).mean(0)
        return self.levels.boltzmann(values, self.alpha).log_softmax(-1)


class BoltzmannActor(CategoricalActor):
    """The policy of `SoftQLoss`: logits are the mean of the critics over the temperature, up to a constant.

    It shares the critics' parameters and the temperature, so that its state is a policy's whole state.

    Args:
        loss: the loss module, on its device.
        critic: a critic that values all levels, whose parameters do not matter.
        levels: the actions.
    """

    def __init__(self, loss: SoftQLoss, critic: nn.Module, levels: ActionLevels):
        super().__init__(critic.requires_grad_(False), levels)
        names = dict(critic.named_parameters())
        self.names = list(names)
        self.log_alpha = loss.log_alpha
        stacked = loss.qvalue_network_params.flatten_keys(".")
        self.stacked = nn.ParameterList([stacked[f"module.{name}"] for name in names])

    def forward(self, observation: Tensor) -> Tensor:
        values = [
            torch.func.functional_call(self.body, dict(zip(self.names, parameters, strict=True)), observation)
            for parameters in zip(*(stacked.unbind(0) for stacked in self.stacked), strict=True)
        ]
        mean = sum(values[1:], start=values[0]) / len(values)
        return self.levels.boltzmann(self.levels.split(mean), self.log_alpha.exp())

    def standalone(self) -> CategoricalActor:
        critics = []
        for parameters in zip(*(stacked.unbind(0) for stacked in self.stacked), strict=True):
            critics.append(deepcopy(self.body))
            critics[-1].load_state_dict(dict(zip(self.names, parameters, strict=True)))
        return CategoricalActor(_SumOfCritics(critics), deepcopy(self.levels))


class _SumOfCritics(nn.Module):
    """Logits with the mode of a `BoltzmannActor`, which depends neither on the temperature nor on a factor."""

    def __init__(self, critics: list[nn.Module]):
        super().__init__()
        self.critics = nn.ModuleList(critics)

    def forward(self, observation: Tensor) -> Tensor:
        values = [critic(observation) for critic in self.critics]
        return sum(values[1:], start=values[0])


def _expectation(values: Tensor, log_prob: Tensor) -> Tensor:
    """The sum over heads of the expectation over choices, (..., B, heads, choices) -> (..., B)."""
    return (log_prob.exp() * values).sum((-2, -1))


_LOSSES = {"exact": ExactLoss, "score": ScoreLoss, "soft-q": SoftQLoss}


def make_discrete_loss(
    config: Config,
    dimensions: Dimensions,
    device: torch.device,
    batched_critics: bool,
) -> tuple[DiscreteVariant, CategoricalActor]:
    """The loss module of a configuration with discrete actions, and the actor that it trains or, for soft-q, defines.

    Args:
        config, dimensions, device, batched_critics: as in `pipeline.losses.make_loss`.

    Raises:
        SaltusError: see `make_levels`; a target entropy that no policy has, or critics that act and see what the policy
            does not.
    """
    levels = make_levels(config, dimensions)
    observation_dim, action_dim, privileged_dim = dimensions.widths
    if config.without_actor and privileged_dim:
        raise SaltusError(
            "--discrete-update soft-q acts by its critics, and the task has observations for critics alone: use exact "
            "or score, or a task without the group 'critic'"
        )
    if config.without_actor:
        body: nn.Module = nn.Linear(1, 1).requires_grad_(False)  # unused: DiscreteSACLoss needs an actor with weights
    else:
        body = _body(config, [observation_dim, *config.actor_hidden, levels.outputs])
    actor = CategoricalActor(body, levels).to(device)
    policy = ProbabilisticActor(
        TensorDictModule(actor, ["observation"], ["logits"]),
        in_keys=["logits"],
        distribution_class=Categorical,
        distribution_kwargs={"validate_args": False},  # the checks synchronise
    )
    score = config.discrete_update == "score"
    in_keys = ["observation", *(["privileged"] if privileged_dim else []), *(["action"] if score else [])]
    seen = observation_dim + privileged_dim

    def make_critic() -> nn.Module:
        ends = (seen + action_dim, 1) if score else (seen, levels.outputs)
        return Critic(_body(config, [ends[0], *config.critic_hidden, ends[1]], config.critic_norm))

    critics = [TensorDictModule(make_critic().to(device), in_keys, ["action_value"]) for _ in range(config.num_critics)]
    loss = _LOSSES[config.discrete_update](
        policy,
        critics,
        action_space="categorical",
        num_qvalue_nets=config.num_critics,
        loss_function="l2",
        alpha_init=config.initial_temperature(action_dim),
        target_entropy=discrete_target(config, levels.largest_entropy),
        deactivate_vmap=not batched_critics,
    )
    loss.levels = levels.to(device)
    prepare(loss, config.initial_discount, device)
    if isinstance(loss, SoftQLoss):
        return loss, BoltzmannActor(loss, make_critic().to(device), levels)
    return loss, actor


def _body(config: Config, widths: list[int], norm: str = "none") -> Layers:
    body = mlp(widths, norm)
    if config.matmul_dtype == "bfloat16":
        set_matmul_dtype(body, torch.bfloat16)
    return body

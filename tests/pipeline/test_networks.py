from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from pipeline.networks import LOG_STD_RANGE, Actor, BatchNorm, Critic, mlp

FEATURES, BATCH = 6, 20


def pair(seed: int, momentum: float = 0.03, eps: float = 1e-2) -> tuple[BatchNorm, nn.BatchNorm1d]:
    """Ours and torch's, with the same random weights and running statistics."""
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = BatchNorm(FEATURES, momentum, eps), nn.BatchNorm1d(FEATURES, momentum=momentum, eps=eps)
    state = {
        "weight": torch.randn(FEATURES, generator=generator),
        "bias": torch.randn(FEATURES, generator=generator),
        "running_mean": torch.randn(FEATURES, generator=generator),
        "running_var": torch.rand(FEATURES, generator=generator) + 0.5,
    }
    ours.load_state_dict(state)
    theirs.load_state_dict(state, strict=False)
    return ours, theirs


def inputs(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, FEATURES, generator=generator) * 3 + torch.arange(FEATURES)


def output_and_gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = module(x)
    return [y, *torch.autograd.grad((y.sin() * y).sum(), [x, module.weight, module.bias])]


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_torchs_with_its_gradients_and_running_statistics(training: bool) -> None:
    ours, theirs = pair(0)
    ours.train(training), theirs.train(training)
    for seed in range(1, 4):
        for left, right in zip(*(output_and_gradients(m, inputs(seed)) for m in (ours, theirs)), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)
        torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_batch_norm_defaults_are_one_percent_and_a_thousandth() -> None:
    ours, theirs = BatchNorm(FEATURES), nn.BatchNorm1d(FEATURES, momentum=0.01, eps=1e-3)
    torch.testing.assert_close(ours(inputs(0)), theirs(inputs(0)))
    torch.testing.assert_close(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_under_vmap_is_one_batch_norm_for_each_member(training: bool) -> None:
    members = [pair(seed) for seed in range(3)]
    for module in (module for both in members for module in both):
        module.train(training)
    parameters, buffers = stack_module_state([ours for ours, _ in members])
    base = copy.deepcopy(members[0][0])

    def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(base, (parameters, buffers), (x,))

    for seed in range(1, 4):
        together = torch.vmap(call, in_dims=(0, 0, None))(parameters, buffers, inputs(seed))
        alone = torch.stack([theirs(inputs(seed)) for _, theirs in members])
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(buffers[name], torch.stack([getattr(theirs, name) for _, theirs in members]))


def constant_actor(loc: list[float], log_std: list[float]) -> Actor:
    """An actor that says the same whatever it sees."""
    actor = Actor(4, len(loc), (8,))
    last = actor.body[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([*loc, *log_std]))
    return actor


def test_the_samples_of_the_policy_are_tanh_of_a_gaussian_with_its_loc_and_scale() -> None:
    loc, log_std = torch.tensor([0.3, -0.8, 0.0]), torch.tensor([-1.0, -3.0, 0.0])
    actor = constant_actor(loc.tolist(), log_std.tolist())
    torch.manual_seed(0)
    count = 100_000
    actions = actor.sample(torch.zeros(count, 4))
    assert actions.shape == (count, 3)
    assert actions.abs().max() < 1
    noise = (actions.double().atanh() - loc) / log_std.exp()
    assert noise.mean(0).abs().max() < 5 / count**0.5
    assert (noise.std(0) - 1).abs().max() < 5 / (2 * count) ** 0.5
    for quantile, share in ((-1.0, 0.158655), (0.5, 0.691462), (2.0, 0.977250)):
        assert ((noise < quantile).double().mean(0) - share).abs().max() < 5 * (share * (1 - share) / count) ** 0.5
    assert torch.corrcoef(noise.T).fill_diagonal_(0).abs().max() < 5 / count**0.5


def test_samples_are_drawn_from_the_default_generator_and_afresh_each_time() -> None:
    actor, observation = Actor(4, 2, (8,)), torch.randn(5, 4)
    torch.manual_seed(0)
    first, second = actor.sample(observation), actor.sample(observation)
    torch.manual_seed(0)
    assert torch.equal(actor.sample(observation), first)
    assert not torch.equal(first, second)


def test_the_deterministic_policy_is_tanh_of_loc() -> None:
    actor, observation = Actor(4, 2, (8, 8)), torch.randn(50, 4) * 3
    loc, scale = actor(observation)
    assert torch.equal(actor.mode(observation), torch.tanh(loc))
    assert loc.shape == scale.shape == (50, 2)
    assert not actor.mode(observation).requires_grad
    assert not actor.sample(observation).requires_grad


def test_the_scale_is_clamped_and_extreme_observations_stay_within_bounds() -> None:
    _, scale = constant_actor([0.0, 0.0, 0.0], [-100.0, 100.0, 0.5])(torch.zeros(1, 4))
    torch.testing.assert_close(scale[0], torch.tensor([LOG_STD_RANGE[0], LOG_STD_RANGE[1], 0.5]).exp())
    actor = Actor(4, 2, (8,))
    for policy in (actor.sample, actor.mode):
        actions = policy(torch.tensor([[1e6, -1e6, 1e30, 0.0]]))
        assert torch.isfinite(actions).all()
        assert (actions.abs() <= 1).all()


@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_critic_gives_one_value_for_each_observation_and_action(batch_norm: bool) -> None:
    critic = Critic(4, 2, (8, 6), batch_norm).eval()
    observation, action = torch.randn(7, 4), torch.randn(7, 2)
    values = critic(observation, action)
    assert values.shape == (7, 1)
    for row in range(7):
        torch.testing.assert_close(critic(observation[row : row + 1], action[row : row + 1]), values[row : row + 1])
    assert not torch.allclose(critic(observation, action + 1), values)
    assert not torch.allclose(critic(observation + 1, action), values)


def test_batch_norm_stands_before_every_linear_layer_and_relu_between() -> None:
    kinds = [type(layer).__name__ for layer in mlp([5, 8, 6, 1], batch_norm=True)]
    assert kinds == ["BatchNorm", "Linear", "ReLU"] * 2 + ["BatchNorm", "Linear"]
    assert [type(layer).__name__ for layer in mlp([5, 8, 1])] == ["Linear", "ReLU", "Linear"]
    widths = [(layer.in_features, layer.out_features) for layer in mlp([5, 8, 6, 1]) if isinstance(layer, nn.Linear)]
    assert widths == [(5, 8), (8, 6), (6, 1)]

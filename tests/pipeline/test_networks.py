from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from pipeline.networks import (
    LOG_STD_RANGE,
    Actor,
    BatchNorm,
    Critic,
    HiddenLinear,
    ResidualBlock,
    RMSNorm,
    WeightNormalization,
    initialize_units,
    mlp,
    residual,
    set_matmul_dtype,
)

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


def test_a_bfloat16_product_has_rounded_factors_and_a_float32_result() -> None:
    torch.manual_seed(0)
    layer, x = HiddenLinear(60, 40), torch.randn(30, 60, requires_grad=True)
    weight, bias = layer.weight, layer.bias
    exact = (x.double() @ weight.double().T + bias.double()).detach()
    torch.testing.assert_close(layer(x).double(), exact, rtol=0, atol=1e-5)

    set_matmul_dtype(nn.Sequential(layer), torch.bfloat16)
    y = layer(x)
    gradients = torch.autograd.grad(y.square().sum() / 2, [x, weight, bias])
    assert {value.dtype for value in (y, *gradients)} == {torch.float32}
    x16, weight16, y16 = (value.detach().bfloat16().double() for value in (x, weight, y))
    expected = [x16 @ weight16.T + bias.detach().double(), y16 @ weight16, y16.T @ x16]
    for found, value in zip([y, *gradients[:2]], expected, strict=True):
        size = float(value.abs().max())
        assert (found.double() - value).abs().max() <= 2**-8 * size
    torch.testing.assert_close(gradients[2], y.sum(0), msg="the bias is not part of the product")
    assert (y.double() - exact).abs().max() > 1e-3, "nothing was rounded"


@pytest.mark.parametrize("body", [mlp([5, 8, 6, 3], "batch"), mlp([5, 8, 3]), residual([5, 8, 8, 3])])
def test_heads_stay_in_float32(body: nn.Sequential) -> None:
    set_matmul_dtype(body, torch.bfloat16)
    *hidden, head = [module for module in body.modules() if isinstance(module, nn.Linear)]
    assert type(head) is nn.Linear
    assert {module.matmul_dtype for module in hidden} == {torch.bfloat16}


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_equals_torchs_with_gradients_and_running_statistics(training: bool) -> None:
    ours, theirs = pair(0)
    ours.train(training), theirs.train(training)
    for seed in range(1, 4):
        for left, right in zip(*(output_and_gradients(m, inputs(seed)) for m in (ours, theirs)), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)
        torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_batch_norm_has_momentum_001_and_eps_0001_by_default() -> None:
    ours, theirs = BatchNorm(FEATURES), nn.BatchNorm1d(FEATURES, momentum=0.01, eps=1e-3)
    torch.testing.assert_close(ours(inputs(0)), theirs(inputs(0)))
    torch.testing.assert_close(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_under_vmap_equals_one_batch_norm_per_member(training: bool) -> None:
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


def constant_actor(loc: list[float], log_std: list[float], bounded: bool = False) -> Actor:
    """An actor whose output does not depend on the observation."""
    actor = Actor(mlp([4, 8, 2 * len(loc)]), bounded)
    last = actor.body[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([*loc, *log_std]))
    return actor


def test_sample_is_tanh_of_loc_plus_scaled_noise() -> None:
    loc, log_std, noise = torch.tensor([0.3, -0.8, 0.0]), torch.tensor([-1.0, -3.0, 0.0]), torch.randn(50, 3)
    actions = constant_actor(loc.tolist(), log_std.tolist()).sample(torch.randn(50, 4), noise)
    torch.testing.assert_close(actions, torch.tanh(loc + log_std.exp() * noise))


def test_mode_is_tanh_of_loc_and_the_sample_without_noise() -> None:
    actor, observation = Actor(mlp([4, 8, 8, 4])), torch.randn(50, 4) * 3
    loc, scale = actor(observation)
    assert torch.equal(actor.mode(observation), torch.tanh(loc))
    assert torch.equal(actor.mode(observation), actor.sample(observation, torch.zeros(50, 2)))
    assert loc.shape == scale.shape == (50, 2)
    assert not actor.mode(observation).requires_grad
    assert not actor.sample(observation, torch.randn(50, 2)).requires_grad


@pytest.mark.parametrize("bounded", [False, True])
def test_actions_for_extreme_observations_are_finite_and_within_bounds(bounded: bool) -> None:
    actor, observation = Actor(mlp([4, 8, 4]), bounded), torch.tensor([[1e6, -1e6, 1e30, 0.0]])
    for actions in (actor.sample(observation, torch.randn(1, 2)), actor.mode(observation)):
        assert torch.isfinite(actions).all()
        assert (actions.abs() <= 1).all()


def test_log_std_is_clipped_to_its_range() -> None:
    _, scale = constant_actor([0.0, 0.0, 0.0], [-100.0, 100.0, 0.5])(torch.zeros(1, 4))
    torch.testing.assert_close(scale[0], torch.tensor([LOG_STD_RANGE[0], LOG_STD_RANGE[1], 0.5]).exp())


@pytest.mark.parametrize("z", [-100.0, -1.3, 0.0, 0.4, 100.0])
def test_bounded_log_std_is_squashed_between_minus_10_and_2(z: float) -> None:
    actor = constant_actor([0.0], [z], bounded=True)
    _, scale = actor(torch.zeros(1, 4))
    assert -10 <= scale.log().item() <= 2 + 1e-6
    assert scale.log().item() == pytest.approx(-10 + 6 * (1 + math.tanh(z)), abs=1e-5)
    if abs(z) < 2:
        scale.sum().backward()
        assert actor.body[-1].bias.grad[1] > 0


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("order", ["after", "before"])
def test_a_critic_has_one_value_for_each_observation_and_action(norm: str, order: str) -> None:
    critic = Critic(mlp([6, 8, 6, 1], norm, order)).eval()
    observation, action = torch.randn(7, 4), torch.randn(7, 2)
    values = critic(observation, action)
    assert values.shape == (7, 1)
    for row in range(7):
        torch.testing.assert_close(critic(observation[row : row + 1], action[row : row + 1]), values[row : row + 1])
    assert not torch.allclose(critic(observation, action + 1), values)
    assert not torch.allclose(critic(observation + 1, action), values)


@pytest.mark.parametrize(
    ("options", "first", "hidden"),
    [
        ({}, "", "Linear ReLU"),
        ({"order": "before"}, "", "Linear ReLU"),
        ({"dropout": 0.1}, "", "Linear Dropout ReLU"),
        ({"norm": "layer"}, "", "Linear LayerNorm ReLU"),
        ({"norm": "layer", "order": "before"}, "", "Linear LayerNorm ReLU"),
        ({"norm": "layer", "dropout": 0.1}, "", "Linear Dropout LayerNorm ReLU"),
        ({"norm": "batch"}, "BatchNorm", "Linear ReLU BatchNorm"),
        ({"norm": "batch", "order": "before"}, "BatchNorm", "Linear BatchNorm ReLU"),
    ],
)
@pytest.mark.parametrize("widths", [[5, 8, 1], [5, 8, 6, 7, 3]])
def test_mlp_has_the_layers_of_its_norm_order_and_dropout(
    options: dict[str, str], first: str, hidden: str, widths: list[int]
) -> None:
    layers = list(mlp(widths, **options))
    expected = [*first.split(), *hidden.split() * (len(widths) - 2), "Linear"]
    assert [type(layer).__name__.removeprefix("Hidden") for layer in layers] == expected
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == list(pairwise(widths))
    precede_batch_norm = [isinstance(layer, BatchNorm) for layer in [*layers[1:], None]]
    for layer, precedes_batch_norm in zip(layers, precede_batch_norm, strict=True):
        assert not isinstance(layer, nn.Linear) or (layer.bias is None) == precedes_batch_norm
    assert all(layer.p == 0.1 for layer in layers if isinstance(layer, nn.Dropout))
    assert mlp(widths, **options)(torch.randn(4, 5)).shape == (4, widths[-1])


def randomize(network: nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    norm, x = RMSNorm(6), torch.randn(5, 6) * 3
    randomize(norm)
    expected = [[v / math.sqrt(sum(u * u for u in row) / 6 + 1e-6) for v in row] for row in x.tolist()]
    torch.testing.assert_close(norm(x), torch.tensor(expected) * norm.weight)
    torch.testing.assert_close(norm(x * 1e4), norm(x))


@pytest.mark.parametrize("training", [True, False])
def test_a_residual_block_adds_two_normalized_layers_to_its_input(training: bool) -> None:
    block, x = ResidualBlock(3), torch.randn(20, 3)
    randomize(block)
    inner, inner_norm, _, outer, outer_norm, _ = block.body
    assert inner.weight.shape == (12, 3)
    assert outer.weight.shape == (3, 12)
    assert inner.bias is outer.bias is None

    def norm(values: Tensor, layer: BatchNorm) -> Tensor:
        mean, var = (values.mean(0), values.var(0, correction=0)) if training else (0.0, torch.tensor(1.0))
        return (values - mean) / (var + 1e-5).sqrt() * layer.weight + layer.bias

    block.train(training)
    hidden = norm(x @ inner.weight.T, inner_norm).clamp(min=0)
    expected = x + norm(hidden @ outer.weight.T, outer_norm).clamp(min=0)
    torch.testing.assert_close(block(x), expected)


def test_residual_network_has_embedding_blocks_norm_and_head() -> None:
    network = residual([5, 8, 8, 8, 3])
    kinds = [type(layer).__name__ for layer in network]
    assert kinds == ["BatchNorm", "HiddenLinear", *["ResidualBlock"] * 3, "RMSNorm", "Linear"]
    assert [tuple(network[i].weight.shape) for i in (1, -1)] == [(8, 5), (3, 8)]
    assert (network[1].bias is None, network[-1].bias is None) == (True, False)
    assert network(torch.randn(4, 5)).shape == (4, 3)


def linear_weights(network: nn.Module) -> list[Tensor]:
    return [module.weight for module in network.modules() if isinstance(module, nn.Linear)]


@pytest.mark.parametrize("network", [mlp([5, 8, 3], "batch"), residual([5, 8, 8, 3])], ids=["mlp", "residual"])
def test_initial_weights_are_orthogonal_with_norm_1_and_biases_0(network: nn.Module) -> None:
    initialize_units(network)
    for weight in linear_weights(network):
        torch.testing.assert_close(weight.norm(dim=-1), torch.ones(weight.shape[:-1]))
        if weight.shape[0] <= weight.shape[1]:
            torch.testing.assert_close(weight @ weight.T, torch.eye(len(weight)), rtol=0, atol=1e-5)
    assert all(not module.bias.any() for module in network.modules() if getattr(module, "bias", None) is not None)


@pytest.mark.parametrize("scales", [False, True])
@pytest.mark.parametrize("stacked", [(), (3,)], ids=["one", "stacked"])
@pytest.mark.parametrize(
    "body", [mlp([5, 8, 6, 3], "batch", "before"), residual([5, 8, 8, 3])], ids=["mlp", "residual"]
)
def test_weight_normalization_gives_rows_norm_1_and_scales_the_norm_of_ones(
    body: nn.Module, stacked: tuple[int, ...], scales: bool
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(body)
    parameters = {name: torch.randn(*stacked, *value.shape) for name, value in network.named_parameters()}
    before = {name: value.clone() for name, value in parameters.items()}
    WeightNormalization(network, parameters, scales).project()
    projected = set()
    for layer, module in network.named_modules():
        own = [f"{layer}.{name}" for name, _ in module.named_parameters(recurse=False)]
        if isinstance(module, nn.Linear):
            weight, old = parameters[own[0]], before[own[0]]
            torch.testing.assert_close(weight, old / old.norm(dim=-1, keepdim=True))
            projected.add(own[0])
        elif isinstance(module, BatchNorm | RMSNorm) and scales:
            joint = torch.cat([before[name] for name in own], -1)
            factor = before[own[0]].shape[-1] ** 0.5 / joint.norm(dim=-1, keepdim=True)
            assert len(own) == (2 if isinstance(module, BatchNorm) else 1)
            for name in own:
                torch.testing.assert_close(parameters[name], before[name] * factor)
            projected |= {*own}
    assert all(torch.equal(parameters[name], before[name]) for name in parameters.keys() - projected)

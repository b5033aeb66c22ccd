"""Losses of ensembles of critics: subsets, batches, dropout; TorchRL's losses as a reference."""

from __future__ import annotations

import pytest
import torch
from loss_helpers import randomized_loss
from loss_reference import (
    BATCH,
    Reference,
    assert_equal,
    assert_gradients_equal,
    double,
    seeded_noise,
    trainable,
)
from pipeline_helpers import (
    ACTION_DIM,
    PRESETS,
    random_transition,
)
from torch import Tensor
from torchrl.objectives import CrossQLoss, REDQLoss, SACLoss

from pipeline import losses
from pipeline.torchrl_adapter import (
    actor_loss,
    actor_parameters,
    critic_loss,
    critic_parameters,
    target_parameters,
)

every_preset = pytest.mark.parametrize("preset", PRESETS)
pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def test_each_pair_of_targets_is_drawn_equally_often() -> None:
    loss, batch, count = randomized_loss("redq", num_critics=4, gamma=0.5), random_transition(BATCH), 300
    batch["next", "terminated"].fill_(False)
    bias = next(value for value in target_parameters(loss).values() if value.shape == (4, 1))
    bias += torch.tensor([[0.0], [1e4], [2e4], [3e4]])
    torch.manual_seed(0)
    found = [float((critic_loss(loss, batch.copy())[0].detach() / 4) ** 0.5 / 0.5e4) for _ in range(count)]
    smallest = torch.tensor(found).round().long().bincount(minlength=4) / count
    # Of the six pairs, three have 0 as the smaller index, two have 1, and one has 2.
    assert (smallest - torch.tensor([3, 2, 1, 0]) / 6).abs().max() < 5 * (0.25 / count) ** 0.5
    assert smallest[3] == 0


@pytest.mark.parametrize(("preset", "ours", "torchrls"), [
    ("sac", losses.EnsembleLoss, SACLoss), ("crossq", losses.JointLoss, CrossQLoss)
])  # fmt: skip
def test_sac_and_crossq_equal_torchrls(
    preset: str, ours: type, torchrls: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, variant = random_transition(BATCH), randomized_loss(preset)
    monkeypatch.setattr(losses, "loss_class", lambda config: (torchrls, "state_action_value", {}))
    original = randomized_loss(preset)
    assert (type(variant), type(original)) == (ours, torchrls)
    for compute, parameters in (
        (critic_loss, critic_parameters),
        (actor_loss, actor_parameters),
    ):
        found = []
        for loss in (variant, original):
            torch.manual_seed(1)
            value = compute(loss, batch.copy())[0]
            found.append([value, *torch.autograd.grad(value, list(parameters(loss).values()))])
        for left, right in zip(*found, strict=True):
            torch.testing.assert_close(left, right)


@pytest.mark.parametrize("seed", range(3))
def test_ensemble_losses_equal_torchrls_redq(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    num_critics, batch = 5, random_transition(BATCH, seed)
    noise, order = seeded_noise(seed).float(), torch.rand(num_critics).argsort()
    ours = randomized_loss("redq", seed, num_critics=num_critics)
    monkeypatch.setattr(losses, "loss_class", lambda config: (REDQLoss, "state_action_value", {"sub_sample_len": 2}))
    theirs = randomized_loss("redq", seed, num_critics=num_critics)
    # Both get the same noise and the same two critics. TorchRL draws the noise for s and s' at once.
    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", lambda shape, **_: noise.expand(shape))
    monkeypatch.setattr(torch, "randperm", lambda count: order)
    monkeypatch.setattr(losses, "draw_subset", lambda count, size, after: order[:size])
    expected = theirs(batch.copy())
    for value, loss, parameters in (
        (
            critic_loss(ours, batch.copy())[0] / num_critics,
            "loss_qvalue",
            critic_parameters,
        ),
        (actor_loss(ours, batch.copy())[0], "loss_actor", actor_parameters),
    ):
        torch.testing.assert_close(value, expected[loss])
        gradients = (
            torch.autograd.grad(total, list(parameters(module).values()), retain_graph=True)
            for total, module in ((value, ours), (expected[loss], theirs))
        )
        for left, right in zip(*gradients, strict=True):
            torch.testing.assert_close(left, right)


@every_preset
def test_batched_critics_equal_critics_one_by_one(preset: str) -> None:
    found = []
    for batched in (True, False):
        loss, batch = randomized_loss(preset, batched_critics=batched), random_transition(BATCH)
        torch.manual_seed(1)
        critic, actor = (
            critic_loss(loss, batch.copy())[0],
            actor_loss(loss, batch.copy())[0],
        )
        gradients = torch.autograd.grad(critic, list(critic_parameters(loss).values()))
        gradients += torch.autograd.grad(actor, list(actor_parameters(loss).values()))
        statistics = [value for name, value in loss.state_dict().items() if ".running_" in name]
        found.append([critic, actor, *gradients, *statistics])
    for left, right in zip(*found, strict=True):
        # 1e-7, because some gradients are 0 up to rounding: a batch norm cancels the parameter.
        torch.testing.assert_close(left, right, rtol=1e-4, atol=max(1e-7, 1e-5 * float(right.detach().abs().max())))


def dropout_masks(share: float, num_passes: int) -> list[Tensor]:
    """The masks that torch draws next, for each pass through two critics of widths 7 and 5."""
    kept = [torch.nn.functional.dropout(torch.ones(BATCH, width), share) > 0 for width in (7, 5) * 2 * num_passes]
    return [mask.double() / (1 - share) for mask in kept]


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_dropout_drops_different_units_in_each_critic_and_scales_the_rest(share: float) -> None:
    loss, batch = randomized_loss("droq", dropout=share), random_transition(BATCH)
    reference = Reference.of("droq", loss, dropout=share)
    for seed, compute, parameters, equation, params, num_passes in (
        (1, critic_loss, critic_parameters, reference.critic_loss, reference.critic, 2),
        (2, actor_loss, actor_parameters, reference.actor_loss, reference.actor, 1),
    ):
        noise = seeded_noise(seed)
        torch.randn(BATCH, ACTION_DIM)
        masks = dropout_masks(share, num_passes)
        assert not any(torch.equal(masks[i], masks[j]) for i in range(len(masks)) for j in range(i))
        torch.manual_seed(seed)
        value, expected = compute(loss, batch.copy())[0], equation(double(batch), noise, masks=iter(masks))
        expected = expected[0] if isinstance(expected, tuple) else expected
        assert_equal(value, expected, "loss: ")
        assert_gradients_equal(value, parameters(loss), expected, trainable(params))


@pytest.mark.parametrize("batched", [True, False])
def test_critics_with_equal_weights_drop_different_units(batched: bool) -> None:
    loss, batch = randomized_loss("droq", batched_critics=batched, dropout=0.3), random_transition(BATCH)
    for parameter in critic_parameters(loss).values():
        parameter.detach()[1] = parameter.detach()[0]
    first, second = torch.autograd.grad(critic_loss(loss, batch.copy())[0], list(critic_parameters(loss).values()))[0]
    assert not torch.allclose(first, second)

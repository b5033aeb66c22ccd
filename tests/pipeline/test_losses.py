"""Losses and gradients against an independent float64 reference, `loss_reference`."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import pytest
import torch
from loss_helpers import make_loss, randomized_loss
from loss_reference import (
    BATCH,
    CATEGORICAL,
    CRITICS,
    Reference,
    assert_equal,
    assert_gradients_equal,
    double,
    layers,
    loss_config,
    running_statistics,
    seeded_noise,
    seeded_subset,
    to_double,
    trainable,
)
from pipeline_helpers import (
    ACTION_DIM,
    OBSERVATION_DIM,
    PRESETS,
    WITH_TARGETS,
    copied_parameters,
    random_transition,
    small_config,
)
from tensordict import TensorDict
from torch import Tensor

from pipeline import losses, presets
from pipeline.dimensions import Dimensions
from pipeline.state_value import StateValueLoss
from pipeline.torchrl_adapter import (
    Loss,
    actor_loss,
    actor_parameters,
    alpha_loss,
    critic_loss,
    critic_parameters,
    target_parameters,
    value_loss,
    value_parameters,
)
from saltus.errors import SaltusError

SAME_LOSS = {"flashsac-parallel": "flashsac"}  # presets with the losses and networks of another
CASES: list[tuple[str, dict[str, Any]]] = [
    (preset, {"num_critics": count}) for preset in PRESETS for count in (1, 2, 3) if (preset, count) != ("redq", 1)
]
CASES += [
    ("redq", {"num_critics": 4, "actor_value": "min"}),
    *((name, {"target_network": False}) for name in CATEGORICAL[:2]),
]
cases = pytest.mark.parametrize(("preset", "overrides"), CASES, ids=[f"{name}-{values}" for name, values in CASES])
every_preset = pytest.mark.parametrize("preset", PRESETS)
pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


@pytest.mark.parametrize(
    ("preset", "cls", "has_targets", "batch_norms"),
    [
        ("sac", losses.EnsembleLoss, True, []),
        ("sac-v1", StateValueLoss, True, []),
        ("redq", losses.EnsembleLoss, True, []),
        ("droq", losses.EnsembleLoss, True, []),
        ("crossq", losses.JointLoss, False, [OBSERVATION_DIM + ACTION_DIM, 7, 5]),
        ("xqc", losses.CategoricalLoss, True, [OBSERVATION_DIM + ACTION_DIM, 7, 5]),
        ("flashsac", losses.CategoricalLoss, True, [OBSERVATION_DIM + ACTION_DIM, 20, 5, 20, 5]),
        ("fast", losses.CategoricalLoss, False, [OBSERVATION_DIM + ACTION_DIM, 7, 5]),
    ],
)
def test_each_preset_has_its_loss_targets_and_batch_norms(
    preset: str, cls: type, has_targets: bool, batch_norms: list[int]
) -> None:
    loss = randomized_loss(preset)
    assert type(loss) is cls
    assert list(target_parameters(loss)) == (list(copied_parameters(loss)) if has_targets else [])
    critic = to_double(loss.qvalue_network_params)
    assert [layer["running_mean"].shape[1] for layer in layers(critic) if "running_mean" in layer] == batch_norms


@pytest.mark.parametrize("preset", sorted({*presets.names()} - {"sac-discrete"}))  # test_discrete_losses.py
def test_every_preset_is_held_to_the_equations(preset: str) -> None:
    """A new preset needs its layers in CRITICS and ACTORS and its equations in Reference."""
    checked = SAME_LOSS.get(preset, preset)
    assert checked in {name for name, _ in CASES}
    assert checked in CRITICS
    of_the_run = ("task", "num_envs", "total_env_steps", "utd_ratio", "batch_size", "buffer_size", "learning_starts")
    of_the_run += ("n_step", "log_every", "eval_every", "checkpoint_every")
    left, right = (
        {**vars(presets.preset(name, "Hopper-v5")), **dict.fromkeys(of_the_run)} for name in (preset, checked)
    )
    assert left == right


@cases
@pytest.mark.parametrize("seed", range(2))
def test_critic_loss_and_its_gradients_follow_the_equations(preset: str, overrides: dict[str, Any], seed: int) -> None:
    loss = randomized_loss(preset, seed, **overrides)
    reference, batch = Reference.of(preset, loss, **overrides), random_transition(BATCH, seed)
    has_subset = preset == "redq" and reference.num_critics > 2
    subset = seeded_subset(seed + 10, reference.num_critics) if has_subset else slice(None)
    noise = seeded_noise(seed + 10)
    value, metrics = critic_loss(loss, batch.copy())
    expected = reference.critic_loss(double(batch), noise, subset)
    assert_equal(value, expected, "critic loss: ")
    assert metrics.keys() == reference.metrics.keys() | {"td_error"}
    assert metrics["td_error"].shape == (BATCH,)
    for name, expected_metric in reference.metrics.items():
        assert_equal(metrics[name], expected_metric, f"{name}: ", least=1e-6)
    assert_gradients_equal(value, critic_parameters(loss), expected, trainable(reference.critic))


@pytest.mark.parametrize("num_critics", [1, 2, 3])
@pytest.mark.parametrize("seed", range(2))
def test_value_loss_and_its_gradients_follow_the_equation(num_critics: int, seed: int) -> None:
    loss = randomized_loss("sac-v1", seed, num_critics=num_critics)
    reference, batch = Reference.of("sac-v1", loss, num_critics=num_critics), random_transition(BATCH, seed)
    noise = seeded_noise(seed + 10)
    value, expected = value_loss(loss, batch.copy()), reference.value_loss(double(batch), noise)
    assert_equal(value, expected, "value loss: ")
    assert_gradients_equal(value, value_parameters(loss), expected, trainable(reference.value))


@pytest.mark.parametrize("preset", ["sac", "sac-v1", "droq", "crossq"])
def test_the_loss_of_a_single_critic_is_its_mean_squared_td_error(preset: str) -> None:
    value, metrics = critic_loss(randomized_loss(preset, num_critics=1), random_transition(BATCH))
    assert not any(metric.requires_grad for metric in metrics.values())
    torch.testing.assert_close(metrics["td_error"].square().mean(), value.detach())


@cases
@pytest.mark.parametrize("seed", range(2))
def test_actor_and_alpha_losses_and_their_gradients_follow_the_equations(
    preset: str, overrides: dict[str, Any], seed: int
) -> None:
    overrides = {**overrides, "target_entropy": -1.7}
    loss = randomized_loss(preset, seed, **overrides)
    reference, batch = Reference.of(preset, loss, **overrides), random_transition(BATCH, seed)
    noise = seeded_noise(seed + 10)
    value, log_prob = actor_loss(loss, batch.copy())
    expected, expected_log_prob = reference.actor_loss(double(batch), noise)
    assert_equal(value, expected, "actor loss: ")
    assert_gradients_equal(value, actor_parameters(loss), expected, trainable(reference.actor))
    assert not log_prob.requires_grad
    forms: tuple[Literal["log", "exp"], ...] = ("log", "exp")
    for form in forms:
        value, expected = alpha_loss(loss, log_prob, form), reference.alpha_loss(expected_log_prob, -1.7, form)
        assert_equal(value, expected, f"alpha loss {form}: ")
        assert_gradients_equal(value, {"log_alpha": loss.log_alpha}, expected, {"log_alpha": reference.log_alpha})


@every_preset
@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.99])
def test_values_k_steps_later_are_discounted_by_gamma_to_the_k(preset: str, gamma: float) -> None:
    loss, batch = randomized_loss(preset, gamma=gamma), random_transition(BATCH)
    batch["steps_to_next_obs"] = torch.randint(1, 6, (BATCH, 1)).float()
    subset = seeded_subset(5, 10) if preset == "redq" else slice(None)
    reference, noise = Reference.of(preset, loss, gamma=gamma), seeded_noise(5)
    value = critic_loss(loss, batch.copy())[0]
    assert_equal(value, reference.critic_loss(double(batch), noise, subset), "critic loss: ")


@pytest.mark.parametrize("preset", ["crossq", *CATEGORICAL])
def test_the_critic_loss_updates_running_statistics_of_critics_and_targets_with_the_joint_batch(preset: str) -> None:
    loss, batch = randomized_loss(preset), random_transition(BATCH)
    before, reference = Reference.of(preset, loss), Reference.of(preset, loss)
    noise = seeded_noise(3)
    critic_loss(loss, batch.copy())
    reference.critic_loss(double(batch), noise)
    after = Reference.of(preset, loss)
    for part in ("critic", "target"):
        for name, value in running_statistics(getattr(after, part)).items():
            assert not torch.allclose(value, getattr(before, part)[name], rtol=1e-4)
            assert_equal(value, getattr(reference, part)[name], f"{part} {name}")
    assert all(torch.equal(value, before.actor[name]) for name, value in after.actor.items())


@pytest.mark.parametrize("preset", ["crossq", *CATEGORICAL])
def test_the_actor_loss_updates_running_statistics_of_the_actor_only_and_restores_the_modes(preset: str) -> None:
    loss, batch = randomized_loss(preset), random_transition(BATCH)
    before, reference = Reference.of(preset, loss), Reference.of(preset, loss)
    noise = seeded_noise(3)
    actor_loss(loss, batch.copy())
    reference.actor_loss(double(batch), noise)
    after = Reference.of(preset, loss)
    for part in ("critic", "target"):
        assert all(torch.equal(value, getattr(before, part)[name]) for name, value in getattr(after, part).items())
    for name, value in running_statistics(after.actor).items():
        assert not torch.allclose(value, before.actor[name], rtol=1e-4)
        assert_equal(value, reference.actor[name], name)
    assert all(module.training for module in loss.qvalue_network.modules())
    assert preset == "crossq" or not any(module.training for module in loss.actor_network.modules())


@every_preset
def test_each_loss_has_gradients_for_its_own_parameters_only(preset: str) -> None:
    loss, batch = randomized_loss(preset), random_transition(BATCH)
    groups = {
        "critic": list(critic_parameters(loss).values()),
        "actor": list(actor_parameters(loss).values()),
        "alpha": [loss.log_alpha],
    }
    actor, log_prob = actor_loss(loss, batch.copy())
    found = {"critic": critic_loss(loss, batch.copy())[0], "actor": actor, "alpha": alpha_loss(loss, log_prob)}
    if value_parameters(loss):
        groups["value"], found["value"] = list(value_parameters(loss).values()), value_loss(loss, batch.copy())
    for name, value in found.items():
        for group, parameters in groups.items():
            gradients = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
            if group != name:
                assert all(gradient is None or not gradient.any() for gradient in gradients), f"{name} trains {group}"
    assert not any(target.requires_grad for target in target_parameters(loss).values())


def critic_loss_at(loss: Loss, batch: TensorDict) -> Tensor:
    torch.manual_seed(0)
    return critic_loss(loss, batch.copy())[0].detach()


@every_preset
def test_termination_cuts_the_bootstrap_and_truncation_does_not(preset: str) -> None:
    batch, everywhere = random_transition(BATCH), torch.ones(BATCH, 1, dtype=torch.bool)
    flags = {
        name: batch.clone().update({"next": {"terminated": terminated, "truncated": truncated, "done": done}})
        for name, terminated, truncated, done in (
            ("running", ~everywhere, ~everywhere, ~everywhere),
            ("truncated", ~everywhere, everywhere, everywhere),
            ("terminated", everywhere, ~everywhere, everywhere),
            ("both", everywhere, everywhere, everywhere),
        )
    }
    found = {name: critic_loss_at(randomized_loss(preset), flagged) for name, flagged in flags.items()}
    assert torch.equal(found["running"], found["truncated"])
    assert torch.equal(found["terminated"], found["both"])
    assert not torch.isclose(found["running"], found["terminated"])
    torch.testing.assert_close(critic_loss_at(randomized_loss(preset, gamma=0.0), batch), found["terminated"])


@pytest.mark.parametrize("smallest", range(3))
@pytest.mark.parametrize("preset", ["sac", "droq"])
def test_the_target_uses_the_smallest_value(preset: str, smallest: int) -> None:
    loss, batch = randomized_loss(preset, num_critics=3, gamma=0.5), random_transition(BATCH)
    batch["next", "terminated"].fill_(False)
    bias = next(value for value in target_parameters(loss).values() if value.shape == (3, 1))
    bias[smallest] -= 1e4
    alone = critic_loss_at(loss, batch)
    assert alone == pytest.approx(3 * (0.5 * 1e4) ** 2, rel=0.01)
    bias[(smallest + 1) % 3] += 1e6
    bias[(smallest + 2) % 3] += 1e6
    assert critic_loss_at(loss, batch) == alone


@every_preset
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_the_automatic_target_entropy_is_minus_the_action_dimension_times_its_scale(preset: str, scale: float) -> None:
    assert float(randomized_loss(preset, target_entropy_scale=scale).target_entropy) == pytest.approx(
        -scale * ACTION_DIM
    )
    given = randomized_loss(preset, target_entropy_scale=scale, target_entropy=-0.5)
    assert float(given.target_entropy) == -0.5


@every_preset
def test_the_initial_temperature_is_alpha_init(preset: str) -> None:
    loss, _ = losses.make_loss(small_config(preset=preset, alpha_init=0.2), Dimensions(3, 1), torch.device("cpu"))
    assert float(loss.log_alpha.detach().exp()) == pytest.approx(0.2)


@every_preset
def test_critics_start_different_from_each_other_and_targets_as_copies(preset: str) -> None:
    loss, _ = make_loss(loss_config(preset))
    critics, targets, copied = critic_parameters(loss), target_parameters(loss), copied_parameters(loss)
    matrices = [value for value in critics.values() if value.dim() == 3]
    assert matrices
    for stacked in matrices:
        assert len({tuple(weight.flatten().tolist()) for weight in stacked}) == loss_config(preset).num_critics
    assert bool(targets) == (preset in WITH_TARGETS)
    assert all(torch.equal(value, copied[name]) for name, value in targets.items())


@every_preset
@pytest.mark.parametrize("loc", [8.0, 20.0, 100.0])
def test_saturated_actions_have_the_right_finite_log_probability(preset: str, loc: float) -> None:
    loss, batch = randomized_loss(preset), random_transition(BATCH)
    bias = list(actor_parameters(loss).values())[-1]
    with torch.no_grad():
        bias[:ACTION_DIM] = torch.tensor([loc, -loc, loc])
    reference, noise = Reference.of(preset, loss), seeded_noise(1)
    value, log_prob = actor_loss(loss, batch.copy())
    expected, expected_log_prob = reference.actor_loss(double(batch), noise)
    assert (reference.policy(double(batch)["observation"], noise, training=True)[0].abs() > 0.99).any()
    torch.testing.assert_close(log_prob.double(), expected_log_prob, rtol=2e-5, atol=1e-4)
    gradients = torch.autograd.grad(value, list(actor_parameters(loss).values()))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert_equal(value, expected, "actor loss: ")
    assert critic_loss(loss, batch.copy())[0].isfinite()


@every_preset
def test_actor_samples_equal_those_of_the_loss(preset: str) -> None:
    loss, actor = make_loss(loss_config(preset))
    observation = torch.randn(BATCH, OBSERVATION_DIM)
    batch = TensorDict({"observation": observation}, batch_size=[BATCH])
    noise = seeded_noise(0).float()
    with loss.actor_network_params.to_module(loss.actor_network):
        sampled = loss.actor_network.get_dist(batch).rsample().detach()
    torch.testing.assert_close(actor.sample(observation, noise), sampled, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(sampled, actor.mode(observation), atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "given"),
    [({"target_entropy": 2.1}, "is 2.1"), ({"target_entropy_scale": -0.7}, "scale is -0.7")],
)
def test_target_entropy_of_the_uniform_distribution_is_refused(settings: dict[str, float], given: str) -> None:
    """No other distribution over [-1, 1]^3 has its entropy, 3 log 2, or a larger one."""
    message = f"the target entropy {given}, and the entropy of a policy with 3 actions in [-1, 1] is below 2.08, "
    with pytest.raises(SaltusError, match=re.escape(message)):
        make_loss(loss_config("sac", **settings))
    make_loss(loss_config("sac", **settings, alpha_lr=0.0))
    loss, _ = make_loss(loss_config("sac", target_entropy=2.0))
    assert float(loss.target_entropy) == 2.0


@pytest.mark.parametrize("preset", CATEGORICAL)
def test_a_nan_reward_makes_the_loss_nan_and_raises_nothing(preset: str) -> None:
    loss, batch = randomized_loss(preset), random_transition(BATCH)
    batch["next", "reward"][3] = math.nan
    assert critic_loss(loss, batch)[0].isnan()

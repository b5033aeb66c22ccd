from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from pipeline_helpers import (
    ACTION_DIM,
    DIMENSIONS,
    OBSERVATION_DIM,
    PRESETS,
    WITH_TARGETS,
    clone_state,
    copied_parameters,
    differing,
    filled_buffer,
    make_agent,
    random_transition,
    small_config,
)
from torch import Tensor

from pipeline.agent import Agent
from pipeline.divergence import DivergenceError
from pipeline.torchrl_adapter import (
    actor_loss,
    actor_parameters,
    critic_loss,
    critic_parameters,
    target_parameters,
    value_loss,
    value_parameters,
)

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
every_recipe = pytest.mark.parametrize("preset", PRESETS)


def changed(agent: Agent, before: dict[str, Tensor]) -> set[str]:
    """The names in the loss module's state whose values differ from `before`."""
    return {name for name, value in agent.loss.state_dict().items() if not torch.equal(value, before[name])}


@every_recipe
def test_update_critic_changes_only_critics_state_value_network_and_targets(preset: str) -> None:
    agent = make_agent(preset)
    before = clone_state(dict(agent.loss.state_dict()))
    metrics = agent.update_critic(random_transition(16))
    has_value = agent.config.value_network
    names = {"critic_loss", "td_error", "q_mean", "target_mean"} | ({"value_loss"} if has_value else set())
    categorical = agent.config.critic_loss == "categorical"
    assert metrics.keys() == names | ({"clipped_targets"} if categorical else set())
    assert all(metric.shape == () for metric in metrics.values())
    targets = {"target_value" if has_value else "target_qvalue"} if preset in WITH_TARGETS else set()
    expected = {"qvalue"} | ({"value"} if has_value else set()) | targets
    assert {name.partition("_network")[0] for name in changed(agent, before)} == expected


@every_recipe
def test_update_actor_changes_only_actor_and_temperature(preset: str) -> None:
    agent = make_agent(preset)
    before = clone_state(dict(agent.loss.state_dict()))
    metrics = agent.update_actor(random_transition(16))
    learned = {"alpha_loss"} if agent.config.learns_temperature else set()
    assert metrics.keys() == {"actor_loss", "alpha", "entropy"} | learned
    names = changed(agent, before)
    assert ("log_alpha" in names) == bool(learned)
    assert any(name.endswith("weight") for name in names)
    assert all(name.startswith("actor_network") for name in names - {"log_alpha"})


@every_recipe
def test_update_actor_needs_no_successors(preset: str) -> None:
    whole, states = make_agent(preset), make_agent(preset)
    found = []
    for agent, batch in ((whole, random_transition(16)), (states, random_transition(16).exclude("next"))):
        torch.manual_seed(0)
        found.append([agent.update_actor(batch), agent.state_dict()])
    assert differing(*found) == []


@every_recipe
def test_update_is_critic_then_actor_update(preset: str) -> None:
    together, apart = make_agent(preset), make_agent(preset)
    batch, found = random_transition(16), []
    for agent in (together, apart):
        torch.manual_seed(0)
        metrics = agent.update(batch) if agent is together else agent.update_critic(batch) | agent.update_actor(batch)
        found.append([metrics, agent.state_dict()])
    assert differing(*found) == []


@pytest.mark.parametrize("preset", WITH_TARGETS)
@pytest.mark.parametrize("tau", [0.005, 0.3, 1.0])
def test_targets_move_by_tau_towards_the_updated_networks(preset: str, tau: float) -> None:
    agent = make_agent(preset, tau=tau)
    for seed in range(4):
        before = clone_state(target_parameters(agent.loss))
        agent.update_critic(random_transition(16, seed))
        networks = copied_parameters(agent.loss)
        for name, target in target_parameters(agent.loss).items():
            expected = (1 - tau) * before[name] + tau * networks[name].detach()
            torch.testing.assert_close(target, expected, rtol=1e-6, atol=1e-7)


@every_recipe
def test_updates_do_not_change_the_batch(preset: str) -> None:
    agent, batch = make_agent(preset), random_transition(16)
    keys, before = set(batch.keys(True)), batch.clone()
    agent.update_critic(batch)
    agent.update_actor(batch)
    assert set(batch.keys(True)) == keys
    assert (batch == before).all()


def test_learning_rates_follow_the_progress_of_the_run() -> None:
    agent = Agent(small_config(actor_lr=1e-2, lr_final_fraction=0.25, adam_beta1=0.0), DIMENSIONS)
    changes = []
    for progress in (0.0, 0.5, 1.0):
        agent.apply_schedules(progress, 0, 0.008)
        agent.optimizers["actor"].load_state_dict({k: v * 0 for k, v in agent.optimizers["actor"].state_dict().items()})
        before = next(agent.actor.parameters()).detach().clone()
        agent.optimizers["actor"].step([torch.ones_like(value) for value in agent.optimizers["actor"].parameters])
        changes.append(float((before - next(agent.actor.parameters())).detach().mean()))
    assert changes == pytest.approx([0.01, 0.00625, 0.0025], rel=1e-3)
    assert all(optimizer.progress is agent.progress for optimizer in agent.optimizers.values())


def test_a_discount_that_has_grown_equals_one_that_was_always_as_high() -> None:
    def trained(**settings: Any) -> dict[str, Any]:
        agent = make_agent("fast", n_step=3, **settings)
        buffer = filled_buffer(n_step=3, gamma=agent.gamma)
        agent.apply_schedules(1.0, 1_000_000, 0.008)
        for number in range(3):
            agent.observe(random_transition(agent.config.num_envs, seed=number))
            agent.update(buffer.sample(32)[0])
        return agent.state_dict()

    grown = trained()
    assert differing(grown, trained(gamma=0.995)) == []
    loaded = make_agent("fast", n_step=3)
    loaded.load_state_dict(grown)
    assert float(loaded.gamma) == pytest.approx(0.995)
    found = differing(grown, trained(gamma=0.99))
    for part in ("loss", "optimizers", "normalizers"):
        assert any(part in path for path in found), part


@every_recipe
def test_critics_learn_a_known_value(preset: str) -> None:
    """If every episode terminates at once, the value is the reward."""
    agent, buffer = make_agent(preset, critic_lr=1e-2, total_env_steps=10_000), filled_buffer()
    transition = random_transition(256, seed=1)
    transition["next", "terminated"].fill_(True)
    transition["next", "reward"] = transition["action"].sum(-1, keepdim=True) + 3
    buffer.extend(transition)
    errors = []
    for number, batch in enumerate(buffer.sample(16, 80)):
        errors.append(float(agent.update_critic(batch)["td_error"]))
        if number % 10 == 9:
            agent.update_actor(batch)
    assert errors[-1] < 0.5 * errors[0]


def test_statistics_normalize_updates_and_policy_and_change_only_in_observe() -> None:
    agent, plain = (make_agent("xqc", normalize_observations=flag) for flag in (True, False))
    plain.loss.load_state_dict(clone_state(dict(agent.loss.state_dict())))
    plain.normalizers.rewards = None
    observation = torch.randn(4, OBSERVATION_DIM)
    for seed in range(3):
        agent.observe(random_transition(4, seed=seed))
    observations, rewards = agent.normalizers.observations, agent.normalizers.rewards
    assert observations is not None
    assert rewards is not None
    before = clone_state(agent.normalizers.state_dict())
    batch, noise = random_transition(16), torch.randn(4, ACTION_DIM)
    normalized_batch = batch.clone()
    for key in ("observation", ("next", "observation")):
        normalized_batch[key] = observations(batch[key])
    normalized_batch["next", "reward"] = rewards(batch["next", "reward"])
    found = []
    for one, given in ((agent, batch), (plain, normalized_batch)):
        torch.manual_seed(0)
        found.append(one.update(given))
    assert differing(*found) == []
    normalized = observations(observation)
    assert torch.equal(agent.policy(observation), plain.policy(normalized))
    assert torch.equal(agent.act(observation, noise), plain.act(normalized, noise))
    assert differing(agent.normalizers.state_dict(), before) == []


def is_matrix(name: str, value: Tensor) -> bool:
    return name.endswith("weight") and value.dim() == (2 if name.startswith("module.0.") else 3)


@pytest.mark.parametrize("preset", ["xqc", "flashsac"])
def test_normalized_weights_keep_norm_1(preset: str) -> None:
    agent = make_agent(preset, actor_hidden=(8,), critic_hidden=(8,), actor_lr=0.1, critic_lr=0.1)
    parameters = {**critic_parameters(agent.loss), **actor_parameters(agent.loss)}
    matrices = [weight for name, weight in parameters.items() if is_matrix(name, weight)]
    assert len(matrices) == {"xqc": 4, "flashsac": 8}[preset]
    for seed in range(3):
        for weight in matrices:
            torch.testing.assert_close(weight.detach().norm(dim=-1), torch.ones(weight.shape[:-1]))
        before = [weight.detach().clone() for weight in matrices]
        agent.update(random_transition(16, seed))
        assert not any(torch.equal(weight, old) for weight, old in zip(matrices, before, strict=True))


@every_recipe
def test_loaded_agent_continues_bit_for_bit(preset: str) -> None:
    parts: dict[str, Any] = {"normalize_observations": True, "eval_policy_averaging": 0.5}
    original, loaded = make_agent(preset, **parts), make_agent(preset, seed=99, **parts)
    for seed in range(3):
        original.observe(random_transition(4, seed))
        original.update(random_transition(16, seed))
    loaded.update(random_transition(16))
    loaded.load_state_dict(clone_state(original.state_dict()))
    assert differing(loaded.state_dict(), original.state_dict()) == []
    found = []
    for agent in (original, loaded):
        torch.manual_seed(0)
        found.append([agent.update(random_transition(16, seed)) for seed in range(3)])
    assert differing(*found) == []
    assert differing(loaded.state_dict(), original.state_dict()) == []


@pytest.mark.parametrize("preset", ["crossq", "sac-v1"])
def test_num_bytes_counts_shared_tensors_once(preset: str) -> None:
    agent = make_agent(preset, eval_policy_averaging=0.0)
    unique = {tensor.data_ptr(): tensor.nbytes for tensor in agent.tensors()}
    assert agent.num_bytes == sum(unique.values())
    networks = [*critic_parameters(agent.loss).values(), *actor_parameters(agent.loss).values()]
    copies = list(target_parameters(agent.loss).values())
    trained = sum(tensor.nbytes for tensor in [*networks, *value_parameters(agent.loss).values()])
    assert {tensor.data_ptr() for tensor in copies} <= unique.keys()
    assert agent.num_bytes > 3 * trained + sum(tensor.nbytes for tensor in copies), "two moments for each parameter"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_check_finite_names_the_metric_and_the_gradient_step(value: float) -> None:
    agent = make_agent("crossq")
    for seed in range(3):
        agent.update_critic(random_transition(16, seed))
    assert agent.check_finite({"critic_loss": torch.tensor(1.5)}) == {"critic_loss": 1.5}
    with pytest.raises(DivergenceError, match=rf"alpha_loss is {value} at gradient step 3"):
        agent.check_finite({"critic_loss": torch.tensor(1.0), "alpha_loss": torch.tensor(value)})


@pytest.mark.parametrize(("preset", "loss"), [("sac", "critic_loss"), ("sac-v1", "value_loss")])
def test_divergence_is_reported_with_the_step_of_the_first_loss_that_was_not_finite(preset: str, loss: str) -> None:
    agent = make_agent(preset)
    for seed in range(2):
        agent.update(random_transition(16, seed))
    agent.loss.log_alpha.data.fill_(float("nan"))
    for seed in range(5):
        metrics = agent.update(random_transition(16, seed))
    with pytest.raises(DivergenceError, match=rf"{loss} is nan at gradient step 3: learning has diverged"):
        agent.check_finite(metrics)
    with pytest.raises(DivergenceError, match=r"log_alpha is not finite at gradient step 3"):
        agent.check_parameters()


def test_finite_parameters_pass_and_a_bad_one_is_named() -> None:
    agent = make_agent("crossq")
    agent.update(random_transition(16))
    agent.check_parameters()
    name, weight = next(iter(actor_parameters(agent.loss).items()))
    with torch.no_grad():
        weight[0, 0] = float("inf")
    with pytest.raises(DivergenceError, match=rf"{name} is not finite at gradient step 1"):
        agent.check_parameters()


def test_settings_are_those_of_the_next_update() -> None:
    agent = make_agent("fast", gamma="auto", value_range=1.0)
    agent.apply_schedules(0.5, 500_000, 0.008)
    batch = random_transition(4)
    batch["next", "reward"] = torch.tensor([[1.0], [-6.0], [2.0], [0.0]])
    agent.observe(batch)
    settings = {name: float(value) for name, value in agent.settings().items()}
    assert settings == pytest.approx({"gamma": 1 - 1 / 150, "actor_lr": 5.5e-4, "reward_divisor": 6.0})
    assert make_agent("sac").settings().keys() == {"gamma", "actor_lr"}


@pytest.mark.parametrize(("preset", "form"), [("fast", "log"), ("sac", "log"), ("crossq", "exp"), ("xqc", "exp")])
def test_the_temperature_descends_on_the_loss_of_its_recipe(preset: str, form: Literal["log", "exp"]) -> None:
    agent = make_agent(preset, alpha_init=0.3)
    entropy = float(agent.update_actor(random_transition(16))["entropy"])
    gradient = (entropy - float(agent.loss.target_entropy)) * (0.3 if form == "exp" else 1)
    assert float(agent.optimizers["alpha"].mean[0]) == pytest.approx(0.1 * gradient, rel=1e-5)


@every_recipe
def test_a_learning_rate_of_0_fixes_the_temperature(preset: str) -> None:
    agent = make_agent(preset, alpha_lr=0.0, alpha_init=0.3)
    before = agent.loss.log_alpha.detach().clone()
    for seed in range(3):
        metrics = agent.update(random_transition(16, seed))
    assert torch.equal(agent.loss.log_alpha, before)
    assert float(metrics["alpha"]) == pytest.approx(0.3)
    assert "alpha_loss" not in metrics
    assert "alpha" not in agent.state_dict()["optimizers"]


def test_a_checkpoint_of_a_fixed_temperature_with_an_optimizer_of_it_is_loaded() -> None:
    """Earlier versions kept one, which did nothing."""
    agent, other = make_agent("sac-v1"), make_agent("sac-v1", seed=1)
    state = agent.state_dict()
    other.load_state_dict({**state, "optimizers": {**state["optimizers"], "alpha": {"step": torch.ones(())}}})
    assert differing(other.state_dict(), state) == []


def test_the_value_network_learns_before_the_critics_and_the_policy_after_them() -> None:
    """V, Q and pi on one batch, each from the others as they are by then (arXiv 1801.01290, algorithm 1)."""
    agent, expected, batch = make_agent("sac-v1"), make_agent("sac-v1"), random_transition(16)
    torch.manual_seed(0)
    agent.update(batch)
    torch.manual_seed(0)
    expected.optimizers["value"].minimize(value_loss(expected.loss, batch))
    expected.optimizers["critic"].minimize(critic_loss(expected.loss, batch)[0])
    expected.optimizers["actor"].minimize(actor_loss(expected.loss, batch)[0])
    for name, copy in target_parameters(expected.loss).items():
        copy.lerp_(value_parameters(expected.loss)[name].detach(), expected.config.tau)
    assert differing(dict(agent.loss.state_dict()), dict(expected.loss.state_dict())) == []

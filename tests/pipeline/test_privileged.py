"""Asymmetric actor-critic: critics see privileged observations, the actor does not."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_helpers import SETTINGS
from pipeline_helpers import (
    ACTION_DIM,
    OBSERVATION_DIM,
    PRESETS,
    PRIVILEGED_DIM,
    clone_state,
    differing,
    make_agent,
    random_transition,
    small_config,
    with_privileged,
)
from rich.console import Console
from run_helpers import train_run
from tensordict import TensorDict
from torch import Tensor

import envs
from envs.task_ref import find_task
from pipeline.agent import Agent
from pipeline.buffer import ReplayBuffer
from pipeline.check.check import check
from pipeline.check.report import describe_model, report, to_json
from pipeline.dimensions import Dimensions
from pipeline.evaluate import evaluate
from pipeline.export import export_policy
from pipeline.learner import Learner
from pipeline.losses import make_loss
from pipeline.normalize import Normalizers
from pipeline.policy import load_policy
from pipeline.stored_run import open_run, require_same_dimensions
from pipeline.torchrl_adapter import (
    DiscreteVariant,
    actor_loss,
    actor_parameters,
    critic_loss,
    critic_parameters,
    value_loss,
)
from saltus.errors import SaltusError

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
SEEK = f"{Path(__file__).parents[2]}/examples/seek.py:Seek"
WIDENED = Dimensions(OBSERVATION_DIM, ACTION_DIM, PRIVILEGED_DIM)
COLUMNS = slice(OBSERVATION_DIM, OBSERVATION_DIM + PRIVILEGED_DIM)  # of the critics' inputs
every_recipe = pytest.mark.parametrize("preset", PRESETS)


def make(preset: str) -> Agent:
    return make_agent(preset, privileged_dim=PRIVILEGED_DIM)


def batch(privileged_seed: int = 0) -> TensorDict:
    return with_privileged(random_transition(16), privileged_seed)


def losses(agent: Agent, data: TensorDict) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """The critics' loss, the actor's loss, log pi(a|s), and the actor's gradients."""
    torch.manual_seed(0)
    critic, (actor, log_prob) = critic_loss(agent.loss, data)[0], actor_loss(agent.loss, data)
    parameters = actor_parameters(agent.loss)
    gradients = torch.autograd.grad(actor, list(parameters.values()))
    return critic, actor, log_prob, dict(zip(parameters, gradients, strict=True))


def ignore_privileged(agent: Agent, plain: Agent) -> None:
    """Give an agent the values of `plain`, and critics whose privileged inputs have no effect."""
    state, others = dict(agent.loss.state_dict()), plain.loss.state_dict()
    for name, value in others.items():
        if isinstance(value, Tensor) and state[name].shape != value.shape:
            assert state[name].shape[-1] == value.shape[-1] + PRIVILEGED_DIM
            widened = torch.zeros_like(state[name])
            widened[..., :OBSERVATION_DIM] = value[..., :OBSERVATION_DIM]
            widened[..., COLUMNS.stop :] = value[..., OBSERVATION_DIM:]
            state[name].data.copy_(widened)
        elif isinstance(value, Tensor):
            state[name].data.copy_(value)


@every_recipe
def test_the_actor_does_not_see_privileged_observations(preset: str) -> None:
    agent, plain = make(preset), make_agent(preset)
    shapes, plain_shapes = ({k: v.shape for k, v in actor_parameters(one.loss).items()} for one in (agent, plain))
    assert shapes == plain_shapes
    state = clone_state(dict(agent.loss.state_dict()))
    critic, actor, log_prob, _ = losses(agent, batch())
    agent.loss.load_state_dict(state)
    other_critic, other_actor, other_log_prob, _ = losses(agent, batch(privileged_seed=1))
    assert torch.equal(log_prob, other_log_prob)
    assert not torch.equal(critic, other_critic)
    assert not torch.equal(actor, other_actor), "the actor's loss sees them through the critics"


@every_recipe
def test_critics_that_ignore_privileged_observations_give_the_losses_of_agents_without(preset: str) -> None:
    """So observations, actions and successors are in the same places."""
    agent, plain = make(preset), make_agent(preset)
    ignore_privileged(agent, plain)
    ours, theirs = losses(agent, batch()), losses(plain, random_transition(16))
    for left, right in zip(ours[:3], theirs[:3], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)
    assert any(value.abs().max() > 1e-4 for value in ours[3].values())
    for name, value in ours[3].items():
        torch.testing.assert_close(value, theirs[3][name], rtol=1e-3, atol=1e-6)


def test_the_state_value_network_and_its_copy_see_privileged_observations() -> None:
    """With critics that are zero only V sees the state in J_V, and only its copy V' in J_Q."""
    loss = make("sac-v1").loss
    with torch.no_grad():
        for parameter in critic_parameters(loss).values():
            parameter.zero_()
    for compute in (value_loss, lambda loss, data: critic_loss(loss, data)[0]):
        found = []
        for seed in range(2):
            torch.manual_seed(0)
            found.append(compute(loss, batch(privileged_seed=seed)).detach())
        assert not torch.equal(*found)


@pytest.mark.parametrize(("policy", "update"), [("joint", "exact"), ("factored", "exact"), ("factored", "score")])
def test_discrete_critics_see_privileged_observations(policy: str, update: str) -> None:
    settings = {"policy": policy, "discrete_update": update, "action_levels": 3}
    loss = make_agent("sac-discrete", privileged_dim=PRIVILEGED_DIM, **settings).loss
    assert isinstance(loss, DiscreteVariant)
    found = []
    for seed in range(2):
        data = batch(privileged_seed=seed)
        torch.manual_seed(0)
        values = loss.chosen_values(data), loss.next_value(data["next"]), actor_loss(loss, data)[0]
        found.append(([value.detach() for value in values], loss.log_probs(data, differentiable=False)))
    (values, log_prob), (others, same_log_prob) = found
    assert torch.equal(log_prob, same_log_prob)
    assert [torch.equal(*pair) for pair in zip(values, others, strict=True)] == [False] * 3


def test_critics_that_act_and_see_what_the_policy_does_not_are_refused() -> None:
    expected = (
        "--discrete-update soft-q acts by its critics, and the task has observations for critics alone: use exact"
    )
    with pytest.raises(SaltusError, match=expected):
        make_agent("sac-discrete", privileged_dim=PRIVILEGED_DIM, discrete_update="soft-q")


@every_recipe
def test_batched_critics_have_the_losses_of_separate_ones(preset: str) -> None:
    """On CUDA all critics are one batched product."""
    found = []
    for batched in (False, True):
        torch.manual_seed(0)
        config = small_config(preset=preset, dropout=0.0, target_subset=0) if preset in ("droq", "redq") else None
        config = config or small_config(preset=preset)
        loss, _ = make_loss(config, WIDENED, torch.device("cpu"), batched)
        torch.manual_seed(0)
        data = batch()
        found.append((critic_loss(loss, data)[0], actor_loss(loss, data)[0]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_privileged_observations_are_normalized_by_their_own_statistics() -> None:
    config = small_config(normalize_observations=True)
    normalizers, restored = (Normalizers(config, WIDENED, 0.99) for _ in range(2))
    data = batch()
    data["privileged"] = 5 + 3 * data["privileged"]
    normalizers.update(data)
    restored.load_state_dict(normalizers.state_dict())
    for one in (normalizers, restored):
        normalized = one.normalize_batch(data)
        expected = (data["privileged"] - data["privileged"].mean(0)) / data["privileged"].std(0, correction=0)
        torch.testing.assert_close(normalized["privileged"], expected, rtol=1e-4, atol=1e-5)
        follows = (data["next", "privileged"] - data["privileged"].mean(0)) / data["privileged"].std(0, correction=0)
        torch.testing.assert_close(normalized["next", "privileged"], follows, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a task with privileged and noisy observations."""
    path = tmp_path_factory.mktemp("runs") / "run"
    config = small_config(SEEK, total_env_steps=120, eval_every=60, task_options={"max_episode_steps": 10})
    train_run(config, path)
    return path


def test_a_run_stores_privileged_observations_and_its_policy_needs_none(run_dir: Path, tmp_path: Path) -> None:
    stored = open_run(run_dir)[1]["state"]["buffer"]["stored"]
    assert (stored["privileged"].shape, stored["observation"].shape) == ((120, 2), (120, 6))
    assert torch.equal(stored["privileged"], stored["next.privileged"]), "the goal stays within an episode"
    policy = load_policy(run_dir)
    env = policy.make_env(3)
    assert policy(env.reset()).shape == (3, 2)
    assert len(evaluate(policy, env).returns) == 3
    export_policy(policy, tmp_path)
    names = [entry and entry["name"] for entry in json.loads((tmp_path / "policy.json").read_text())["observation"]]
    assert names == ["joint x qpos", "joint y qpos", "joint x qvel", "joint y qvel", None, None]


def test_a_run_without_the_group_is_refused(run_dir: Path) -> None:
    config, content = open_run(run_dir)
    env = envs.make(config.task, 1, privileged=False)
    expected = (
        "has 6 observations and 2 actions, and the run has 6 observations, 2 privileged observations and 2 actions"
    )
    with pytest.raises(SaltusError, match=expected):
        require_same_dimensions(content, env)


def test_check_covers_both_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.check.check.probe_warp", lambda *_: ())
    result = check(find_task(SEEK), {"noise_std": 0.0}, 8, 30, 0)
    assert not result.failed
    assert "6 observations, 2 privileged observations, 2 actions" in describe_model(result.env)[-1]
    privileged = to_json(result)["privileged"]
    assert privileged["low"] == pytest.approx(to_json(result)["observations"]["low"][4:])
    assert privileged["name"] == ["goal 0", "goal 1"]
    console = Console(record=True, width=120, file=io.StringIO())
    report(result, console)
    assert "privileged observation 1 goal 1" in console.export_text()

    class Constant(find_task(SEEK)):  # type: ignore[misc]
        def observation(self, state: Any) -> Any:
            return super().observation(state) | {"critic": torch.zeros_like(state.goal)}

    texts = [finding.text for finding in check(Constant, {}, 8, 30, 0).findings]
    assert "privileged observations that never change: 0, 1 of 2" in texts


def test_updates_change_nothing_in_the_batch() -> None:
    agent, data = make_agent("fast", privileged_dim=PRIVILEGED_DIM, normalize_observations=True), batch()
    agent.observe(with_privileged(random_transition(4)))
    agent.update(data)
    assert differing(data.to_dict(), batch().to_dict()) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "error:compilation failed")
@pytest.mark.parametrize("compiler", ["none", pytest.param("Inductor", marks=pytest.mark.learning)])
def test_recorded_and_compiled_updates_agree_with_eager_ones_within_rounding(
    compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiler == "none":
        monkeypatch.setattr(torch._inductor, "standalone_compile", lambda recorded, *_, **__: recorded)
    found = []
    for compile_ in (False, True):
        settings = {**SETTINGS["fast"], "compile": compile_, "policy_delay": 1, "normalize_observations": True}
        agent = make_agent("fast", privileged_dim=PRIVILEGED_DIM, **settings)
        for optimizer in agent.optimizers.values():
            optimizer.eps = 1e-5  # steps where the exact gradient is 0 would amplify rounding
        agent.observe(with_privileged(random_transition(4)))
        buffer = ReplayBuffer(256, WIDENED)
        buffer.extend(with_privileged(random_transition(256)))
        torch.manual_seed(0)
        learner = Learner(agent)
        found.append([clone_state(learner.round(buffer, 4)) for _ in range(4)])
        assert learner.compiled == compile_
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-4)

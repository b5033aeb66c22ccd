"""Updates compiled by Inductor, against eager ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from learner_helpers import SETTINGS, round_results, run_rounds
from pipeline_helpers import ACTION_DIM, OBSERVATION_DIM, PRESETS, clone_state, differing, filled_buffer, make_agent
from torch import Tensor

from pipeline.agent import Agent
from pipeline.divergence import DivergenceError
from pipeline.learner import Learner
from saltus.device.onednn import UseOneDNN

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:No target network updater", "ignore::DeprecationWarning:torch"),
]


def make_comparable(preset: str, seed: int = 0, **overrides: Any) -> Learner:
    """A learner whose steps do not amplify rounding errors.

    If the exact gradient is 0, because a batch norm cancels the parameter, Adam takes a full step in the direction of
    the rounding error. A larger eps prevents that.
    """
    agent = make_agent(preset, seed, **{**SETTINGS[preset], **overrides})
    for optimizer in agent.optimizers.values():
        optimizer.eps = 1e-5
    return Learner(agent)


# Compilation takes half a minute and more. test_learner.py traces these, and compares them bit for bit, in each run.
RARELY_COMPILED = ("sac-v1", "droq", "xqc")
RECIPES = [pytest.param(name, marks=pytest.mark.learning) if name in RARELY_COMPILED else name for name in PRESETS]


@pytest.fixture(scope="module", params=RECIPES)
def compiled(request: pytest.FixtureRequest) -> Learner:
    """A compiled learner of each recipe, shared by all tests, because compilation takes long."""
    learner, calls, compile_ = make_comparable(request.param, compile=True), [], torch._inductor.standalone_compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch._inductor,
            "standalone_compile",
            lambda *args, **options: calls.append(1) or compile_(*args, **options),
        )
        assert learner.compiling
        assert learner.compile_seconds == 0
        run_rounds(learner, [4, 4])
    assert not learner.compiling
    assert learner.compile_seconds > 0
    assert len(calls) == (1 if learner.agent.config.policy_delay == 1 else 2), "one graph for updates that coincide"
    return learner


@pytest.fixture
def eager_and_compiled(compiled: Learner, request: pytest.FixtureRequest) -> tuple[Learner, Learner]:
    """Two learners in the same new state, one of them compiled before."""
    eager = make_comparable(request.node.callspec.params["compiled"], seed=1)
    compiled.agent.load_state_dict(clone_state(eager.agent.state_dict()))
    compiled.gradient_steps = 0
    return eager, compiled


def networks(agent: Agent) -> dict[str, Tensor]:
    """Copies of all parameters and running statistics of the networks."""
    state = agent.state_dict()
    return clone_state({**state["loss"], **{f"eval_actor.{name}": one for name, one in state["eval_actor"].items()}})


def test_compiled_updates_agree_with_eager_ones_within_rounding(eager_and_compiled: tuple[Learner, Learner]) -> None:
    eager, compiled = eager_and_compiled
    before = networks(eager.agent)
    (metrics, state, random), (other_metrics, other_state, other_random) = (
        round_results(learner, [4] * 5) for learner in eager_and_compiled
    )
    assert torch.equal(random, other_random), "they draw different random numbers"
    for left, right in zip(metrics, other_metrics, strict=True):
        assert {"critic_loss", "actor_loss", "entropy"} <= left.keys() == right.keys()
        for name, value in left.items():
            torch.testing.assert_close(
                right[name], value, rtol=5e-4, atol=5e-5, msg=lambda text, n=name: f"{n}: {text}"
            )
    after, other = networks(eager.agent), networks(compiled.agent)
    moved = 0
    for name, value in after.items():
        distance = float((value - before[name]).abs().max())
        assert float((other[name] - value).abs().max()) <= 1e-5 + 1e-2 * distance, name
        moved += distance > 1e-4
    assert moved >= 8
    assert differing(other_state["normalizers"], state["normalizers"]) == []
    delayed = 20 // eager.agent.config.policy_delay
    for learner in eager_and_compiled:
        for name, optimizer in learner.agent.optimizers.items():
            assert int(optimizer.step_count) == (delayed if name in ("actor", "alpha") else 20), name
        assert learner.gradient_steps == 20


def test_compiled_updates_draw_new_noise_each_time(eager_and_compiled: tuple[Learner, Learner]) -> None:
    _, learner = eager_and_compiled
    config, state = learner.agent.config, clone_state(learner.agent.state_dict())
    torch.manual_seed(0)
    # With a state-value network the critics' targets contain no noise.
    found: dict[str, list[float]] = {"entropy": [], "value_loss" if config.value_network else "critic_loss": []}
    for _ in range(5):
        learner.agent.load_state_dict(clone_state(state))
        learner.gradient_steps = 0
        metrics = learner.round(
            filled_buffer(n_step=config.rewards_per_target(ACTION_DIM)), config.policy_delay
        )  # the same batches
        for name in found:
            found[name].append(float(metrics[name]))
    for name, values in found.items():
        assert len(set(values)) == 5, f"{name} {values}"


def test_compiled_updates_follow_a_discount_that_changes(eager_and_compiled: tuple[Learner, Learner]) -> None:
    eager, learner = eager_and_compiled
    state, losses = clone_state(eager.agent.state_dict()), []
    n_step = eager.agent.config.rewards_per_target(ACTION_DIM)
    for one, gamma in ((learner, 0.99), (learner, 0.5), (eager, 0.5)):
        one.agent.load_state_dict(clone_state(state))
        one.gradient_steps = 0
        one.agent.gamma.fill_(gamma)
        torch.manual_seed(0)
        losses.append(float(one.round(filled_buffer(n_step=n_step), 1)["critic_loss"]))
    first, changed, expected = losses
    assert changed == pytest.approx(expected, rel=1e-4)
    assert first != pytest.approx(expected, rel=1e-3)


def test_compiled_learner_continues_a_loaded_state_without_compiling_again(
    eager_and_compiled: tuple[Learner, Learner], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, learner = eager_and_compiled
    monkeypatch.setattr(torch._inductor, "standalone_compile", lambda *_, **__: pytest.fail("compiled again"))
    state = clone_state(learner.agent.state_dict())
    first = round_results(learner, [7, 7])
    assert differing(first[1]["loss"], state["loss"]) != []
    for num_envs in (1, 2):
        learner.agent.load_state_dict(clone_state(state))
        learner.gradient_steps = 0
        learner.act(torch.randn(num_envs, OBSERVATION_DIM), torch.randn(num_envs, ACTION_DIM))
        assert differing(round_results(learner, [7, 7]), first) == []
    assert not learner.compiling


def test_compiled_updates_record_divergence(eager_and_compiled: tuple[Learner, Learner]) -> None:
    _, learner = eager_and_compiled
    run_rounds(learner, [2])
    learner.agent.loss.log_alpha.data.fill_(float("nan"))
    metrics = run_rounds(learner, [4])[-1]
    with pytest.raises(DivergenceError, match=r"at gradient step 3: learning has diverged"):
        learner.agent.check_finite(metrics)


@pytest.mark.skipif(not UseOneDNN.available(), reason="no oneDNN")
def test_onednn_multiplies_wide_layers_only(eager_and_compiled: tuple[Learner, Learner]) -> None:
    _, learner = eager_and_compiled
    with torch.profiler.profile() as profile:
        run_rounds(learner, [2])
    used = sum(event.name == "mkldnn::_linear_pointwise" for event in profile.events())
    config = learner.agent.config
    # A residual block is four times as wide inside.
    assert bool(used) == (config.critic_hidden == (64,) or config.network == "residual"), used


def test_compiled_updates_round_factors_of_products_like_eager_ones() -> None:
    """A factor between two bfloat16 numbers may round either way: they agree to less than the rounding's effect."""
    found, states = [], []
    for options in ({"compile": True}, {}, {"matmul_dtype": "float32"}):
        learner = make_comparable("crossq", **{"matmul_dtype": "bfloat16", "policy_delay": 1, **options})
        found.append(run_rounds(learner, [4, 4, 4])[-1])
        states.append(networks(learner.agent))
        assert not learner.compiling

    def distance(left: int, right: int) -> float:
        return sum(float((states[left][name] - value).square().sum()) for name, value in states[right].items()) ** 0.5

    for name, value in found[1].items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")
    assert distance(0, 1) < distance(1, 2) / 50

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.exc
import torch._inductor.exc
from pipeline_helpers import ACTION_DIM, OBSERVATION_DIM, differing, filled_buffer, random_transition, small_config
from torch import Tensor

from pipeline import losses
from pipeline.learner import Learner, _Compiler

ALGORITHMS = ["sac", "crossq"]
pytestmark = pytest.mark.filterwarnings("ignore:No target network updater", "ignore::DeprecationWarning:torch")


def make_learner(algorithm: str, seed: int = 0, **overrides: Any) -> Learner:
    torch.manual_seed(seed)
    overrides = {"actor_hidden": (16,), "critic_hidden": (16,), "policy_delay": 2, **overrides}
    return Learner(small_config(algorithm=algorithm, **overrides), OBSERVATION_DIM, ACTION_DIM)


def copied(state: Any) -> Any:
    """A nested state whose tensors nothing else changes."""
    if isinstance(state, Tensor):
        return state.clone()
    return {name: copied(value) for name, value in state.items()} if isinstance(state, dict) else state


def rounds(learner: Learner, count: int, num_updates: int = 4, seed: int = 0) -> list[dict[str, Tensor]]:
    """The metrics of several rounds on the same data, from the same random state whatever came before."""
    buffer = filled_buffer(seed=seed)
    torch.manual_seed(seed)
    return [dict(learner.round(buffer, num_updates)) for _ in range(count)]


def largest_difference(learner: Learner, other: Learner, start: dict[str, Tensor]) -> float:
    """The largest difference of two learners' numbers, as a share of how far that tensor moved from its start."""
    left, right = (module.state_dict()["loss"] for module in (learner, other))
    moved = {name: (left[name] - value).abs().max() for name, value in start.items()}
    shares = [float((left[name] - right[name]).abs().max() / moved[name]) for name in start if moved[name] > 0]
    assert shares
    return max(shares)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_round_does_as_many_critic_updates_as_asked_and_the_delayed_share_of_actor_updates(algorithm: str) -> None:
    learner = make_learner(algorithm, policy_delay=3)
    for num_updates, total in ((1, 1), (4, 5), (7, 12)):
        rounds(learner, 1, num_updates)
        steps = {name: int(state["step"]) for name, state in learner.state_dict()["optimizers"].items()}
        assert learner.gradient_steps == total
        assert steps == {"critic": total, "actor": total // 3, "alpha": total // 3}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("delay", [1, 3])
def test_actor_and_temperature_move_exactly_at_every_delayed_update(algorithm: str, delay: int) -> None:
    learner, buffer = make_learner(algorithm, policy_delay=delay), filled_buffer()
    for step in range(1, 8):
        before = copied(learner.state_dict()["loss"])
        metrics = learner.round(buffer, 1)
        moved = {name for name, value in learner.state_dict()["loss"].items() if not torch.equal(value, before[name])}
        delayed = {name for name in moved if name.startswith("actor") or name == "log_alpha"}
        assert any(name.startswith("qvalue") for name in moved)
        assert bool(delayed) == ("actor_loss" in metrics) == (step % delay == 0)
        assert not delayed or {"log_alpha", "actor_network_params.module.0.module.body.2.weight"} <= delayed


@pytest.mark.parametrize("tau", [0.005, 0.3, 1.0])
def test_targets_move_by_tau_towards_the_critics_of_after_the_update(tau: float) -> None:
    learner, buffer = make_learner("sac", tau=tau), filled_buffer()
    for _ in range(4):
        before = copied(losses.target_parameters(learner.loss))
        learner.round(buffer, 1)
        critics = losses.critic_parameters(learner.loss)
        for name, target in losses.target_parameters(learner.loss).items():
            expected = (1 - tau) * before[name] + tau * critics[name].detach()
            torch.testing.assert_close(target, expected, rtol=1e-6, atol=1e-7)


def test_targets_begin_as_the_critics_and_critics_begin_different_from_each_other() -> None:
    learner = make_learner("sac")
    critics = losses.critic_parameters(learner.loss)
    for name, target in losses.target_parameters(learner.loss).items():
        assert torch.equal(target, critics[name])
    assert not torch.equal(*critics["module.body.0.weight"])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_round_leaves_the_batches_it_is_given_as_they_were(algorithm: str) -> None:
    learner, batch = make_learner(algorithm), random_transition(16)
    keys, before = set(batch.keys(True)), batch.clone()
    learner.update_critic(batch)
    learner.update_actor(batch)
    assert set(batch.keys(True)) == keys
    assert (batch == before).all()


def test_the_learning_rates_fall_over_the_whole_run() -> None:
    config = small_config(total_env_steps=1000, learning_starts=100, num_envs=4, utd_ratio=0.5, policy_delay=3)
    learner = Learner(config, OBSERVATION_DIM, ACTION_DIM)
    rounds_of_the_run = (1000 - 100) // 4
    assert config.total_gradient_steps == rounds_of_the_run * 2
    totals = {name: optimizer.total_steps for name, optimizer in learner._optimizers.items()}
    assert totals == {"critic": 450, "actor": 150, "alpha": 150}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_named_with_its_gradient_step(value: float) -> None:
    learner = make_learner("crossq")
    rounds(learner, 1, 3)
    learner.check_finite({"critic_loss": torch.tensor(1.0)})
    with pytest.raises(FloatingPointError, match=rf"alpha_loss is {value} at gradient step 3"):
        learner.check_finite({"critic_loss": torch.tensor(1.0), "alpha_loss": torch.tensor(value)})


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_loaded_learner_continues_bit_for_bit(algorithm: str) -> None:
    original = make_learner(algorithm, policy_delay=3)
    rounds(original, 3, 5)
    file = io.BytesIO()
    torch.save(original.state_dict(), file)
    file.seek(0)
    loaded = make_learner(algorithm, seed=99, policy_delay=3)
    rounds(loaded, 1, 2, seed=5)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert differing(loaded.state_dict(), original.state_dict()) == []
    assert differing(rounds(loaded, 3, 5, seed=1), rounds(original, 3, 5, seed=1)) == []
    assert differing(loaded.state_dict(), original.state_dict()) == []
    observation = torch.randn(4, OBSERVATION_DIM)
    assert torch.equal(loaded.actor.mode(observation), original.actor.mode(observation))


def test_the_actor_is_the_one_that_learns() -> None:
    learner, observation = make_learner("crossq"), torch.randn(4, OBSERVATION_DIM)
    before = learner.actor.mode(observation)
    rounds(learner, 2)
    assert not torch.equal(learner.actor.mode(observation), before)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_learning_reduces_the_error_of_a_value_that_can_be_known(algorithm: str) -> None:
    """Where every episode ends at once, the value is the reward."""
    learner = make_learner(algorithm, critic_lr=1e-2, policy_delay=10, total_env_steps=10_000)
    buffer = filled_buffer()
    transition = random_transition(256, seed=1)
    transition["next", "terminated"].fill_(True)
    transition["next", "reward"] = transition["action"].sum(-1, keepdim=True) + 3
    buffer.extend(transition)
    first = learner.round(buffer, 1)["critic_loss"]
    last = learner.round(buffer, 80)["critic_loss"]
    assert last < 0.2 * first


def failing_compile(error: Exception, times: float = math.inf) -> Callable[..., Callable[..., Any]]:
    """A torch.compile whose functions fail as often as `times` says, and then run."""

    def compile_(function: Callable[..., Any], **_options: Any) -> Callable[..., Any]:
        failures = 0

        def run(*arguments: Any) -> Any:
            nonlocal failures
            failures += 1
            if failures > times:
                return function(*arguments)
            raise error

        return run

    return compile_


COMPILE_ERRORS = [
    pytest.param(torch._inductor.exc.InductorError(RuntimeError("no C++ compiler\nlong story"), None), id="inductor"),
    pytest.param(torch._dynamo.exc.TorchDynamoException("graph break\nlong story"), id="dynamo"),
]


def learner_that_cannot_compile(error: Exception, monkeypatch: pytest.MonkeyPatch) -> Learner:
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", failing_compile(error))
        return make_learner("crossq", compile=True)


@pytest.mark.parametrize("error", COMPILE_ERRORS)
@pytest.mark.filterwarnings("ignore:torch.compile failed")
def test_where_compiling_fails_the_plain_updates_go_on(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_that_cannot_compile(error, monkeypatch)
    plain = make_learner("crossq", compile=False)
    assert differing(rounds(learner, 3), rounds(plain, 3)) == []
    assert differing(learner.state_dict(), plain.state_dict()) == []


@pytest.mark.parametrize("error", COMPILE_ERRORS)
def test_where_compiling_fails_one_warning_says_so(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_that_cannot_compile(error, monkeypatch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rounds(learner, 3)
    said = [str(warning.message) for warning in caught]
    assert len(said) == 1, said
    assert "torch.compile failed" in said[0]
    assert "long story" not in said[0]


def test_a_compilation_that_was_interrupted_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends the compiler's processes, too; the round in which it came is to be computed as all others are."""
    calls = 0
    learner = make_learner("crossq", compile=False)

    def update(batch: Any) -> Any:
        nonlocal calls
        calls += 1
        return learner.update_critic(batch)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", failing_compile(torch._inductor.exc.InductorError(RuntimeError("-2"), None), 1))
        compiled_update = _Compiler()(update)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "critic_loss" in compiled_update(next(iter(filled_buffer().sample(16))))
    assert calls == 1


def test_an_error_of_the_update_itself_is_not_taken_for_a_failure_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_that_cannot_compile(ZeroDivisionError("a bug"), monkeypatch)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        rounds(learner, 1)


@pytest.fixture(scope="module")
def compiled() -> dict[str, Learner]:
    """A compiled and warm learner for each algorithm, shared because compiling takes long."""
    learners = {algorithm: make_learner(algorithm, compile=True) for algorithm in ALGORITHMS}
    for learner in learners.values():
        rounds(learner, 1)
    return learners


@pytest.fixture(params=ALGORITHMS)
def eager_and_compiled(request: pytest.FixtureRequest, compiled: dict[str, Learner]) -> tuple[Learner, Learner]:
    """Two learners in the same fresh state."""
    eager = make_learner(request.param, seed=1)
    compiled[request.param].load_state_dict(copied(eager.state_dict()))
    return eager, compiled[request.param]


@pytest.mark.slow
def test_compiled_updates_agree_with_plain_ones_within_rounding(eager_and_compiled: tuple[Learner, Learner]) -> None:
    eager, compiled = eager_and_compiled
    start = copied(dict(eager.state_dict()["loss"]))
    for left, right in zip(rounds(eager, 5), rounds(compiled, 5), strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            torch.testing.assert_close(
                right[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
            )
    assert largest_difference(eager, compiled, start) < 1e-3
    assert eager.gradient_steps == compiled.gradient_steps == 20


@pytest.mark.slow
def test_compiled_updates_draw_the_random_numbers_of_plain_ones(eager_and_compiled: tuple[Learner, Learner]) -> None:
    states = []
    for learner in eager_and_compiled:
        rounds(learner, 2)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.slow
def test_compiled_updates_draw_fresh_noise_each_time(eager_and_compiled: tuple[Learner, Learner]) -> None:
    _, learner = eager_and_compiled
    state, batch = copied(learner.state_dict()), random_transition(16)
    torch.manual_seed(0)
    found: dict[str, list[float]] = {"entropy": [], "critic_loss": []}
    for _ in range(5):
        learner.load_state_dict(copied(state))
        found["critic_loss"].append(float(learner._update_critic(batch)["critic_loss"]))
        learner.load_state_dict(copied(state))
        found["entropy"].append(float(learner._update_actor(batch)["entropy"]))
    for name, values in found.items():
        assert len(set(values)) == 5, f"{name} {values}"


@pytest.mark.slow
def test_warm_updates_never_compile_again(eager_and_compiled: tuple[Learner, Learner]) -> None:
    _, learner = eager_and_compiled
    rounds(learner, 1)
    with torch.compiler.set_stance("fail_on_recompile"):
        rounds(learner, 3, num_updates=1)
        rounds(learner, 3, num_updates=7)
        learner.load_state_dict(copied(learner.state_dict()))
        learner.actor.sample(torch.randn(4, OBSERVATION_DIM))
        rounds(learner, 3)

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest
import torch
from pipeline_helpers import (
    ACTION_DIM,
    HUMANOID,
    OBSERVATION_DIM,
    RECIPES,
    differing,
    filled_buffer,
    random_transition,
    small_config,
)
from recording import on_the_cpu
from torch import Tensor, fx
from waiting import WAITING, Waits

from pipeline import torchrl_adapter
from pipeline.learner import Learner
from saltus.device.onednn import UseOneDNN

STANDALONE = graph.standalone_compile
TARGETS = ["sac", "redq", "droq", "xqc", "flashsac"]
pytestmark = pytest.mark.filterwarnings("ignore:No target network updater", "ignore::DeprecationWarning:torch")


def make_learner(preset: str, seed: int = 0, **overrides: Any) -> Learner:
    torch.manual_seed(seed)
    overrides = {"actor_hidden": (16,), "critic_hidden": (16,), "policy_delay": 2, **overrides}
    return Learner(small_config(preset=preset, **overrides), OBSERVATION_DIM, ACTION_DIM)


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


@pytest.mark.parametrize("preset", RECIPES)
def test_a_round_does_as_many_critic_updates_as_asked_and_the_delayed_share_of_actor_updates(preset: str) -> None:
    learner = make_learner(preset, policy_delay=3)
    for num_updates, total in ((1, 1), (4, 5), (7, 12)):
        rounds(learner, 1, num_updates)
        steps = {name: int(state["step"]) for name, state in learner.state_dict()["optimizers"].items()}
        assert learner.gradient_steps == total
        assert steps == {"critic": total, "actor": total // 3, "alpha": total // 3}


@pytest.mark.parametrize("preset", RECIPES)
@pytest.mark.parametrize("delay", [1, 3])
def test_actor_and_temperature_move_exactly_at_every_delayed_update(preset: str, delay: int) -> None:
    learner, buffer = make_learner(preset, policy_delay=delay), filled_buffer()
    for step in range(1, 8):
        before = copied(learner.state_dict()["loss"])
        metrics = learner.round(buffer, 1)
        moved = {name for name, value in learner.state_dict()["loss"].items() if not torch.equal(value, before[name])}
        delayed = {name for name in moved if name.startswith("actor") or name == "log_alpha"}
        assert any(name.startswith("qvalue") for name in moved)
        assert bool(delayed) == ("actor_loss" in metrics) == (step % delay == 0)
        assert not delayed or ("log_alpha" in delayed and any(name.endswith("weight") for name in delayed))


@pytest.mark.parametrize("preset", TARGETS)
@pytest.mark.parametrize("tau", [0.005, 0.3, 1.0])
def test_targets_move_by_tau_towards_the_critics_of_after_the_update(preset: str, tau: float) -> None:
    learner, buffer = make_learner(preset, tau=tau), filled_buffer()
    for _ in range(4):
        before = copied(torchrl_adapter.target_parameters(learner.loss))
        learner.round(buffer, 1)
        critics = torchrl_adapter.critic_parameters(learner.loss)
        for name, target in torchrl_adapter.target_parameters(learner.loss).items():
            expected = (1 - tau) * before[name] + tau * critics[name].detach()
            torch.testing.assert_close(target, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("preset", RECIPES)
def test_targets_begin_as_the_critics_and_critics_begin_different_from_each_other(preset: str) -> None:
    learner = make_learner(preset)
    critics, targets = torchrl_adapter.critic_parameters(learner.loss), torchrl_adapter.target_parameters(learner.loss)
    assert bool(targets) == (preset in TARGETS)
    for name, target in targets.items():
        assert torch.equal(target, critics[name])
    matrices = [value for value in critics.values() if value.dim() == 3]
    assert matrices
    for stacked in matrices:
        assert len({tuple(weight.flatten().tolist()) for weight in stacked}) == learner.config.num_critics


@pytest.mark.parametrize("preset", RECIPES)
def test_a_round_leaves_the_batches_it_is_given_as_they_were(preset: str) -> None:
    learner, batch = make_learner(preset), random_transition(16)
    keys, before = set(batch.keys(True)), batch.clone()
    learner.update_critic(batch)
    learner.update_actor(batch)
    assert set(batch.keys(True)) == keys
    assert (batch == before).all()


def test_the_learning_rates_fall_over_the_whole_run() -> None:
    config = small_config(total_env_steps=1000, learning_starts=100, num_envs=4, utd_ratio=0.5, policy_delay=3)
    learner = Learner(config, OBSERVATION_DIM, ACTION_DIM)
    rounds_of_the_run = len([steps for steps in range(4, 1000, 4) if steps > 100])
    assert config.total_gradient_steps == rounds_of_the_run * 2
    totals = {name: optimizer.total_steps for name, optimizer in learner._optimizers.items()}
    assert totals == {"critic": 448, "actor": 149, "alpha": 149}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_named_with_its_gradient_step(value: float) -> None:
    learner = make_learner("crossq")
    rounds(learner, 1, 3)
    learner.check_finite({"critic_loss": torch.tensor(1.0)})
    with pytest.raises(FloatingPointError, match=rf"alpha_loss is {value} at gradient step 3"):
        learner.check_finite({"critic_loss": torch.tensor(1.0), "alpha_loss": torch.tensor(value)})


@pytest.mark.parametrize("preset", RECIPES)
def test_a_loaded_learner_continues_bit_for_bit(preset: str) -> None:
    parts = {"policy_delay": 3, "normalize_observations": True, "eval_policy_averaging": 0.5}
    original = make_learner(preset, **parts)
    rounds(original, 3, 5)
    file = io.BytesIO()
    torch.save(original.state_dict(), file)
    file.seek(0)
    loaded = make_learner(preset, seed=99, **parts)
    rounds(loaded, 1, 2, seed=5)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert differing(loaded.state_dict(), original.state_dict()) == []
    assert differing(rounds(loaded, 3, 5, seed=1), rounds(original, 3, 5, seed=1)) == []
    assert differing(loaded.state_dict(), original.state_dict()) == []
    observation = torch.randn(4, OBSERVATION_DIM)
    assert torch.equal(loaded.policy(observation), original.policy(observation))


def test_the_actor_is_the_one_that_learns() -> None:
    learner, observation = make_learner("crossq"), torch.randn(4, OBSERVATION_DIM)
    before = learner.actor.mode(observation)
    rounds(learner, 2)
    assert not torch.equal(learner.actor.mode(observation), before)


@pytest.mark.parametrize("preset", RECIPES)
def test_learning_reduces_the_error_of_a_value_that_can_be_known(preset: str) -> None:
    """Where every episode ends at once, the value is the reward."""
    learner = make_learner(preset, critic_lr=1e-2, policy_delay=10, total_env_steps=10_000)
    buffer = filled_buffer()
    transition = random_transition(256, seed=1)
    transition["next", "terminated"].fill_(True)
    transition["next", "reward"] = transition["action"].sum(-1, keepdim=True) + 3
    buffer.extend(transition)
    first = learner.round(buffer, 1)["td_error"]
    last = learner.round(buffer, 80)["td_error"]
    assert last < 0.5 * first


def test_statistics_reach_the_updates_and_the_policy_and_move_at_observe_alone() -> None:
    learner, plain = (make_learner("xqc", normalize_observations=flag) for flag in (True, False))
    plain.loss.load_state_dict(copied(dict(learner.loss.state_dict())))
    observation = torch.randn(4, OBSERVATION_DIM)
    for seed in range(3):
        learner.observe(random_transition(4, seed=seed))
    assert learner._observations is not None
    assert learner._rewards is not None
    before = copied(learner.state_dict()["normalizers"])
    batch, noise = random_transition(16), torch.randn(4, ACTION_DIM)
    prepared = batch.clone()
    for key in ("observation", ("next", "observation")):
        prepared[key] = learner._observations(batch[key])
    prepared["next", "reward"] = learner._rewards(batch["next", "reward"])
    found = []
    for one, given in ((learner, batch), (plain, prepared)):
        torch.manual_seed(0)
        found.append(one.update_critic(given.clone()) | one.update_actor(given.clone()))
    assert differing(*found) == []
    normalized = learner._observations(observation)
    assert torch.equal(learner.policy(observation), plain.policy(normalized))
    assert torch.equal(learner.act(observation, noise), plain.act(normalized, noise))
    assert differing(learner.state_dict()["normalizers"], before) == []


@pytest.mark.parametrize("preset", RECIPES)
@pytest.mark.parametrize(
    ("eval_policy_averaging", "weights"), [(1, [1, 1, 1, 1]), (1 / 2, [1, 2, 3, 4]), (1 / 3, [1, 3, 6, 10])]
)
def test_the_policy_to_be_evaluated_is_the_average_of_the_actors_last_updates(
    preset: str, eval_policy_averaging: float, weights: list[int]
) -> None:
    """In closed form the actor after the i-th update has the weight i, i (i + 1), ...: Shamir and Zhang 2013."""
    learner, buffer = make_learner(preset, eval_policy_averaging=eval_policy_averaging), filled_buffer()
    observation, noise = torch.randn(4, OBSERVATION_DIM), torch.zeros(4, ACTION_DIM)
    assert torch.equal(learner.policy(observation), learner.actor.mode(observation))
    actors: list[dict[str, Tensor]] = []
    for done in range(1, 5):
        learner.round(buffer, 2)  # one of the actor's
        actors.append({name: value.double() for name, value in learner.actor.state_dict().items()})
        for name, value in learner.average.state_dict().items():
            weighed = sum(weight * actor[name] for weight, actor in zip(weights, actors, strict=False))
            expected = weighed / sum(weights[:done])
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(learner.policy(observation), learner.average.mode(observation))
    assert not torch.equal(learner.policy(observation), learner.actor.mode(observation))
    assert torch.equal(learner.act(observation, noise), learner.actor.mode(observation)), "the actor itself acts"


def test_with_a_policy_average_of_0_the_policy_to_be_evaluated_is_the_actor() -> None:
    learner, observation = make_learner("crossq", eval_policy_averaging=0.0), torch.randn(4, OBSERVATION_DIM)
    rounds(learner, 2)
    assert torch.equal(learner.policy(observation), learner.actor.mode(observation))


# The presets, with what they leave out spread over them. Layers of 64 are wide enough for oneDNN.
COMPILED: dict[str, dict[str, Any]] = {
    "sac": {"actor_hidden": (64,), "critic_hidden": (64,), "batch_size": 64, "learning_starts": 100, "policy_delay": 1},
    "redq": {"normalize_observations": True, "eval_policy_averaging": 0.5},
    "droq": {"n_step": 3},
    "crossq": {  # with what makes it fast
        "n_step": 3,
        "eval_policy_averaging": 0.5,
        "lr_final_fraction": 0.1,
        "actor_hidden": (64,),
        "critic_hidden": (64,),
        "batch_size": 64,
        "learning_starts": 100,
    },
    "xqc": {"normalize_observations": True, "n_step": 3, "num_atoms": 11},
    "flashsac": {"num_atoms": 11, "eval_policy_averaging": 0.5},
    HUMANOID: {"num_atoms": 11, "eval_policy_averaging": 0.5},
}


def make_comparable(preset: str, seed: int = 0, **overrides: Any) -> Learner:
    """A learner whose steps do not amplify rounding.

    Adam divides by a gradient's own size, so that where it is 0 but for rounding (of what batch norm takes out again)
    the step is as long as any other, and its direction is rounding's.
    """
    learner = make_learner(preset, seed, **{**COMPILED[preset], **overrides})
    for optimizer in learner._optimizers.values():
        optimizer.eps = 1e-5
    return learner


def observed_rounds(learner: Learner, count: int, num_updates: int = 4) -> list[dict[str, Tensor]]:
    """Like `rounds`, with statistics that move between them, and n-step transitions where the recipe has them."""
    buffer = filled_buffer(n_step=learner.config.n_step)
    torch.manual_seed(0)
    metrics = []
    for number in range(count):
        transition = random_transition(learner.config.num_envs, seed=number)
        transition["observation"] = 1 + 2 * transition["observation"]
        transition["next", "reward"] *= 3
        learner.observe(transition)
        metrics.append(dict(learner.round(buffer, num_updates)))
    return metrics


def networks(learner: Learner) -> dict[str, Tensor]:
    """Copies of all that networks hold, running statistics included."""
    state = learner.state_dict()
    return copied({**state["loss"], **{f"average {name}": value for name, value in state["average"].items()}})


@pytest.fixture(scope="module")
def compiled() -> dict[str, Learner]:
    """A compiled learner for each preset, shared because compiling takes long."""
    learners = {}
    for preset in RECIPES:
        learner = make_comparable(preset, compile=True)
        calls = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(graph, "standalone_compile", lambda *a, c=calls, **k: c.append(a) or STANDALONE(*a, **k))
            assert learner.compiling
            assert learner.compile_seconds == 0
            observed_rounds(learner, 2)
        assert not learner.compiling
        assert learner.compile_seconds > 0
        together = learner.config.policy_delay == 1
        assert len(calls) == (1 if together else 2), (
            "one graph for the critics' update, one for the actor's, or for both"
        )
        learners[preset] = learner
    return learners


@pytest.fixture(params=RECIPES)
def plain_and_compiled(request: pytest.FixtureRequest, compiled: dict[str, Learner]) -> tuple[Learner, Learner]:
    """Two learners in the same fresh state, which is loaded into the one that has compiled already."""
    plain = make_comparable(request.param, seed=1)
    compiled[request.param].load_state_dict(copied(plain.state_dict()))
    return plain, compiled[request.param]


@pytest.mark.slow
def test_compiled_updates_agree_with_plain_ones_within_rounding(plain_and_compiled: tuple[Learner, Learner]) -> None:
    plain, compiled = plain_and_compiled
    start = networks(plain)
    found = []
    for learner in plain_and_compiled:
        found.append((observed_rounds(learner, 5), torch.get_rng_state()))
    assert torch.equal(found[0][1], found[1][1]), "another random stream"
    for left, right in zip(found[0][0], found[1][0], strict=True):
        assert {"critic_loss", "actor_loss", "entropy"} <= left.keys() == right.keys()
        for name, value in left.items():
            torch.testing.assert_close(
                right[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
            )
    after, other = networks(plain), networks(compiled)
    moved = 0
    for name, value in after.items():
        distance = float((value - start[name]).abs().max())
        assert float((other[name] - value).abs().max()) <= 1e-5 + 1e-3 * distance, name
        moved += distance > 1e-4
    assert moved >= 8
    states = [learner.state_dict() for learner in plain_and_compiled]
    assert differing(states[1]["normalizers"], states[0]["normalizers"]) == []
    delayed = 20 // plain.config.policy_delay
    steps = [[int(one["step"]) for one in state["optimizers"].values()] for state in states]
    assert steps == [[20, delayed, delayed]] * 2
    assert plain.gradient_steps == compiled.gradient_steps == 20


@pytest.mark.slow
def test_compiled_updates_round_the_factors_of_products_as_plain_ones_do() -> None:
    """A factor on the edge between two bfloat16 numbers may go either way: they agree to less than rounding changes."""
    found, states = [], []
    for options in ({"compile": True}, {}, {"matmul_dtype": "float32"}):
        learner = make_comparable("crossq", **{"matmul_dtype": "bfloat16", **options})
        found.append(observed_rounds(learner, 3)[-1])
        states.append(networks(learner))
        assert not learner.compiling

    def distance(left: int, right: int) -> float:
        return sum(float((states[left][name] - value).square().sum()) for name, value in states[right].items()) ** 0.5

    for name, value in found[1].items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")
    assert distance(0, 1) < distance(1, 2) / 50


def test_tf32_holds_for_updates_only(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, found = make_learner("sac"), []
    block = Learner._block

    def observed(self: Learner, *arguments: Any) -> dict[str, Tensor]:
        found.append(torch.get_float32_matmul_precision())
        return block(self, *arguments)

    monkeypatch.setattr(Learner, "_block", observed)
    rounds(learner, 1)
    learner.config = dataclasses.replace(learner.config, matmul_dtype="tf32")
    rounds(learner, 1)
    assert found == ["highest", "high"]
    assert torch.get_float32_matmul_precision() == "highest"
    monkeypatch.setattr(Learner, "_block", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rounds(learner, 1)
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.slow
def test_compiled_updates_draw_fresh_noise_each_time(plain_and_compiled: tuple[Learner, Learner]) -> None:
    _, learner = plain_and_compiled
    state, (batch,) = (
        copied(learner.state_dict()),
        filled_buffer(n_step=learner.config.n_step).sample(learner.config.batch_size),
    )
    torch.manual_seed(0)
    found: dict[str, list[float]] = {"entropy": [], "critic_loss": []}
    for _ in range(5):
        for _, update in learner._updates:
            learner.load_state_dict(copied(state))
            metrics = update(batch)
            for name in found.keys() & metrics.keys():
                found[name].append(float(metrics[name]))
    for name, values in found.items():
        assert len(set(values)) == 5, f"{name} {values}"


@pytest.mark.slow
def test_nothing_is_compiled_twice_and_what_is_loaded_is_what_goes_on(
    plain_and_compiled: tuple[Learner, Learner], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, learner = plain_and_compiled
    monkeypatch.setattr(graph, "standalone_compile", lambda *_, **__: pytest.fail("compiled again"))
    state = copied(learner.state_dict())
    first = observed_rounds(learner, 2, num_updates=7)
    assert differing(copied(learner.state_dict())["loss"], state["loss"]) != []
    for one in (1, 2):
        learner.load_state_dict(copied(state))
        learner.act(torch.randn(one, OBSERVATION_DIM), torch.randn(one, ACTION_DIM))
        assert differing(observed_rounds(learner, 2, num_updates=7), first) == []
    assert not learner.compiling


@pytest.mark.slow
@pytest.mark.skipif(not UseOneDNN.available(), reason="no oneDNN")
def test_wide_layers_go_to_onednn_and_narrow_ones_do_not(plain_and_compiled: tuple[Learner, Learner]) -> None:
    _, learner = plain_and_compiled
    with torch.profiler.profile() as profile:
        observed_rounds(learner, 1, num_updates=2)
    used = sum(event.name == "mkldnn::_linear_pointwise" for event in profile.events())
    # A residual block is four times as wide inside.
    assert bool(used) == (learner.config.critic_hidden == (64,) or learner.config.network == "residual"), used


@pytest.mark.parametrize("preset", RECIPES)
def test_nothing_of_a_round_would_wait_for_a_gpu(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what the updates trace to, nor sampling, writing and observing."""
    traced = []

    def look(graph_module: fx.GraphModule, *_arguments: Any, **_options: Any) -> Any:
        traced.append([str(node.target) for node in graph_module.graph.nodes])
        raise RuntimeError("seen")

    monkeypatch.setattr(graph, "standalone_compile", look)
    parts = {"normalize_observations": True, "reward_scaling": "std", "n_step": 3, "eval_policy_averaging": 0.5}
    learner = make_learner(preset, compile=True, **parts)
    buffer = filled_buffer(n_step=3)
    with pytest.warns(UserWarning, match="seen"):
        learner.round(buffer, 2)
    assert traced
    assert [name for names in traced for name in names if name.removeprefix("aten.").startswith(WAITING)] == []
    observed, added = random_transition(learner.config.num_envs), random_transition(buffer._num_envs)
    with Waits() as waits:
        learner.observe(observed)
        buffer.extend(added)
        buffer.sample(learner.config.batch_size, 3)
    assert waits.found == []


class Recorder:
    """In the place of torch.cuda.CUDAGraph: what is recorded is taken out of `updates`, and added at each replay."""

    def __init__(self, updates: list[str]) -> None:
        self.updates, self.recorded = updates, list[str]()
        self.generators: list[torch.Generator] = []
        self.replays = 0

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generators.append(generator)

    @contextmanager
    def record(self) -> Iterator[None]:
        before = len(self.updates)
        yield
        self.recorded = self.updates[before:]
        del self.updates[before:]

    def replay(self) -> None:
        self.replays += 1
        self.updates += self.recorded


Recording: TypeAlias = tuple[Learner, list[str], list[Recorder]]


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Recording:
    """A learner as if on CUDA, whose updates do nothing but note which they are, and the graphs that it makes."""
    learner, updates = make_learner("crossq", policy_delay=3, compile=False), list[str]()
    learner._updates = [
        (every, lambda batch, name=name: updates.append(name) or {name: batch["observation"].sum()})
        for every, name in ((1, "critic"), (3, "actor"))
    ]
    learner._graphs, learner.device = [SimpleNamespace(compiled=True)], torch.device("cuda")  # type: ignore[list-item]
    made: list[Recorder] = []
    on_the_cpu(monkeypatch, lambda: made.append(Recorder(updates)) or made[-1])
    return learner, updates, made


def test_a_round_on_cuda_is_recorded_once_for_each_place_of_the_actors_updates(recording: Recording) -> None:
    """Rounds of 4 updates of which every third is the actor's: three kinds, by what is left of the last third."""
    (learner, _, recorders), buffer = recording, filled_buffer()
    seen = [set(learner.round(buffer, 4)) for _ in range(15)]
    assert learner.gradient_steps == 60
    assert seen == [{"critic", "actor"}] * 15
    assert [one.replays for one in recorders] == [3, 3, 3], "five calls each: two as they are, three replays"
    assert all(one.generators == [buffer.generator] for one in recorders)


@pytest.mark.parametrize("counts", [(4,) * 15, (1, 7, 5) * 12, (40,) * 9])
def test_the_actor_learns_with_the_same_updates_whether_recorded_or_not(
    counts: tuple[int, ...], recording: Recording
) -> None:
    (learner, updates, recorders), buffer = recording, filled_buffer()
    for count in counts:
        learner.round(buffer, count)
    one_third = ["critic", "critic", "critic", "actor"]
    total = sum(counts)
    assert updates == one_third * (total // 3) + ["critic"] * (total % 3)
    assert sum(one.replays for one in recorders) > 0
    assert learner.gradient_steps == total


def test_an_update_that_did_not_compile_is_not_recorded(recording: Recording) -> None:
    """It may wait for the device, which a recording must not."""
    (learner, updates, recorders), buffer = recording, filled_buffer()
    learner._graphs += [SimpleNamespace(compiled=False)]  # type: ignore[list-item]
    for _ in range(5):
        learner.round(buffer, 4)
    assert not recorders
    assert len(updates) == 26


def failing(*_arguments: Any, **_options: Any) -> Any:
    raise RuntimeError("no C++ compiler\nlong story")


@pytest.mark.parametrize("preset", RECIPES)
def test_where_compiling_fails_the_plain_updates_go_on_as_if_nothing_had_been_tried(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tracing left networks, step counts, running statistics and the random stream as they were."""
    monkeypatch.setattr(graph, "standalone_compile", failing)
    found = []
    for compile_ in (False, True):
        learner = make_learner(preset, compile=compile_, **COMPILED[preset])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            metrics = observed_rounds(learner, 3)
        said = [str(warning.message) for warning in caught if "torch.compile failed" in str(warning.message)]
        assert len(said) == compile_, "one for all graphs"
        assert not learner.compiling
        found.append([metrics, learner.state_dict(), torch.get_rng_state()])
    assert differing(*found) == []


def test_divergence_is_reported_with_the_first_update_whose_loss_was_not_finite() -> None:
    learner, buffer = make_learner("sac"), filled_buffer()
    learner.round(buffer, 2)
    learner.loss.log_alpha.data.fill_(float("nan"))
    metrics = learner.round(buffer, 5)
    with pytest.raises(FloatingPointError, match=r"critic_loss is nan at gradient step 3: learning has diverged"):
        learner.check_finite(metrics)

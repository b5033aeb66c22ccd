"""Rounds of updates: eager, traced and captured. `test_compiled_learner` compiles them."""

from __future__ import annotations

import io
import warnings
import weakref
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from graph_recorder import GraphRecorder, record_on_cpu
from learner_helpers import SETTINGS, round_results, run_rounds
from pipeline_helpers import (
    ACTION_DIM,
    OBSERVATION_DIM,
    PRESETS,
    clone_state,
    differing,
    filled_buffer,
    make_agent,
    make_learner,
    random_transition,
)
from torch import Tensor, fx

from pipeline import learner as learner_module
from pipeline.learner import Learner
from saltus.device.synchronizations import SYNCHRONIZING, Synchronizations

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater", "ignore::DeprecationWarning:torch")
every_recipe = pytest.mark.parametrize("preset", PRESETS)


@every_recipe
def test_round_runs_the_requested_updates(preset: str) -> None:
    learner = make_learner(preset, policy_delay=3)
    for count, total in ((1, 1), (4, 5), (7, 12)):
        run_rounds(learner, [count])
        steps = {name: int(one.step_count) for name, one in learner.agent.optimizers.items()}
        assert learner.gradient_steps == total
        config = learner.agent.config
        optional = {"value": total} if config.value_network else {}
        optional |= {"alpha": total // 3} if config.learns_temperature else {}
        assert steps == {"critic": total, "actor": total // 3, **optional}


@every_recipe
@pytest.mark.parametrize("delay", [1, 3])
def test_actor_and_temperature_change_at_every_delayed_update(preset: str, delay: int) -> None:
    learner, buffer = make_learner(preset, policy_delay=delay), filled_buffer()
    for step in range(1, 8):
        before = clone_state(dict(learner.agent.loss.state_dict()))
        metrics = learner.round(buffer, 1)
        after = learner.agent.loss.state_dict()
        changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
        delayed = {name for name in changed if name.startswith("actor") or name == "log_alpha"}
        assert any(name.startswith("qvalue") for name in changed)
        assert bool(delayed) == ("actor_loss" in metrics) == (step % delay == 0)
        learns_temperature = learner.agent.config.learns_temperature
        assert ("log_alpha" in delayed) == (bool(delayed) and learns_temperature)
        assert not delayed or any(name.endswith("weight") for name in delayed)


@every_recipe
def test_loaded_learner_continues_bit_for_bit(preset: str) -> None:
    parts: dict[str, Any] = {"policy_delay": 3, "normalize_observations": True, "eval_policy_averaging": 0.5}
    original, loaded = make_learner(preset, **parts), make_learner(preset, seed=99, **parts)
    run_rounds(original, [4])
    run_rounds(loaded, [2], seed=5)
    file = io.BytesIO()
    torch.save(original.agent.state_dict(), file)
    file.seek(0)
    loaded.agent.load_state_dict(torch.load(file, weights_only=True))
    loaded.gradient_steps = original.gradient_steps
    assert differing(loaded.agent.state_dict(), original.agent.state_dict()) == []
    assert differing(round_results(loaded, [3, 3]), round_results(original, [3, 3])) == []
    observation = torch.randn(4, OBSERVATION_DIM)
    assert torch.equal(loaded.agent.policy(observation), original.agent.policy(observation))


def test_tf32_holds_during_updates_only() -> None:
    found = []

    def run(**options: Any) -> None:
        agent = make_agent("sac", **options)
        update = agent.update_critic

        def update_critic(batch: Any) -> dict[str, Tensor]:
            found.append(torch.get_float32_matmul_precision())
            return 1 / 0 if len(found) > 2 else update(batch)  # type: ignore[return-value]

        agent.update_critic = update_critic  # type: ignore[method-assign]
        Learner(agent).round(filled_buffer(), 1)

    run()
    run(matmul_dtype="tf32")
    assert torch.get_float32_matmul_precision() == "highest"
    with pytest.raises(ZeroDivisionError):
        run(matmul_dtype="tf32")
    assert found == ["highest", "high", "high"]
    assert torch.get_float32_matmul_precision() == "highest"


@every_recipe
def test_tracing_changes_nothing_and_finds_no_synchronization(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced updates, not compiled, equal eager ones bit for bit. Neither they nor data handling synchronise."""
    names: list[str] = []

    def keep(traced: fx.GraphModule, *_arguments: Any, **_options: Any) -> fx.GraphModule:
        names.extend(str(node.target).removeprefix("aten.") for node in traced.graph.nodes)
        return traced

    monkeypatch.setattr(torch._inductor, "standalone_compile", keep)
    parts = {"normalize_observations": True, "reward_scaling": "std", "n_step": 3, "eval_policy_averaging": 0.5}
    eager, traced = (make_learner(preset, compile=flag, **{**SETTINGS[preset], **parts}) for flag in (False, True))
    assert differing(round_results(traced, [4, 2]), round_results(eager, [4, 2])) == []
    assert not traced.compiling
    assert names
    assert [name for name in names if name.startswith(SYNCHRONIZING)] == []
    config, buffer = traced.agent.config, filled_buffer(n_step=3)
    observed, added = random_transition(config.num_envs), random_transition(256)
    with Synchronizations() as synchronizations:
        traced.agent.observe(observed)
        buffer.extend(added)
        buffer.sample(config.batch_size, 3)
    assert synchronizations.found == []


def fail_to_compile(*_arguments: Any, **_options: Any) -> Any:
    raise RuntimeError("no C++ compiler\nlong story")


def test_failed_compilation_warns_once_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._inductor, "standalone_compile", fail_to_compile)
    found = []
    for compile_ in (False, True):
        learner = make_learner("droq", compile=compile_, **{**SETTINGS["droq"], "policy_delay": 2})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found.append(round_results(learner, [4, 4]))
        said = [str(warning.message) for warning in caught if "compilation failed" in str(warning.message)]
        assert len(said) == compile_, "once for all graphs"
        assert not learner.compiling
    assert differing(*found) == []


# Captured rounds


class CountingRecorder(GraphRecorder):
    """A graph recorder that counts its replays and keeps the generators that it was given."""

    def __init__(self, made: list[CountingRecorder]) -> None:
        super().__init__()
        self.replays, self.generators = 0, list[torch.Generator]()
        made.append(self)

    def register_generator_state(self, generator: torch.Generator) -> None:
        super().register_generator_state(generator)
        self.generators.append(generator)

    def replay(self) -> None:
        self.replays += 1
        super().replay()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[CountingRecorder]:
    """The graphs that a test captures, on the CPU. Updates are traced but not compiled, so that they are recorded."""
    made: list[CountingRecorder] = []
    record_on_cpu(monkeypatch, partial(CountingRecorder, made))
    monkeypatch.setattr(torch._inductor, "standalone_compile", lambda traced, *_, **__: traced)
    return made


@pytest.mark.parametrize(
    ("preset", "delay", "counts", "num_graphs"),
    [
        ("fast", 3, [2] * 12, 3),
        ("crossq", 2, [1, 2] * 8, 4),
        ("sac", 2, [3] * 8, 4),
        ("sac-v1", 3, [2] * 12, 3),
        ("redq", 5, [1] * 20, 2),
    ],
    ids=["equal", "mixed", "split", "sac-v1", "long delay"],
)
def test_captured_rounds_equal_eager_rounds(
    preset: str,
    delay: int,
    counts: list[int],
    num_graphs: int,
    graphs: list[CountingRecorder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One graph for each order of updates with and without the actor's. Long rounds are split."""
    monkeypatch.setattr(learner_module, "BATCHES_PER_SAMPLE", 2)
    eager, captured = (
        make_learner(preset, capture=flag, compile=flag, policy_delay=delay, batch_size=4, matmul_dtype="float32")
        for flag in (False, True)
    )
    expected, found = round_results(eager, counts), round_results(captured, counts)
    assert captured.gradient_steps == sum(counts)
    assert differing(found, expected) == []
    assert captured.captured
    assert not eager.captured
    assert len(graphs) == num_graphs
    assert all(one.replays > 0 and len(one.generators) == 1 for one in graphs)


def test_captured_rounds_draw_new_batches(graphs: list[CountingRecorder]) -> None:
    learner, buffer = make_learner("sac", capture=True, compile=True, policy_delay=1), filled_buffer()
    errors = [float(learner.round(buffer, 2)["td_error"]) for _ in range(6)]
    assert [one.generators for one in graphs] == [[buffer.generator]]
    assert len(set(errors)) == 6


def test_captured_actor_acts_like_the_agent(graphs: list[CountingRecorder]) -> None:
    learner, buffer = make_learner("sac", capture=True), filled_buffer()
    for number in range(5):
        observation, noise = torch.randn(4, OBSERVATION_DIM), torch.randn(4, ACTION_DIM)
        assert len(graphs) == (number > 2)
        assert torch.equal(learner.act(observation, noise), learner.agent.act(observation, noise))
        learner.agent.update(buffer.sample(16)[0])


def test_release_frees_the_graphs_of_acting_and_rounds(graphs: list[CountingRecorder]) -> None:
    learner = make_learner("crossq", capture=True, compile=True, policy_delay=1)
    for _ in range(4):
        learner.act(torch.randn(4, OBSERVATION_DIM), torch.randn(4, ACTION_DIM))
    run_rounds(learner, [2] * 4)
    alive = [weakref.ref(one) for one in graphs]
    assert len(alive) == 2
    graphs.clear()
    learner.release()
    assert [one() for one in alive] == [None, None]
    assert not learner.captured


def test_rounds_that_failed_to_compile_are_not_captured(
    graphs: list[CountingRecorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may synchronise, which a capture must not."""
    monkeypatch.setattr(torch._inductor, "standalone_compile", fail_to_compile)
    learner = make_learner("sac", capture=True, compile=True, policy_delay=1)
    with pytest.warns(UserWarning, match="compilation failed"):
        run_rounds(learner, [2] * 5)
    assert not graphs
    assert not learner.captured


@pytest.mark.parametrize("compile_", [False, True])
def test_on_cuda_acting_and_compiled_rounds_are_captured(compile_: bool, graphs: list[CountingRecorder]) -> None:
    agent = make_agent("sac", compile=compile_, policy_delay=1)
    agent.device = torch.device("cuda")
    for learner in (Learner(agent), make_learner("sac", compile=compile_, policy_delay=1)):
        for _ in range(4):
            learner.act(torch.randn(4, OBSERVATION_DIM), torch.randn(4, ACTION_DIM))
        run_rounds(learner, [2] * 4)
        assert learner.captured == (compile_ and learner.agent is agent)
        assert len(graphs) == 1 + compile_, "none on the CPU"


def test_compiled_updates_are_told_of_the_other_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(learner_module, "CompiledUpdate", lambda *arguments: told.append(arguments[2:]))
    agent = make_agent("sac", compile=True, policy_delay=2)
    monkeypatch.setattr(agent, "ranks", SimpleNamespace(size=2, share=int, any_rank="any"))
    Learner(agent)
    assert told == [("any", 2)] * 2

"""CUDA graphs of steps, the actor, rounds and buffer writes, recorded and replayed on the CPU (`graph_recorder`)."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
import torch._inductor
from env_helpers import Actions, CartBall, equal
from graph_recorder import GraphRecorder, record_on_cpu
from torch import Tensor

from benchmarks.data import random_transitions
from envs import BatchEnv, Simulation, Task
from envs.tasks import Hopper, Humanoid
from pipeline import presets
from pipeline.agent import Agent
from pipeline.buffer import ReplayBuffer
from pipeline.dimensions import Dimensions
from pipeline.learner import Learner
from saltus.device.cuda_graph import WARMUP_CALLS, CapturedFunction, graph_break

pytestmark = pytest.mark.filterwarnings("ignore:the model asks for the PGS solver")
NUM_ENVS, CPU = 4, torch.device("cpu")
Pair = tuple[BatchEnv, BatchEnv]


@pytest.fixture(autouse=True)
def _cpu_recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    record_on_cpu(monkeypatch)


def make_pair(task: type[Task], **options: Any) -> Pair:
    """Two equal environments without synchronisation, as on a GPU: one eager, one captured."""
    settings: dict[str, Any] = {
        "num_envs": NUM_ENVS,
        "seed": 1,
        "simulation": Simulation(physics="warp", max_contacts=24, max_constraints=96),
    }
    eager = BatchEnv(task(**options), execution="device", **settings)
    return eager, BatchEnv(task(**options), execution="captured", **settings)


@pytest.fixture(scope="module")
def hoppers() -> Pair:
    """Hoppers whose episodes are short."""
    return make_pair(Hopper, frame_skip=1, healthy_angle_range=(-0.004, 0.004))


def count_episodes(eager: BatchEnv, captured: BatchEnv, steps: int) -> int:
    """Step both, assert that they agree bit for bit, and return how many episodes ended."""
    sample, ended = Actions(eager), 0
    for _ in range(steps):
        action = sample()
        (expected, expected_obs), (found, found_obs) = eager.step(action), captured.step(action)
        assert equal(expected, found)
        assert torch.equal(expected_obs, found_obs)
        assert torch.equal(eager.failed, captured.failed)
        assert eager.reward_terms.keys() == captured.reward_terms.keys()
        for name, term in eager.reward_terms.items():
            assert torch.equal(term, captured.reward_terms[name])
        ended += int(expected["next", "done"].sum())
    assert eager.statistics() == captured.statistics()
    return ended


@pytest.mark.parametrize(("task", "options"), [(Humanoid, {"frame_skip": 2}), (CartBall, {"reach": 0.09})])
def test_captured_step_equals_eager_step(task: type[Task], options: dict[str, Any]) -> None:
    eager, captured = make_pair(task, **options)
    assert torch.equal(eager.reset(), captured.reset())
    ended = count_episodes(eager, captured, 6)
    assert captured.captured
    assert not eager.captured
    assert ended > 0 or task is Humanoid


def test_replays_continue_from_reset(hoppers: Pair) -> None:
    for _ in range(2):
        first, captured_first = (env.reset() for env in hoppers)
        assert torch.equal(first, captured_first)
        assert count_episodes(*hoppers, 6) > 0
    assert hoppers[1].captured


def test_replays_continue_from_set_state(hoppers: Pair) -> None:
    for env in hoppers:
        env.reset()
    count_episodes(*hoppers, 3)
    state = hoppers[0].get_state()
    assert count_episodes(*hoppers, 5) > 0
    for env in hoppers:
        env.set_state(state)
    assert count_episodes(*hoppers, 5) > 0


def test_replays_continue_from_set_qpos_qvel(hoppers: Pair) -> None:
    for env in hoppers:
        env.reset()
    qpos, qvel = hoppers[0].state.qpos.clone(), hoppers[0].state.qvel.clone()
    count_episodes(*hoppers, 3)
    for env in hoppers:
        env.set_qpos_qvel(qpos, qvel)
    assert torch.equal(hoppers[1].state.qpos, qpos)
    count_episodes(*hoppers, 3)


def test_replays_do_not_overwrite_results(hoppers: Pair) -> None:
    env = hoppers[1]
    env.reset()
    sample = Actions(env)
    for _ in range(4):
        transition, observation = env.step(sample())
    assert env.captured
    failed, terms = env.failed, env.reward_terms
    copies = (
        transition.clone(),
        observation.clone(),
        failed.clone(),
        {name: term.clone() for name, term in terms.items()},
    )
    env.step(sample())
    assert equal(transition, copies[0])
    assert torch.equal(observation, copies[1])
    assert torch.equal(failed, copies[2])
    assert all(torch.equal(terms[name], term) for name, term in copies[3].items())


def test_failed_capture_raises_and_changes_nothing() -> None:
    eager, env = make_pair(Hopper, frame_skip=1)
    for one in (eager, env):
        one.reset()
    count_episodes(eager, env, 2)
    before, reset = env.get_state(), env.task.reset

    def fail(*_: Any) -> None:
        raise FloatingPointError("no initial state")

    env.task.reset = fail  # type: ignore[assignment]  # called at the end of a step
    with pytest.raises(FloatingPointError, match="no initial state") as caught:
        env.step(Actions(env)())
    assert caught.value.__notes__ == ["This happened while a step of Hopper was captured as a CUDA graph."]
    assert CapturedFunction.capturing is None
    assert equal(env.get_state(), before)
    env.task.reset = reset  # type: ignore[method-assign]
    count_episodes(eager, env, 4)
    assert env.captured


def test_captured_extend_equals_eager_extend() -> None:
    dimensions = Dimensions(3, 2)
    eager, captured = (ReplayBuffer(20, dimensions, seed=1, n_step=2, capture=capture) for capture in (False, True))
    for number in range(7):
        transition = random_transitions(NUM_ENVS, 3, 2)
        transition["observation"] += number
        for buffer in (eager, captured):
            buffer.extend(transition)
        if number:
            for expected, found in zip(eager.sample(8, 2), captured.sample(8, 2), strict=True):
                assert equal(expected, found)
    assert captured.captured
    assert not eager.captured


def make_agent(preset: str, **options: Any) -> tuple[Agent, ReplayBuffer]:
    torch.manual_seed(0)
    small = {"batch_size": 16, "actor_hidden": (8,), "critic_hidden": (8,), "num_envs": NUM_ENVS, "utd_ratio": 1 / 4}
    config = presets.preset(preset, "Hopper-v5", **{**small, "n_step": 3, **options})
    dimensions = Dimensions(11, 3)
    agent = Agent(config, dimensions)
    buffer = ReplayBuffer(64, dimensions, n_step=config.n_step, gamma=agent.gamma)
    buffer.extend(random_transitions(64, 11, 3))
    return agent, buffer


def test_captured_actor_follows_updates_and_normalizer(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, buffer = make_agent("fast", normalize_observations=True, compile=False)
    calls, act = [], agent.act
    monkeypatch.setattr(agent, "act", lambda *inputs: calls.append(inputs) or act(*inputs))
    learner = Learner(agent, capture=True)
    found, expected = list[Tensor](), list[Tensor]()
    for number in range(6):
        observation, noise = torch.randn(NUM_ENVS, 11), torch.randn(NUM_ENVS, 3)
        found.append(learner.act(observation, noise))
        expected.append(act(observation, noise))
        assert torch.equal(found[-1], expected[-1])
        if number % 2:
            learner.round(buffer, 3)
        else:
            agent.observe(random_transitions(NUM_ENVS, 11, 3))
    assert len(calls) == WARMUP_CALLS + 1, "not captured"
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True)), "overwritten by a replay"


def test_synchronizing_function_runs_eagerly_with_a_warning() -> None:
    calls = []

    def function(values: Tensor) -> dict[str, Tensor]:
        calls.append(values)
        return {"positive": values[values > 0]}

    captured = CapturedFunction(function, "a step of Mine", CPU)
    captured(torch.ones(2))
    with pytest.warns(UserWarning, match=r"a step of Mine synchronises with the GPU in index.Tensor and cannot be a"):
        captured(torch.ones(2))
    for values in (torch.tensor([1.0, -1.0]), torch.tensor([1.0, 2.0])):
        assert torch.equal(captured(values)["positive"], values[values > 0])
    assert len(calls) == 4
    assert not captured.captured


def test_inputs_of_another_shape_or_dtype_are_refused() -> None:
    function = CapturedFunction(lambda values: {"double": 2 * values}, "doubling", CPU)
    for number in range(4):
        assert float(function(torch.full((2,), number))["double"][0]) == 2 * number
    match = r"doubling was captured with a torch.int64 tensor of shape \(2,\) and was called with a torch.float32"
    with pytest.raises(ValueError, match=rf"{match} tensor of shape \(3,\)"):
        function(torch.ones(3))
    with pytest.raises(ValueError, match=rf"{match} tensor of shape \(2,\)"):
        function(torch.ones(2))


def test_release_frees_graphs_inputs_and_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process group of NCCL cannot end while a graph with its operations is alive."""
    made = list[weakref.ref[Any]]()

    def make_graph() -> GraphRecorder:
        graph = GraphRecorder()
        made.append(weakref.ref(graph))
        return graph

    def function(values: Tensor) -> dict[str, Tensor]:
        double = 2 * values
        graph_break(lambda: None)
        made.extend((weakref.ref(values), weakref.ref(double)))
        return {"double": double}

    record_on_cpu(monkeypatch, make_graph)
    captured = CapturedFunction(function, "doubling", CPU)
    for _ in range(WARMUP_CALLS):
        captured(torch.ones(2))
    made.clear()
    captured(torch.ones(2))
    assert len(made) == 4, "two graphs, an input and a result"
    captured.release()
    assert [one() for one in made] == [None] * 4
    assert not captured.captured
    assert captured(torch.full((2,), 3.0))["double"].tolist() == [6, 6]
    assert captured.captured


def test_garbage_collection_is_paused_during_capture() -> None:
    enabled = []

    def function() -> dict[str, Tensor]:
        enabled.append(gc.isenabled())
        return {"one": torch.ones(1)}

    def failing() -> dict[str, Tensor]:
        function()
        if len(enabled) == 6:
            raise ValueError("fails during capture")
        return {}

    captured = CapturedFunction(function, "function", CPU)
    for _ in range(4):
        captured()
    assert enabled == [True, True, False]
    assert gc.isenabled()
    captured = CapturedFunction(failing, "failing", CPU)
    captured()
    captured()
    with pytest.raises(ValueError, match="fails during capture"):
        captured()
    assert enabled[3:] == [True, True, False]
    assert gc.isenabled()

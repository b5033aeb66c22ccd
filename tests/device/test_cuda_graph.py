"""A step, the actor and the buffer's writing as CUDA graphs, which a stand-in records on the CPU (`recording`)."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import pytest
import recording
import torch
from env_helpers import Actions, CartBall, equal
from torch import Tensor

import envs
from benchmarks.data import random_transitions
from envs import BatchEnv, cuda_graph
from pipeline import presets
from pipeline.buffer import ReplayBuffer
from pipeline.learner import Learner
from saltus.device.cuda_graph import CapturedFunction, watch

pytestmark = pytest.mark.filterwarnings("ignore:the model asks for the PGS solver")
WORLDS, CPU = 8, torch.device("cpu")


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    recording.on_the_cpu(monkeypatch)


def make(task: Any, recorded: bool) -> BatchEnv:
    """Worlds that nobody may look into, as on a GPU."""
    env = envs.make(task, WORLDS, physics="warp", seed=1)
    env._may_look = False
    if recorded:
        env._graph = CapturedFunction(env._advance_in_place, "a step", CPU, env._generator)
    return env


def same(plain: BatchEnv, recorded: BatchEnv, steps: int) -> int:
    """Take steps in both, hold them against each other, and return how many episodes ended."""
    draw, ended = Actions(plain), 0
    for _ in range(steps):
        action = draw()
        (expected, expected_obs), (found, found_obs) = plain.step(action), recorded.step(action)
        assert equal(expected, found)
        assert torch.equal(expected_obs, found_obs)
        assert torch.equal(plain.failed, recorded.failed)
        assert plain.reward_terms.keys() == recorded.reward_terms.keys()
        for name, term in plain.reward_terms.items():
            assert torch.equal(term, recorded.reward_terms[name])
        ended += int(expected["next", "done"].sum())
    assert plain.statistics() == recorded.statistics()
    return ended


@pytest.mark.parametrize(("task", "steps"), [("Hopper-v5", 25), ("Humanoid-v5", 6), (CartBall, 25)])
def test_a_replayed_step_is_the_plain_one(task: Any, steps: int):
    plain, recorded = make(task, False), make(task, True)
    assert torch.equal(plain.reset(), recorded.reset())
    ended = same(plain, recorded, steps)
    assert recorded._graph.recorded
    assert ended > 0 or task != "Hopper-v5"


def test_a_reset_between_replays_is_seen_by_the_next():
    plain, recorded = make("Hopper-v5", False), make("Hopper-v5", True)
    for _ in range(2):
        assert torch.equal(plain.reset(), recorded.reset())
        same(plain, recorded, 5)


def test_a_state_that_is_set_between_replays_is_gone_on_from():
    plain, recorded = make("Hopper-v5", False), make("Hopper-v5", True)
    for env in (plain, recorded):
        env.reset()
    same(plain, recorded, 5)
    state = plain.get_state()
    assert same(plain, recorded, 15) > 0
    for env in (plain, recorded):
        env.set_state(state)
    assert same(plain, recorded, 15) > 0


def test_what_a_step_gave_stays_as_it_was():
    env = make("Hopper-v5", True)
    env.reset()
    draw = Actions(env)
    for _ in range(4):
        transition, observation = env.step(draw())
    kept = transition.clone(), observation.clone(), env.failed.clone()
    failed, terms = env.failed, env.reward_terms
    kept_terms = {name: term.clone() for name, term in terms.items()}
    env.step(draw())
    assert equal(transition, kept[0])
    assert torch.equal(observation, kept[1])
    assert torch.equal(failed, kept[2])
    assert all(torch.equal(terms[name], term) for name, term in kept_terms.items())


def test_replayed_writing_fills_the_buffer_as_plain_writing_does():
    plain, recorded = (ReplayBuffer(20, 3, 2, seed=1, n_step=2) for _ in range(2))
    recorded._writing[WORLDS] = CapturedFunction(recorded._write, "writing", CPU)
    for number in range(7):
        transition = random_transitions(WORLDS, 3, 2)
        transition["observation"] += number
        for buffer in (plain, recorded):
            buffer.extend(transition)
        if number:
            for expected, found in zip(plain.sample(8, 2), recorded.sample(8, 2), strict=True):
                assert equal(expected, found)
    assert recorded._writing[WORLDS].recorded


def test_the_replayed_actor_acts_by_what_it_has_learned_and_observed():
    small = {"batch_size": 16, "actor_hidden": (8,), "critic_hidden": (8,), "num_envs": WORLDS, "utd_ratio": 1 / 8}
    config = presets.preset("fast", "Hopper-v5", **small, normalize_observations=True, compile=False)
    learner, buffer = Learner(config, 11, 3), ReplayBuffer(64, 11, 3, n_step=config.n_step)
    buffer.extend(random_transitions(64, 11, 3))
    learner._acting = CapturedFunction(learner._act, "the actor", CPU)
    found, kept = list[Tensor](), list[Tensor]()
    for number in range(6):
        observation, noise = torch.randn(WORLDS, 11), torch.randn(WORLDS, 3)
        found.append(learner.act(observation, noise))
        kept.append(learner._act(observation, noise)["action"])
        assert torch.equal(found[-1], kept[-1])
        if number % 2:
            learner.round(buffer, 3)
        else:
            learner.observe(random_transitions(WORLDS, 11, 3))
    assert learner._acting.recorded
    assert all(torch.equal(one, other) for one, other in zip(found, kept, strict=True)), "written over by a replay"


def test_a_recording_that_fails_says_so_and_leaves_the_environment_as_it_was():
    plain, env = make("Hopper-v5", False), make("Hopper-v5", True)
    for one in (plain, env):
        one.reset()
    same(plain, env, 2)
    before, reset = env.get_state(), env.task.reset

    def fail(*_: Any) -> None:
        raise FloatingPointError("no first state today")

    env.task.reset = fail  # at the end of a step, when all is counted
    with pytest.raises(FloatingPointError, match="no first state today") as caught:
        env.step(Actions(env)())
    assert caught.value.__notes__ == ["This was while a step was recorded as a CUDA graph."]
    assert CapturedFunction.recording is None
    assert equal(env.get_state(), before)
    env.task.reset = reset
    same(plain, env, 4)
    assert env._graph.recorded


def test_worlds_that_are_placed_between_replays_are_gone_on_from():
    plain, recorded = make("HalfCheetah-v5", False), make("HalfCheetah-v5", True)
    for env in (plain, recorded):
        env.reset()
    fields = plain.get_state()["fields"]
    same(plain, recorded, 5)
    for env in (plain, recorded):
        env.set_qpos_qvel(fields["qpos"], fields["qvel"])
    same(plain, recorded, 3)


def test_work_that_waits_goes_on_as_it_is_and_says_where():
    calls = []

    def work(values: Tensor) -> dict[str, Tensor]:
        calls.append(values)
        return {"positive": values[values > 0]}

    graph = CapturedFunction(work, "a step of Mine", CPU)
    graph(torch.ones(2))
    with pytest.warns(UserWarning, match=r"a step of Mine waits for the GPU in .*, so that it cannot be a CUDA graph"):
        graph(torch.ones(2))
    for values in (torch.tensor([1.0, -1.0]), torch.tensor([1.0, 2.0])):
        assert torch.equal(graph(values)["positive"], values[values > 0])
    assert len(calls) == 4
    assert not graph.recorded


def test_inputs_of_other_shapes_or_dtypes_than_recorded_are_refused():
    graph = CapturedFunction(lambda values: {"double": 2 * values}, "doubling", CPU)
    for number in range(4):
        assert float(graph(torch.full((2,), number))["double"][0]) == 2 * number
    with pytest.raises(ValueError, match=r"doubling was recorded with a torch.int64 tensor of shape \(2,\) and got a"):
        graph(torch.ones(3))
    with pytest.raises(ValueError, match=r"got a torch.float32 one of shape \(2,\)"):
        graph(torch.ones(2))


def test_nothing_is_collected_while_recording() -> None:
    found = []

    def work() -> dict[str, Tensor]:
        found.append(gc.isenabled())
        if len(found) == 4:
            raise ValueError("no")
        return {"one": torch.ones(1)}

    graph = CapturedFunction(work, "work", CPU)
    for _ in range(4):
        graph()
    assert found == [True, True, False]
    assert gc.isenabled()
    failing = CapturedFunction(work, "work", CPU)
    failing._calls = 2
    with pytest.raises(ValueError, match="no"):
        failing()
    assert gc.isenabled()


def test_watching_finds_where_torch_says_that_it_waited_and_lets_other_warnings_be_seen(
    monkeypatch: pytest.MonkeyPatch,
):
    modes: list[Any] = ["default"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def work() -> int:
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)
        warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
        warnings.warn("the task's own", stacklevel=1)
        return 3

    with pytest.warns(UserWarning, match="the task's own") as seen:
        result, places = watch(work)
    assert result == 3
    assert [str(one.message) for one in seen] == ["the task's own"]
    assert [place.partition(":")[0] for place in places] == ["test_cuda_graph.py"]
    assert modes == ["default", "warn", "default"]


def test_watching_hears_compiled_code_of_whose_warnings_python_would_not_know(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cuda_graph, "WAITED", "degrees of freedom is <= 0")
    one, weight = torch.ones(1), torch.ones(1, requires_grad=True)

    def work() -> torch.Tensor:
        torch.var(one)
        torch.ops.aten.var.correction(one, correction=1)  # as inductor calls what it has not compiled itself
        if torch.is_grad_enabled():
            (2 * weight).sum().backward()
        return one

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.ops.aten.var.correction(one, correction=1)
    assert caught == []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: "default")
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    with torch.no_grad():
        result, places = watch(work)
    assert result is one
    assert weight.grad is None
    assert [place.partition(":")[0] for place in places] == ["test_cuda_graph.py", "compiled code or torch.ops"]
    watch(work)
    assert weight.grad == 2
    with pytest.raises(ZeroDivisionError):
        watch(lambda: 1 / 0)

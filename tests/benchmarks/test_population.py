"""Many runs at once: each member learns as its agent would alone, from its own transitions."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from graph_recorder import GraphRecorder, record_on_cpu
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.population.evaluation import EvaluationPool, evaluate_policy
from benchmarks.population.members import Member
from benchmarks.population.population import measurements
from benchmarks.population.replay import MemberReplay
from benchmarks.population.runs import folders, save_runs
from benchmarks.population.stacked_agents import StackedAgents
from benchmarks.population.trainer import Trainer
from envs import transition as transitions
from pipeline import agent as agent_module
from pipeline.agent import Agent
from pipeline.buffer import ReplayBuffer
from pipeline.config import Config
from pipeline.dimensions import Dimensions
from pipeline.evaluate import Evaluation
from pipeline.learner import Learner
from pipeline.losses import make_loss
from pipeline.policy import load_agent, load_policy
from pipeline.presets import preset
from pipeline.run import Run
from pipeline.seeding import derive_seed
from saltus import SaltusError

TASK, OBSERVATION_DIM, ACTION_DIM = "InvertedPendulum-v5", 5, 3
DIMENSIONS = Dimensions(OBSERVATION_DIM, ACTION_DIM)
SMALL: dict[str, Any] = {
    "device": "cpu",
    "compile": False,
    "matmul_dtype": "float32",
    "num_envs": 4,
    "num_threads": 1,
    "total_env_steps": 200,
    "learning_starts": 40,
    "utd_ratio": 0.25,
    "batch_size": 16,
    "actor_hidden": (8,),
    "critic_hidden": (8,),
    "eval_every": 100,
    "eval_episodes": 2,
}
DIFFERENT: dict[str, Any] = {
    "actor_lr": 3e-3,
    "critic_lr": 2e-3,
    "alpha_lr": 5e-3,
    "alpha_init": 0.3,
    "gamma": 0.9,
    "target_entropy_scale": 0.5,
    "noise_repeat": 1,
}


class SameNoise(TorchDispatchMode):
    """Lets updates of three members at once draw the same normal random numbers as updates of one of them.

    Args:
        member: the one that updates; None: all do.
    """

    def __init__(self, seed: int, member: int | None = None):
        super().__init__()
        self._generator, self._member = torch.Generator().manual_seed(seed), member

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in (torch.ops.aten.normal_.default, torch.ops.aten.randn.default):
            return result
        shape = result.shape if self._member is None else (3, *result.shape)
        noise = torch.randn(shape, generator=self._generator)
        return result.copy_(noise if self._member is None else noise[self._member])


def make_configs(name: str, **overrides: Any) -> list[Config]:
    """Three members: two seeds of a recipe, and one with other settings."""
    recipe = preset(name, TASK, **{**SMALL, "n_step": 3, **overrides})
    return [recipe, replace(recipe, seed=1), replace(recipe, seed=2, **DIFFERENT)]


def alone(config: Config) -> Agent:
    torch.manual_seed(derive_seed(config.seed, "learner"))
    return Agent(config, DIMENSIONS)


def random_transitions(*size: int, seed: int) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    observation, next_obs = torch.randn(2, *size, OBSERVATION_DIM, generator=generator)
    action = torch.rand(*size, ACTION_DIM, generator=generator) * 2 - 1
    terminated, truncated = torch.rand(2, *size, generator=generator) < 0.3
    reward = torch.randn(*size, generator=generator)
    flat = [one.flatten(0, 1) for one in (observation, action, next_obs, reward, terminated, truncated)]
    return transitions.make(*flat).reshape(*size)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["fast", "sac", "crossq"])
@pytest.mark.parametrize("batched_critics", [False, True])
def test_each_member_learns_as_its_agent_alone(
    name: str, batched_critics: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "make_loss", partial(make_loss, batched_critics=batched_critics))  # True: CUDA's
    settings = {"normalize_observations": True, "eval_policy_averaging": 0.5, "lr_final_fraction": 0.1}
    configs = make_configs(name, **settings)
    agents = [alone(config) for config in configs]
    members = StackedAgents(configs, DIMENSIONS)
    for number in range(4):
        for one in (members, *agents):
            one.apply_schedules(number / 4, 250_000 * number, 0.008)
        worlds = random_transitions(3, 4, seed=number)
        batch = random_transitions(3, 16, seed=10 + number)
        batch["steps_to_next_obs"] = torch.randint(1, 4, (3, 16, 1)).float()
        members.observe(worlds)
        with SameNoise(number):
            metrics = members.update(batch)
        for member, agent in enumerate(agents):
            agent.observe(worlds[member])
            with SameNoise(number, member):
                expected = agent.update(batch[member])
            assert metrics.keys() == expected.keys()
            for key, value in expected.items():
                assert_close(metrics[key][member], value)

    observation, noise = torch.randn(3, 4, OBSERVATION_DIM), torch.randn(3, 4, ACTION_DIM)
    actions, state = members.act(observation, noise), members.policy_state()
    for member, agent in enumerate(agents):
        with torch.no_grad():
            assert_close(actions[member], agent.act(observation[member], noise[member]))
        for part, tensors in agent.policy_state().items():
            assert tensors.keys() == state[part].keys()
            for key, value in tensors.items():
                assert_close(state[part][key][member], value)


def test_members_draw_different_noise() -> None:
    recipe = make_configs("fast")[0]
    members = StackedAgents([recipe, recipe], DIMENSIONS)
    batch = random_transitions(1, 16, seed=0).expand(2, 16).clone()
    batch["steps_to_next_obs"] = torch.ones(2, 16, 1)
    first, second = members.update(batch)["critic_loss"].tolist()
    assert first != second


def run_rounds(configs: list[Config], capture: bool) -> list[Any]:
    """Metrics, policies and random state after acting and rounds of updates."""
    members = StackedAgents(configs, DIMENSIONS)
    replay = MemberReplay(configs, DIMENSIONS, "cpu", members.gammas)
    learner = Learner(members, capture)
    torch.manual_seed(0)
    for number in range(5):
        replay.extend(random_transitions(3, 4, seed=number).reshape(12))
    results: list[Any] = []
    for number in range(5):
        members.apply_schedules(number / 5, 250_000 * number, 0.008)
        results.append({key: value.clone() for key, value in learner.round(replay, 4).items()})
        results.append(learner.act(torch.randn(3, 4, OBSERVATION_DIM), torch.randn(3, 4, ACTION_DIM)))
    assert learner.captured == capture
    return [results, members.policy_state(), torch.get_rng_state()]


def test_compiled_and_captured_rounds_equal_eager_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    configs = make_configs("fast", policy_delay=2)
    eager = run_rounds(configs, capture=False)
    monkeypatch.setattr(torch._inductor, "standalone_compile", lambda traced, *_, **__: traced)
    graphs = list[GraphRecorder]()

    def record() -> GraphRecorder:
        graphs.append(GraphRecorder())
        return graphs[-1]

    record_on_cpu(monkeypatch, record)
    captured = run_rounds([replace(config, compile=True) for config in configs], capture=True)
    assert len(graphs) == 2, "of acting and of rounds"
    torch.testing.assert_close(captured, eager, rtol=1e-5, atol=1e-6)


def rows_by_origin(batch: TensorDictBase) -> dict[tuple[float, ...], tuple[float, ...]]:
    """The sampled transitions, by their first observation."""
    entries = [batch["action"], batch["next"]["observation"], batch["next"]["reward"]]
    entries += [batch["next"][key].float() for key in ("terminated", "truncated", "done")]
    if "steps_to_next_obs" in batch:
        entries.append(batch["steps_to_next_obs"])
    rows = torch.cat(entries, -1)
    return {tuple(key): tuple(row) for key, row in zip(batch["observation"].tolist(), rows.tolist(), strict=True)}


@pytest.mark.parametrize("vector_steps", [4, 13])
@pytest.mark.parametrize("n_step", [1, 3])
def test_member_samples_its_own_transitions_as_its_buffer_alone(n_step: int, vector_steps: int) -> None:
    configs = make_configs("fast", n_step=n_step, buffer_size=43)  # 10 vector steps of 4 worlds, and a rest
    gammas = torch.tensor([0.99, 0.5, 0.9])
    replay = MemberReplay(configs, DIMENSIONS, "cpu", gammas)
    buffers = [ReplayBuffer(40, DIMENSIONS, n_step=n_step, gamma=float(one)) for one in gammas]
    for number in range(vector_steps):
        transition = random_transitions(3, 4, seed=number)
        replay.extend(transition.reshape(12))
        for member, buffer in enumerate(buffers):
            buffer.extend(transition[member])
    batches = replay.sample(400, num_batches=2)
    assert len(batches) == 2
    for batch in batches:
        for member, buffer in enumerate(buffers):
            expected, found = rows_by_origin(torch.cat(buffer.sample(16, 100))), rows_by_origin(batch[member])
            assert len(expected) == 4 * min(vector_steps, 10)
            assert found.keys() == expected.keys()
            for key, row in found.items():
                assert row == pytest.approx(expected[key], abs=1e-6)


def test_policy_is_evaluated_as_in_a_run(tmp_path: Path) -> None:
    run = Run(replace(make_configs("fast")[0], seed=5, normalize_observations=True), tmp_path)
    state = run.agent.policy_state()
    arrays = {part: {name: value.numpy() for name, value in tensors.items()} for part, tensors in state.items()}

    class Rows:
        run_dir = tmp_path
        phase = staticmethod(lambda text: None)
        evaluation = staticmethod(lambda row, text, returns: None)

    run.env_steps = 100
    run.evaluate(Rows())  # type: ignore[arg-type]
    assert evaluate_policy(run.config, 100, arrays).mean == run.best["return_mean"]


def test_members_act_at_random_then_learn() -> None:
    configs = make_configs("fast")
    trainer = Trainer(configs)
    before = trainer.agents.policy_state()["network"]
    due = []
    while not trainer.finished:
        trainer.step()
        if trainer.env_steps == 40:
            torch.testing.assert_close(trainer.agents.policy_state()["network"], before, rtol=0, atol=0)
        if trainer.evaluation_due:
            due.append(trainer.env_steps)
    assert due == [100, 200]
    assert trainer.env.num_envs == 12
    after = trainer.agents.policy_state()["network"]
    for name, value in before.items():
        assert all(not torch.equal(*pair) for pair in zip(value, after[name], strict=True))


def test_continued_training_equals_one_that_never_stopped() -> None:
    configs = make_configs("fast", normalize_observations=True, policy_delay=2)

    def train(trainer: Trainer, env_steps: int) -> Trainer:
        while trainer.env_steps < env_steps:
            trainer.step()
        return trainer

    stopped = train(Trainer(configs), 120)
    file = BytesIO()
    torch.save(stopped.state_dict(), file)
    expected = train(stopped, 200)
    file.seek(0)
    continued = Trainer(configs)
    continued.load_state_dict(torch.load(file, weights_only=True))
    found = train(continued, 200)
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_state_of_other_agents_is_refused() -> None:
    members = StackedAgents(make_configs("fast"), DIMENSIONS)
    stacked = members.state_dict()["stacked"]
    for other in (stacked[1:], [stacked[0][:, None], *stacked[1:]]):
        with pytest.raises(SaltusError, match="the state is of agents with other tensors"):
            members.load_state_dict({"stacked": other})


@pytest.mark.usefixtures("evaluations_in_this_process")
def test_a_member_that_diverges_changes_nothing_in_the_others() -> None:
    settings = {"total_env_steps": 120, "eval_every": 60, "task_options": {"max_episode_steps": 20}}
    configs = [replace(one, task="HalfCheetah-v5", **settings) for one in make_configs("fast")]
    trainer, outcomes = Trainer(configs[:2]), []  # no episode ends early, which draws random numbers for all worlds
    while trainer.env_steps < 60:
        trainer.step()
    state = deepcopy(trainer.state_dict())
    for diverges in (False, True):
        trainer.load_state_dict(state)
        pool = EvaluationPool(configs[:2], 1)
        pool.submit(60, trainer.agents.policy_state())
        for tensor in trainer.agents.tensors():
            tensor[1] += torch.nan if diverges else 0
        while not trainer.finished:
            trainer.step()
        pool.submit(120, trainer.agents.policy_state())
        pool.collect(wait=True)
        own = trainer.agents.member_state(0), trainer.env.state.qpos[:4], pool.curves[0], pool.best[0]
        outcomes.append(own)
    torch.testing.assert_close(*outcomes, rtol=0, atol=0)
    rows = measurements([Member("", config) for config in configs[:2]], pool)
    assert [(row["curve"]["env_steps"], row["diverged"]) for row in rows] == [([60, 120], None), ([60], 120)]


def test_a_member_that_diverged_is_not_saved_as_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configs = make_configs("fast")[:1]
    pool = EvaluationPool(configs, 1)
    pool.diverged[0] = 12_000
    save_runs([tmp_path / "recipe-s0"], [Member("", configs[0])], Mock(), pool)
    assert capsys.readouterr().out == (
        f"{tmp_path / 'recipe-s0'} is not written: the member diverged before 12,000 env steps\n"
    )
    assert not any(tmp_path.iterdir())


def test_members_are_saved_as_runs(tmp_path: Path) -> None:
    configs = make_configs("fast", normalize_observations=True)
    members = [Member("gamma=0.9 alpha_init=0.3" * (number == 2), config) for number, config in enumerate(configs)]
    trainer, pool = Trainer(configs), EvaluationPool(configs, 1)
    while not trainer.finished:
        trainer.step()
        if trainer.env_steps == 100:
            early = trainer.agents.policy_state()
    arrays = {part: {name: one[2].numpy() for name, one in values.items()} for part, values in early.items()}
    pool._keep_best(2, 100, Evaluation((3.0, 5.0), (3, 5), 0), arrays)
    paths = folders(tmp_path, members)
    assert [path.name for path in paths] == ["recipe-s0", "recipe-s1", "gamma=0.9-alpha_init=0.3-s2"]
    save_runs(paths[:1], members[:1], trainer, pool)
    first = (paths[0] / "config.json").stat()
    assert folders(tmp_path, members) == paths  # a repetition of a command that was killed while it saved
    save_runs(paths, members, trainer, pool)
    assert (paths[0] / "config.json").stat() == first
    with pytest.raises(SaltusError, match="recipe-s0 exists"):
        folders(tmp_path, [Member("", replace(configs[0], gamma=0.5))])

    observation, noise = torch.randn(3, 4, 4), torch.randn(3, 4, 1)
    actions = trainer.agents.act(observation, noise)
    for number, path in enumerate(paths):
        agent, content = load_agent(path, None, False, "")
        with torch.no_grad():
            assert_close(agent.act(observation[number], noise[number]), actions[number])
        assert content["state"]["ended"]
        assert content["state"]["gradient_steps"] == trainer.gradient_steps > 0
        last = load_policy(path, "last")
        assert last.env_steps == 200
        for part, tensors in last.agent.policy_state().items():
            for name, value in tensors.items():
                assert torch.equal(value, trainer.agents.policy_state()[part][name][number])
    best = load_policy(paths[2])
    assert (best.which, best.env_steps) == ("best", 100)
    with pytest.warns(UserWarning, match="has no best policy"):
        assert load_policy(paths[0]).which == "last"
    for name, value in best.agent.policy_state()["network"].items():
        assert torch.equal(value, early["network"][name][2])


def test_best_policy_has_the_highest_mean_return_without_failures() -> None:
    pool = EvaluationPool(make_configs("fast")[:1], 1)
    evaluations = [(100, 3.0, 0), (300, 5.0, 0), (200, 5.0, 0), (400, 9.0, 1), (500, 4.0, 0)]  # not in their order
    for env_steps, value, failed in evaluations:
        pool._keep_best(0, env_steps, Evaluation((value,), (1,), failed), {})
    assert pool.best == [{"return_mean": 5.0, "env_steps": 300, "policy": {}}]

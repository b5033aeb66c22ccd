"""Many runs at once: each member learns as its agent would alone, from its own transitions."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from graph_recorder import record_on_cpu
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.__main__ import main
from benchmarks.population.evaluation import EvaluationPool, evaluate_policy
from benchmarks.population.members import Member, make_members
from benchmarks.population.population import population, summarize, tables
from benchmarks.population.replay import MemberReplay
from benchmarks.population.runs import folders, save_runs
from benchmarks.population.saved import SavedState
from benchmarks.population.stacked_agents import StackedAgents
from benchmarks.population.trainer import Trainer
from benchmarks.result import read
from envs import transition as transitions
from pipeline import agent as agent_module
from pipeline import checkpoint
from pipeline.agent import Agent
from pipeline.buffer import ReplayBuffer
from pipeline.config import Config
from pipeline.evaluate import Evaluation
from pipeline.learner import Learner
from pipeline.losses import make_loss
from pipeline.policy import load_agent, load_policy
from pipeline.presets import preset
from pipeline.run import Run
from pipeline.seeding import derive_seed
from saltus import SaltusError

TASK, OBSERVATION_DIM, ACTION_DIM = "InvertedPendulum-v5", 5, 3
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


OPTIONS = [
    "--no-compile", "--device", "cpu", "--num-envs", "4", "--num-threads", "1", "--total-env-steps", "200",
    "--learning-starts", "40", "--utd-ratio", "0.25", "--batch-size", "16", "--actor-hidden", "8",
    "--critic-hidden", "8", "--eval-every", "100", "--eval-episodes", "2",
]  # fmt: skip


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
    return Agent(config, OBSERVATION_DIM, ACTION_DIM)


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
    members = StackedAgents(configs, OBSERVATION_DIM, ACTION_DIM)
    for number in range(4):
        for one in (members, *agents):
            one.advance(number / 4, 250_000 * number)
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
    members = StackedAgents([recipe, recipe], OBSERVATION_DIM, ACTION_DIM)
    batch = random_transitions(1, 16, seed=0).expand(2, 16).clone()
    batch["steps_to_next_obs"] = torch.ones(2, 16, 1)
    first, second = members.update(batch)["critic_loss"].tolist()
    assert first != second


def run_rounds(configs: list[Config], capture: bool) -> list[Any]:
    """Metrics, policies and random state after acting and rounds of updates."""
    members = StackedAgents(configs, OBSERVATION_DIM, ACTION_DIM)
    replay = MemberReplay(configs, OBSERVATION_DIM, ACTION_DIM, "cpu", members.gammas)
    learner = Learner(members, capture)
    torch.manual_seed(0)
    for number in range(5):
        replay.extend(random_transitions(3, 4, seed=number).reshape(12))
    results: list[Any] = []
    for number in range(5):
        members.advance(number / 5, 250_000 * number)
        results.append({key: value.clone() for key, value in learner.round(replay, 4).items()})
        results.append(learner.act(torch.randn(3, 4, OBSERVATION_DIM), torch.randn(3, 4, ACTION_DIM)))
    assert learner.captured == learner.act_captured == capture
    return [results, members.policy_state(), torch.get_rng_state()]


def test_compiled_and_captured_rounds_equal_eager_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    configs = make_configs("fast", policy_delay=2)
    eager = run_rounds(configs, capture=False)
    monkeypatch.setattr(torch._inductor, "standalone_compile", lambda traced, *_, **__: traced)
    record_on_cpu(monkeypatch)
    captured = run_rounds([replace(config, compile=True) for config in configs], capture=True)
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
    replay = MemberReplay(configs, OBSERVATION_DIM, ACTION_DIM, "cpu", gammas)
    buffers = [ReplayBuffer(40, OBSERVATION_DIM, ACTION_DIM, n_step=n_step, gamma=float(one)) for one in gammas]
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
        phase = staticmethod(lambda text: None)
        evaluation = staticmethod(lambda row, text: None)

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
    assert (best.which, best.env_steps, load_policy(paths[0]).which) == ("best", 100, "last")
    for name, value in best.agent.policy_state()["network"].items():
        assert torch.equal(value, early["network"][name][2])


def test_best_policy_has_the_highest_mean_return_without_failures() -> None:
    pool = EvaluationPool(make_configs("fast")[:1], 1)
    evaluations = [(100, 3.0, 0), (300, 5.0, 0), (200, 5.0, 0), (400, 9.0, 1), (500, 4.0, 0)]  # not in their order
    for env_steps, value, failed in evaluations:
        pool._keep_best(0, env_steps, Evaluation((value,), (1,), failed), {})
    assert pool.best == [{"return_mean": 5.0, "env_steps": 300, "policy": {}}]


@pytest.mark.slow
def test_command_trains_and_evaluates_every_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.jsonl"
    arguments = ["population", TASK, "--seeds", "3-4", "--variants", "", "gamma=0.9  actor_lr=3e-3"]
    arguments += ["--threshold", "1", "--processes", "1", "--output", str(file), "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments, "--", *OPTIONS])
    main()
    found = read(file)
    rows = found.measurements
    changed = "gamma=0.9 actor_lr=3e-3"
    assert [(row["variant"], row["seed"]) for row in rows] == [("", 3), ("", 4), (changed, 3), (changed, 4)]
    assert all(row["curve"]["env_steps"] == [100, 200] for row in rows)
    assert all(value >= 1 for row in rows for value in row["curve"]["return"])
    assert found.settings["variants"] == ["", changed]
    assert found.settings["config"]["batch_size"] == 16
    (table,) = tables(found)
    assert [[*row[:2], *row[4:]] for row in table.rows] == [
        ["the recipe itself", 2, 100, 100, "2 of 2", "0% of 2"],
        [changed, 2, 100, 100, "2 of 2", "0% of 2"],
    ]
    assert "200 of 200 env steps, " in capsys.readouterr().out
    for name, row in zip(["recipe-s3", "recipe-s4", "gamma=0.9-actor_lr=3e-3-s3"], rows, strict=False):
        policy = load_policy(tmp_path / "runs" / name)
        assert (policy.which, policy.config.seed) == ("best", row["seed"])
        assert row["curve"]["return"][row["curve"]["env_steps"].index(policy.env_steps)] == max(row["curve"]["return"])


@pytest.mark.usefixtures("evaluations_in_this_process")
def test_command_continues_after_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer.step

    def train(file: Path, stop_at: int | None = None) -> list[dict[str, Any]]:
        def step_and_stop(trainer: Trainer) -> None:
            step(trainer)
            if trainer.env_steps == stop_at:
                signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(Trainer, "step", step_and_stop)
        arguments = ["population", TASK, "--seeds", "3-4", "--processes", "1", "--output", str(file), "--", *OPTIONS]
        monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
        main()
        return read(file).measurements

    file, folder = tmp_path / "stopped.jsonl", tmp_path / "stopped.state"
    with pytest.raises(SystemExit, match=f"stopped at 120 env steps. {file} is up to date; the same command continues"):
        train(file, stop_at=120)
    assert [row["curve"]["env_steps"] for row in read(file).measurements] == [[100], [100]]
    with pytest.raises(SystemExit, match=f"belongs to another run: .*To train anew, delete {folder} or name another"):
        population(TASK, tuple(OPTIONS), seeds=(3,), processes=1, output=file)
    assert [row["curve"]["env_steps"] for row in train(file)] == [[100, 200], [100, 200]]
    assert not folder.exists()


def test_state_of_an_earlier_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = SavedState(tmp_path / "result.jsonl", {})
    monkeypatch.setattr(checkpoint, "load_last", lambda *_: {"state": {"trainer": {}, "curves": []}})
    with pytest.raises(
        SystemExit, match=r"result.state is the state of an earlier version, .*: delete it to train anew"
    ):
        saved.restore(Mock(), Mock())


def test_table_has_statistics_of_each_variant() -> None:
    def row(variant: str, *returns: float) -> dict[str, Any]:
        steps = [100 * (number + 1) for number in range(len(returns))]
        return {"variant": variant, "seed": 0, "curve": {"env_steps": steps, "return": returns}}

    measured = [row("", 10.0, 40.0, 20.0), row("", 30.0, 20.0, 50.0), row("gamma=0.9", 5.0)]
    table = summarize("title", measured, threshold=30)
    assert table.columns[4:] == ["env steps to 30, median", "worst", "reached", "below 30 afterwards"]
    assert [[*row[:2], *row[4:]] for row in table.rows] == [
        ["the recipe itself", 2, 150, 200, "2 of 2", "67% of 3"],
        ["gamma=0.9", 1, "not reached", "not reached", "0 of 1", None],
    ]
    assert [row[2:4] for row in table.rows] == [["45 (40 to 50)", "35 (20 to 50)"], ["5", "5"]]
    assert summarize("title", measured, threshold=None).columns == table.columns[:4]


def test_members_have_the_settings_of_their_variants() -> None:
    members = make_members(TASK, ["--alpha-init", "0.2"], ["", "noise_repeat=4 gamma=0.9"], (7, 8))
    settings = [(one.config.seed, one.config.alpha_init, one.config.noise_repeat, one.config.gamma) for one in members]
    assert settings == [(7, 0.2, "auto", "auto"), (8, 0.2, "auto", "auto"), (7, 0.2, 4, 0.9), (8, 0.2, 4, 0.9)]
    assert [one.variant for one in members] == ["", "", "noise_repeat=4 gamma=0.9", "noise_repeat=4 gamma=0.9"]
    (constant, growing) = make_members(TASK, ["--gamma", "0.9"], ["", "gamma=auto"], (7,))
    assert (constant.config.gamma, growing.config.gamma) == (0.9, "auto")


def test_members_are_evaluated_with_the_precision_of_their_training() -> None:
    (member,) = make_members(TASK, ["--no-compile", "--device", "cpu"], [""], (7,))
    assert member.config.matmul_dtype == "float32"


NAMES = "actor_lr, critic_lr, alpha_lr, alpha_init, gamma, target_entropy_scale, noise_repeat"
CANNOT_DIFFER = (
    f"cannot differ between members: a variant is a list of NAME=VALUE with names among {NAMES}. Give other settings "
    "to all members, as options after --"
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variants": ("gama=0.9",)}, f"'gama=0.9' {CANNOT_DIFFER}"),
        ({"variants": ("", "gamma=0.9 n_step=5")}, f"'n_step=5' {CANNOT_DIFFER}"),
        ({"variants": ("gamma",)}, f"'gamma' {CANNOT_DIFFER}"),
        ({"variants": ("noise_repeat=1.5",)}, "'noise_repeat=1.5': the value must be a whole number"),
        ({"variants": ("gamma=high",)}, "'gamma=high': the value must be a number"),
        ({"variants": ("gamma=1.5",)}, "gamma is 1.5; it must be in [0, 1), or auto"),
        (
            {"variants": ("target_entropy_scale=2",), "options": ("--target-entropy", "-1")},
            "target_entropy_scale has no effect here: it needs --target-entropy auto and --alpha-lr above 0",
        ),
        (
            {"variants": ("", "alpha_lr=0")},
            "alpha_lr is 0 in some variants: all members learn the temperature, or none does",
        ),
        (
            {"variants": ("gamma=0.9", " gamma=0.9")},
            "a variant is given twice: give each once; --seeds says how often each is trained",
        ),
        ({"seeds": ()}, "there are no members: give at least one seed and one variant ('' is the recipe itself)"),
        ({"variants": ()}, "there are no members: give at least one seed and one variant ('' is the recipe itself)"),
        ({"options": ("--seed=3",)}, "--seed is an option of a single run: give --seeds instead"),
        (
            {"options": ("--minutes", "3")},
            "--minutes is an option of a single run: give -- --total-env-steps instead",
        ),
        ({"options": ("--run_dir", "x")}, "--run-dir is an option of a single run: give --output instead"),
        ({"options": ("--gamma", "1")}, "gamma is 1.0; it must be in [0, 1), or auto"),
        (
            {"options": ("--device", "cpu", "--matmul-dtype", "tf32")},
            "--matmul-dtype tf32 needs CUDA, and this is cpu: use float32 or bfloat16",
        ),
        (
            {"options": ("--preset", "sac-discrete")},
            "populations have continuous policies, and this recipe has --policy joint",
        ),
        ({"processes": 0}, "--processes 0: give at least 1"),
        (
            {"task": "examples/seek.py:Seek"},
            "population shows critics what the policy sees, and this task has observations for critics alone: train "
            "its seeds with `python -m benchmarks training`",
        ),
    ],
)
def test_bad_input_is_refused_before_training(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = {"seeds": (0,), **arguments, "output": tmp_path / "result.jsonl"}
    with pytest.raises(SystemExit) as refusal:
        population(given.pop("task", TASK), given.pop("options", ()), **given)
    assert refusal.value.code == message
    assert not any(tmp_path.iterdir())

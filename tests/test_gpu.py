"""Laws that only a GPU can test: CUDA graphs equal eager code, and nothing synchronises. Run with ``pytest -m gpu``."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from captured_laws import make_agent
from tensordict import TensorDict
from torch import Tensor
from torch.utils._pytree import tree_map

import envs
from envs.tasks import Hopper
from pipeline import cli, presets
from pipeline.agent import Agent
from pipeline.buffer import ReplayBuffer
from pipeline.dimensions import Dimensions
from pipeline.learner import Learner
from saltus.device.cuda_graph import WARMUP_CALLS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    pytest.mark.filterwarnings("ignore:the model asks for the PGS solver", "ignore:No target network updater"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
NUM_ENVS = 64
WARP = envs.Simulation(physics="warp")


def sample_actions(env: envs.BatchEnv, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    actions = 2 * torch.rand(count, env.num_envs, env.action_dim, generator=generator) - 1
    return list(actions.to(env.device))


def copy_state(source: envs.BatchEnv, *targets: envs.BatchEnv) -> None:
    """Set every environment, the source too, to the source's state in single precision."""
    qpos, qvel = source.state.qpos.float(), source.state.qvel.float()
    for env in (source, *targets):
        env.set_qpos_qvel(qpos, qvel)


# All but Ant, whose friction differs in Warp (docs/gpu.md). Relative to the largest number of a field.
TOLERANCES = {
    "HalfCheetah-v5": 1e-3,
    "Hopper-v5": 1e-4,
    "Humanoid-v5": 1e-3,
    "HumanoidStandup-v5": 1e-3,
    "InvertedDoublePendulum-v5": 1e-4,
    "Pusher-v5": 1e-4,
    "Reacher-v5": 1e-4,
    "Swimmer-v5": 1e-4,
    "Walker2d-v5": 1e-3,
}


@pytest.mark.parametrize(("task", "tolerance"), TOLERANCES.items())
def test_captured_steps_and_resets_equal_the_cpus(task: str, tolerance: float) -> None:
    cpu, gpu = envs.make(task, NUM_ENVS, seed=1), envs.make(task, NUM_ENVS, seed=1, device="cuda", physics="warp")
    for env in (cpu, gpu):
        env.reset()
    for number, action in enumerate(sample_actions(cpu, 8)):  # eager, then Warp's graphs, then torch's capture, replays
        copy_state(cpu, gpu)
        expected, _ = cpu.step(action)
        found, _ = gpu.step(action.cuda())
        for key in (("next", "observation"), ("next", "reward")):
            size = max(1.0, float(expected[key].abs().max()))
            error = float((found[key].cpu() - expected[key]).abs().max()) / size
            assert error < tolerance, (number, key)
    assert gpu.captured


@pytest.mark.parametrize("example", ["lift.py:Lift", "reach.py:Reach", "push.py:Push", "walk.py:Walk"])
def test_captured_episode_state_and_controls_equal_eager_ones(example: str) -> None:
    """Tasks that draw goals, renew tensors of their own, and map actions to controls."""
    task = envs.find_task(f"{Path(__file__).parents[1]}/examples/{example}")
    executions: tuple[Literal["device", "captured"], ...] = ("device", "captured")
    eager, captured = (
        envs.BatchEnv(task(max_episode_steps=5), NUM_ENVS, device="cuda", simulation=WARP, execution=execution)
        for execution in executions
    )
    assert torch.equal(eager.reset(), captured.reset())
    ended = 0
    for action in sample_actions(captured, 12):
        (expected, expected_obs), (found, found_obs) = eager.step(action), captured.step(action)
        torch.testing.assert_close(found["next"].to_dict(), expected["next"].to_dict(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found_obs, expected_obs, rtol=1e-3, atol=1e-3)
        assert captured._episodes._own.keys() == eager._episodes._own.keys()
        for name, value in eager._episodes._own.items():
            torch.testing.assert_close(captured._episodes._own[name], value, rtol=1e-3, atol=1e-3)
        ended += int(found["next", "done"].sum())
    assert captured.captured
    assert ended >= 2 * NUM_ENVS


class Varied(Hopper):
    """Each episode draws one of 50 models."""

    model_variants = 50

    def randomize(self, num_envs: int, generator: torch.Generator) -> dict[str, Tensor]:
        changes = envs.scale("body_mass", 0.7, 1.3), envs.scale("geom_friction", 0.5, 1.5)
        return envs.draw_fields(self.model, num_envs, generator, *changes)


def test_captured_episodes_run_the_models_that_they_draw() -> None:
    env = envs.BatchEnv(Varied(max_episode_steps=3), NUM_ENVS, device="cuda", simulation=WARP)
    env.reset()
    before = env.physics.models.clone()
    for action in sample_actions(env, 9):
        env.step(action)
    assert env.captured
    assert len((rows := env.physics.models).unique()) > 10
    assert not torch.equal(rows, before)
    physics = env.physics
    for name, view in physics._model_views.items():
        assert torch.equal(view, physics._model_tables[name][rows]), name


class Synchronizing(Hopper):
    """Hopper, with a reward that reads a value."""

    def reward(self, state: envs.State, action: Tensor, next_state: envs.State) -> Any:
        reward, terms = super().reward(state, action, next_state)
        assert math.isfinite(float(reward.mean()))
        return reward, terms


def test_synchronizing_task_runs_eagerly_with_a_warning() -> None:
    env = envs.make(Synchronizing, NUM_ENVS, device="cuda", physics="warp")
    env.reset()
    first, second, *rest = sample_actions(env, 6)
    env.step(first)
    match = r"a step of Synchronizing synchronises with the GPU in test_gpu.py:\d+ and cannot be a CUDA graph"
    with pytest.warns(UserWarning, match=match):
        env.step(second)
    for action in rest:
        assert torch.isfinite(env.step(action)[0]["next", "reward"]).all()
    assert not env.captured


@pytest.mark.parametrize("task", ["Hopper-v5", "Humanoid-v5"])
def test_episodes_end_and_begin_on_the_device(task: str) -> None:
    env = envs.make(task, NUM_ENVS, device="cuda", physics="warp", seed=2)
    observation = env.reset()
    ended = 0
    for action in sample_actions(env, 60):
        transition, next_obs = env.step(action)
        assert all(bool(torch.isfinite(value).all()) for value in transition.values(True, True))
        assert torch.equal(transition["observation"], observation)
        done = transition["next", "done"].squeeze(-1)
        assert torch.equal(next_obs[~done], transition["next", "observation"][~done])
        ended, observation = ended + int(done.sum()), next_obs
    assert ended > 10
    assert env.statistics()["episodes"] == ended
    assert env.statistics()["unstable"] == 0


def test_diverged_world_is_truncated_and_reset() -> None:
    env = envs.make("HalfCheetah-v5", NUM_ENVS, device="cuda", physics="warp")
    env.reset()
    first, second, *rest = sample_actions(env, 8)
    env.step(first)
    state = env.physics.get_state()
    state["qvel"][3] = math.nan
    env.physics.set_state(state)
    transition, observation = env.step(second)
    assert env.failed.nonzero().flatten().tolist() == [3]
    assert torch.isfinite(observation).all()
    assert torch.isfinite(transition["next", "observation"]).all()
    for action in rest:
        env.step(action)
        assert not env.failed.any()


def test_seed_determines_initial_states() -> None:
    make = partial(envs.make, "Humanoid-v5", NUM_ENVS, device="cuda", physics="warp")
    first, again, other = (make(seed=seed).reset() for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def run_rounds(preset: str, capture: bool, **options: Any) -> tuple[list[dict[str, float]], dict[str, Any], Tensor]:
    """Metrics of 8 rounds, the networks after them, and the state of the random generator."""
    agent, buffer = make_agent(preset, **options)
    learner = Learner(agent, capture=capture)
    torch.manual_seed(1)
    metrics = [{name: float(one) for name, one in learner.round(buffer, 4).items()} for _ in range(8)]
    assert learner.captured == capture
    state = agent.state_dict()
    networks = state["loss"] | {f"eval_actor.{name}": value for name, value in state["eval_actor"].items()}
    return metrics, networks, torch.cuda.get_rng_state()


CAPTURED: list[tuple[str, dict[str, Any]]] = [
    *((preset, {}) for preset in ("sac", "sac-v1", "redq", "droq", "crossq", "fast", "xqc", "flashsac")),
    *(("sac-discrete", {"discrete_update": update}) for update in ("exact", "score", "soft-q")),
]


@pytest.mark.parametrize(("preset", "options"), CAPTURED)
def test_captured_rounds_equal_eager_rounds_with_new_noise_in_each(preset: str, options: dict[str, Any]) -> None:
    eager, eager_networks, eager_random = run_rounds(preset, capture=False, **options)
    captured, networks, random = run_rounds(preset, capture=True, **options)
    for left, right in zip(eager, captured, strict=True):
        assert left == pytest.approx(right, rel=1e-2, abs=1e-3)
    assert torch.equal(eager_random, random), "the random streams differ"
    assert len({one["td_error"] for one in captured}) == 8, "rounds repeat a batch or its noise"
    for name, value in eager_networks.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            torch.testing.assert_close(
                networks[name], value, rtol=1e-2, atol=1e-3, msg=lambda text, n=name: f"{n}: {text}"
            )


def test_tf32_rounds_the_factors_of_captured_products() -> None:
    td_errors = []
    for matmul_dtype in ("float32", "float32", "tf32"):
        agent, buffer = make_agent("sac", matmul_dtype=matmul_dtype)
        learner = Learner(agent)
        torch.manual_seed(1)
        for _ in range(4):
            metrics = learner.round(buffer, 4)
        assert learner.captured
        td_errors.append(float(metrics["td_error"]))
    float32, again, tf32 = td_errors
    assert again == pytest.approx(float32, rel=1e-5), "the noise of float32 is as large as what TF32 rounds"
    assert tf32 != pytest.approx(float32, rel=1e-5), "nothing was rounded"
    assert tf32 == pytest.approx(float32, rel=1e-2)
    assert torch.get_float32_matmul_precision() == "highest"


def test_captured_rounds_continue_from_a_loaded_state() -> None:
    agent, buffer = make_agent("sac")
    learner = Learner(agent)
    for _ in range(5):
        learner.round(buffer, 4)
    assert learner.captured
    saved = tree_map(lambda one: one.clone() if isinstance(one, Tensor) else one, agent.state_dict())
    random, sampling = torch.cuda.get_rng_state(), buffer.generator.get_state()
    found = []
    for _ in range(2):
        agent.load_state_dict(saved)
        torch.cuda.set_rng_state(random)
        buffer.generator.set_state(sampling)
        metrics = {name: float(value) for name, value in learner.round(buffer, 4).items()}
        found.append((metrics, agent.loss.log_alpha.item()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-3)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)


def assert_no_synchronization(call: Callable[[], Any]) -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("preset", ["sac", "fast", "xqc"])
def test_rounds_do_not_synchronize(preset: str) -> None:
    agent, buffer = make_agent(preset)
    learner = Learner(agent)
    for _ in range(4):
        learner.round(buffer, 4)
    assert_no_synchronization(lambda: [learner.round(buffer, 4) for _ in range(3)])


@pytest.mark.parametrize("task", ["Hopper-v5", "Humanoid-v5"])
def test_training_loop_does_not_synchronize(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = envs.make(task, NUM_ENVS, device="cuda", physics="warp")
    buffer = ReplayBuffer(4096, Dimensions.of(env), "cuda")
    small = {"num_envs": NUM_ENVS, "batch_size": 64, "utd_ratio": 2 / NUM_ENVS, "actor_hidden": (32,), "n_step": 1}
    agent = Agent(presets.preset("fast", task, **small), Dimensions.of(env), "cuda")
    acted, act = [], agent.act
    monkeypatch.setattr(agent, "act", lambda *inputs: acted.append(inputs) or act(*inputs))
    learner = Learner(agent)
    observation = env.reset()

    def step() -> TensorDict:
        nonlocal observation
        action = learner.act(observation, torch.randn(NUM_ENVS, env.action_dim, device="cuda"))
        transition, observation = env.step(action)
        agent.observe(transition)
        buffer.extend(transition)
        return transition

    # Every third update is the actor's, so rounds of 2 begin at three places in that cycle. Two rounds compile.
    for _ in range(2 + 3 * (WARMUP_CALLS + 1)):
        step()
        learner.round(buffer, 2)
    assert env.captured
    assert learner.captured
    assert buffer.captured
    assert len(acted) == WARMUP_CALLS + 1, "the actor was not captured"
    assert_no_synchronization(lambda: [(step(), learner.round(buffer, 2)) for _ in range(4)])


def test_cpu_simulates_while_the_gpu_works() -> None:
    """A step whose actions are on the host does not wait for earlier work of the GPU."""
    env = envs.make("Hopper-v5", NUM_ENVS, device="cuda", physics="cpu")
    env.reset()
    first, second = (action.cpu() for action in sample_actions(env, 2))
    torch.cuda._sleep(4 * 10**9)  # makes the first step allocate as many pinned blocks as the second will need
    env.step(first)
    torch.cuda.synchronize()
    torch.cuda._sleep(4 * 10**9)  # clock cycles: about two seconds
    done = torch.cuda.Event()
    done.record()
    transition, observation = env.step(second)
    assert not done.query(), "the step waited for the GPU"
    torch.cuda.synchronize()
    expected = envs.make("Hopper-v5", NUM_ENVS)
    expected.reset()
    expected.step(first)
    expected_transition, expected_observation = expected.step(second)
    assert observation.is_cuda
    assert torch.equal(observation.cpu(), expected_observation)
    assert (transition.cpu() == expected_transition).all()


@pytest.mark.parametrize("physics", ["warp", "cpu"])
def test_run_trains_stops_and_resumes(
    physics: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # restores what the command line replaces

    def saltus(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["saltus", *arguments])
        cli.main()
        return capsys.readouterr().out

    options = "--device cuda --num-envs 16 --utd-ratio 0.125 --total-env-steps 2400 --learning-starts 400"
    short = "--eval-every 1200 --eval-episodes 2 --log-every 400 --checkpoint-every 800"
    arguments = [*options.split(), *short.split(), "--physics", physics, "--run-dir", str(run_dir)]
    assert "finished" in saltus("train", "Hopper-v5", *arguments)
    for checkpoint in sorted((run_dir / "checkpoints").iterdir())[1:]:  # as after a kill before the end
        checkpoint.unlink()
    assert "finished" in saltus("resume", str(run_dir))

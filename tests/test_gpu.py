"""What only a GPU can show: graphs that replay what was done, and nothing that waits. ``pytest -m gpu``."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.utils._pytree import tree_map

import envs
from benchmarks.data import random_transitions
from envs.tasks import Hopper
from pipeline import cli, presets
from pipeline.buffer import ReplayBuffer
from pipeline.evaluate import scale_action
from pipeline.learner import Learner
from saltus.device.cuda_graph import CapturedFunction

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    pytest.mark.filterwarnings("ignore:the model asks for the PGS solver", "ignore:No target network updater"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
WORLDS = 64


def actions(env: envs.BatchEnv, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    unit = 2 * torch.rand(count, env.num_envs, env.action_dim, generator=generator) - 1
    return [scale_action(one.to(env.device), env) for one in unit]


def start_alike(*environments: envs.BatchEnv) -> None:
    """Every world of each in the first one's state, rounded to single precision."""
    fields = environments[0].get_state()["fields"]
    for env in environments:
        env.set_qpos_qvel(fields["qpos"].float(), fields["qvel"].float())


@pytest.mark.parametrize(("task", "tolerance"), [("Hopper-v5", 1e-4), ("HalfCheetah-v5", 1e-3), ("Humanoid-v5", 1e-3)])
def test_captured_steps_and_resets_are_the_cpus(task: str, tolerance: float) -> None:
    cpu, gpu = envs.make(task, WORLDS, seed=1), envs.make(task, WORLDS, seed=1, device="cuda")
    for env in (cpu, gpu):
        env.reset()
    for number, action in enumerate(actions(cpu, 8)):  # plain; Warp's graphs are captured; torch's; then replays
        start_alike(cpu, gpu)
        expected, _ = cpu.step(action)
        found, _ = gpu.step(action.cuda())
        for key in (("next", "observation"), ("next", "reward")):
            size = max(1.0, float(expected[key].abs().max()))
            error = float((found[key].cpu() - expected[key]).abs().max()) / size
            assert error < tolerance, (number, key)
    assert gpu._graph.recorded


class Waiting(Hopper):
    """Hopper, with a reward that looks at a value."""

    def reward(self, state: envs.State, action: Tensor, next_state: envs.State) -> Any:
        reward, terms = super().reward(state, action, next_state)
        assert math.isfinite(float(reward.mean()))
        return reward, terms


def test_a_task_that_waits_is_stepped_without_a_graph_and_says_where() -> None:
    env = envs.make(Waiting, WORLDS, device="cuda")
    env.reset()
    first, second, *rest = actions(env, 6)
    env.step(first)
    with pytest.warns(UserWarning, match=r"a step of Waiting waits for the GPU in test_gpu.py:\d+, so that"):
        env.step(second)
    for action in rest:
        assert torch.isfinite(env.step(action)[0]["next", "reward"]).all()
    assert not env._graph.recorded


@pytest.mark.parametrize("task", ["Hopper-v5", "Humanoid-v5"])
def test_episodes_end_and_start_on_the_device(task: str) -> None:
    env = envs.make(task, WORLDS, device="cuda", seed=2)
    observation = env.reset()
    ended = 0
    for action in actions(env, 60):
        transition, following = env.step(action)
        assert all(bool(torch.isfinite(value).all()) for value in transition.values(True, True))
        assert torch.equal(transition["observation"], observation)
        done = transition["next", "done"].squeeze(-1)
        assert torch.equal(following[~done], transition["next", "observation"][~done])
        ended, observation = ended + int(done.sum()), following
    assert ended > 10
    assert env.statistics()["episodes"] == ended
    assert env.statistics()["unstable"] == 0


def test_a_diverged_world_is_cut_and_mended() -> None:
    env = envs.make("HalfCheetah-v5", WORLDS, device="cuda")
    env.reset()
    first, *rest = actions(env, 8)
    env.step(first)
    env.physics._state["qvel"][3] = math.nan
    transition, observation = env.step(rest[0])
    assert env.failed.nonzero().flatten().tolist() == [3]
    assert torch.isfinite(observation).all()
    assert torch.isfinite(transition["next", "observation"]).all()
    for action in rest[1:]:
        env.step(action)
        assert not env.failed.any()


def test_a_seed_gives_the_same_first_states_and_another_seed_others() -> None:
    first, again, other = (envs.make("Humanoid-v5", WORLDS, device="cuda", seed=seed).reset() for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def make_learner(preset: str, **options: Any) -> tuple[Learner, ReplayBuffer]:
    torch.manual_seed(0)
    small = {"batch_size": 64, "actor_hidden": (32, 32), "critic_hidden": (32, 32), "policy_delay": 2, "n_step": 3}
    config = presets.preset(preset, "Hopper-v5", **small, **options)
    buffer = ReplayBuffer(4096, 11, 3, "cuda", n_step=config.n_step)
    generator = torch.Generator().manual_seed(0)
    data = random_transitions(4096, 11, 3)
    data["observation"] = torch.randn(4096, 11, generator=generator)
    for part in data.split(64):
        buffer.extend(part.to("cuda"))
    return Learner(config, 11, 3, "cuda"), buffer


def replayed(learner: Learner) -> bool:
    """Whether what a learner does is a CUDA graph, of compiled updates."""
    assert all(graph.compiled for graph in learner._graphs)
    return any(graph.recorded for graph in learner._captured.values())


def rounds(preset: str, captured: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[list[dict[str, float]], dict, Tensor]:
    with monkeypatch.context() as patch:
        if not captured:
            patch.setattr(CapturedFunction, "WARMUP_CALLS", 10**9)
        learner, buffer = make_learner(preset)
        torch.manual_seed(1)
        metrics = [{name: float(one) for name, one in learner.round(buffer, 4).items()} for _ in range(8)]
        assert replayed(learner) == captured
        state = learner.state_dict()
        networks = state["loss"] | {f"average.{name}": value for name, value in state["average"].items()}
        return metrics, networks, torch.cuda.get_rng_state()


@pytest.mark.parametrize("preset", ["sac", "redq", "droq", "crossq", "fast", "xqc", "flashsac"])
def test_a_captured_round_does_what_the_plain_one_does_with_fresh_noise(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, plain_state, plain_random = rounds(preset, False, monkeypatch)
    captured, state, random = rounds(preset, True, monkeypatch)
    for left, right in zip(plain, captured, strict=True):
        assert left == pytest.approx(right, rel=1e-2, abs=1e-3)
    assert torch.equal(plain_random, random), "another random stream"
    assert len({one["td_error"] for one in captured}) == 8, "the same batch or the same noise again"
    for name, value in plain_state.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            torch.testing.assert_close(
                state[name], value, rtol=1e-2, atol=1e-3, msg=lambda text, n=name: f"{n}: {text}"
            )


def test_tf32_rounds_what_is_multiplied_in_captured_updates() -> None:
    found = {}
    for matmul_dtype in ("float32", "tf32"):
        learner, buffer = make_learner("sac", matmul_dtype=matmul_dtype)
        torch.manual_seed(1)
        for _ in range(4):
            metrics = learner.round(buffer, 4)
        assert replayed(learner)
        found[matmul_dtype] = float(metrics["td_error"])
    assert found["tf32"] != pytest.approx(found["float32"], rel=1e-6), "nothing was rounded"
    assert found["tf32"] == pytest.approx(found["float32"], rel=1e-2)
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_captured_round_goes_on_with_what_is_loaded() -> None:
    learner, buffer = make_learner("sac")
    for _ in range(5):
        learner.round(buffer, 4)
    assert replayed(learner)
    saved = tree_map(lambda one: one.clone() if isinstance(one, Tensor) else one, learner.state_dict())
    random, drawing = torch.cuda.get_rng_state(), buffer.generator.get_state()
    found = []
    for _ in range(2):
        learner.load_state_dict(saved)
        torch.cuda.set_rng_state(random)
        buffer.generator.set_state(drawing)
        metrics = {name: float(value) for name, value in learner.round(buffer, 4).items()}
        found.append((metrics, learner.loss.state_dict()["log_alpha"].item()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-3)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)


def synchronizing(call: Callable[[], Any]) -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("preset", ["sac", "fast", "xqc"])
def test_a_round_waits_for_nothing(preset: str) -> None:
    learner, buffer = make_learner(preset)
    for _ in range(4):
        learner.round(buffer, 4)
    synchronizing(lambda: [learner.round(buffer, 4) for _ in range(3)])


@pytest.mark.parametrize("task", ["Hopper-v5", "Humanoid-v5"])
def test_a_step_of_the_loop_waits_for_nothing(task: str) -> None:
    env = envs.make(task, WORLDS, device="cuda")
    buffer = ReplayBuffer(4096, env.observation_dim, env.action_dim, "cuda")
    small = {"num_envs": WORLDS, "batch_size": 64, "utd_ratio": 2 / WORLDS, "actor_hidden": (32,), "n_step": 1}
    learner = Learner(presets.preset("fast", task, **small), env.observation_dim, env.action_dim, "cuda")
    observation = env.reset()

    def step() -> TensorDict:
        nonlocal observation
        action = learner.act(observation, torch.randn(WORLDS, env.action_dim, device="cuda"))
        transition, observation = env.step(scale_action(action, env))
        learner.observe(transition)
        buffer.extend(transition.set("action", action))
        return transition

    # Rounds of 2 meet three places of every third update, and two rounds go by before both updates are compiled.
    for _ in range(2 + 3 * (CapturedFunction.WARMUP_CALLS + 1)):
        step()
        learner.round(buffer, 2)
    assert env._graph.recorded
    assert learner._acting.recorded
    assert buffer._writing[WORLDS].recorded
    synchronizing(lambda: [(step(), learner.round(buffer, 2)) for _ in range(4)])


def test_the_cpu_simulates_while_the_gpu_works() -> None:
    """A step with controls that are on the host already waits for nothing that the GPU was given meanwhile."""
    env = envs.make("Hopper-v5", WORLDS, device="cuda", physics="cpu")
    env.reset()
    first, second = (action.cpu() for action in actions(env, 2))
    torch.cuda._sleep(4 * 10**9)  # so that the first step allocates as many pinned blocks as the second will need
    env.step(first)
    torch.cuda.synchronize()
    torch.cuda._sleep(4 * 10**9)  # clock cycles: two seconds or so
    done = torch.cuda.Event()
    done.record()
    transition, observation = env.step(second)
    assert not done.query(), "the step waited for the GPU"
    torch.cuda.synchronize()
    expected = envs.make("Hopper-v5", WORLDS)
    expected.reset()
    expected.step(first)
    expected_transition, expected_observation = expected.step(second)
    assert observation.is_cuda
    assert torch.equal(observation.cpu(), expected_observation)
    assert (transition.cpu() == expected_transition).all()


@pytest.mark.parametrize("physics", ["warp", "cpu"])
def test_a_run_trains_stops_and_resumes(
    physics: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # which the command line replaces

    def saltus(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["saltus", *arguments])
        cli.main()
        return capsys.readouterr().out

    options = "--device cuda --num-envs 16 --utd-ratio 0.125 --total-env-steps 2400 --learning-starts 400"
    short = "--eval-every 1200 --eval-episodes 2 --log-every 400 --checkpoint-every 800"
    arguments = [*options.split(), *short.split(), "--physics", physics, "--run-dir", str(run_dir)]
    assert "finished" in saltus("train", "Hopper-v5", *arguments)
    for checkpoint in sorted((run_dir / "checkpoints").iterdir())[1:]:  # as if the run had been killed before its end
        checkpoint.unlink()
    assert "finished" in saltus("resume", str(run_dir))

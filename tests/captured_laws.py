"""Laws of captured learners and steps, for tests on CUDA and, with graphs that `graph_recorder` replays, on the CPU."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

import envs
from benchmarks.data import random_transitions
from benchmarks.population.replay import MemberReplay
from benchmarks.population.stacked_agents import StackedAgents
from envs.tasks import Hopper
from pipeline import presets
from pipeline.agent import Agent
from pipeline.buffer import ReplayBuffer
from pipeline.config import Config
from pipeline.dimensions import Dimensions
from pipeline.learner import Learner
from pipeline.profile.measure import measure
from pipeline.profile.result import Result, summarize
from pipeline.profile.verdict import verdict

OBSERVATION_DIM, ACTION_DIM = 11, 3
DIMENSIONS = Dimensions(OBSERVATION_DIM, ACTION_DIM)
SMALL: dict[str, Any] = {
    "batch_size": 64, "actor_hidden": (32, 32), "critic_hidden": (32, 32), "policy_delay": 2, "n_step": 3
}  # fmt: skip
CLOSE: dict[str, Any] = {"rtol": 1e-2, "atol": 1e-3}  # as far as rounding lets rounds differ
Numbers = dict[str, Tensor]


def make_agent(preset: str, device: str = "cuda", **options: Any) -> tuple[Agent, ReplayBuffer]:
    """A small agent, and a buffer of random transitions that has its discount factor."""
    torch.manual_seed(0)
    config = dataclasses.replace(presets.preset(preset, "Hopper-v5"), **SMALL, **options)
    agent = Agent(config, DIMENSIONS, device)
    n_step = agent.config.rewards_per_target(ACTION_DIM)
    buffer = ReplayBuffer(4096, DIMENSIONS, device, n_step=n_step, gamma=agent.gamma)
    for part in _random_transitions(4096).split(64):
        buffer.extend(part.to(device))
    return agent, buffer


def _random_transitions(size: int) -> Any:
    data = random_transitions(size, OBSERVATION_DIM, ACTION_DIM)
    data["observation"] = torch.randn(size, OBSERVATION_DIM, generator=torch.Generator().manual_seed(0))
    return data


def _run_rounds(
    device: str, capture: bool, before_round: Callable[[Learner, int], object], **options: Any
) -> list[Numbers]:
    """Metrics of 8 rounds, then the networks. `before_round` gets the learner and the round's number."""
    compile_ = capture or device != "cpu"  # on the CPU, tests replace compilation by a slow recording
    agent, buffer = make_agent("sac", device, compile=compile_, **options)
    learner, results = Learner(agent, capture=capture), list[Numbers]()
    torch.manual_seed(1)
    for number in range(8):
        before_round(learner, number)
        results.append({name: value.clone() for name, value in learner.round(buffer, 4).items()})
        assert learner.captured == (capture and number >= 3)  # the first compiles, the next two run eagerly
    return [*results, {name: one.detach().clone() for name, one in agent.loss.state_dict().items()}]


def learning_rate_and_discount_change_between_captured_rounds(device: str) -> None:
    """They do as in rounds that are not captured, where they make a difference."""

    def schedule(learner: Learner, number: int) -> None:
        learner.agent.apply_schedules(number / 8, 250_000 * number, 0.008)

    settings: dict[str, Any] = {
        "gamma": "auto",
        "lr_schedule": "linear",
        "lr_final_fraction": 0.01,
        "critic_lr": 1e-2,
        "actor_lr": 1e-2,
    }
    eager, captured = (_run_rounds(device, capture, schedule, **settings) for capture in (False, True))
    torch.testing.assert_close(captured, eager, **CLOSE)
    for frozen in ("gamma", "progress"):

        def schedule_one(learner: Learner, number: int, frozen: str = frozen) -> None:
            before = getattr(learner.agent, frozen).clone()
            schedule(learner, number)
            getattr(learner.agent, frozen).copy_(before)

        other = _run_rounds(device, False, schedule_one, **settings)
        same = [torch.allclose(other[-1][name], value, **CLOSE) for name, value in eager[-1].items()]
        assert not all(same), f"a {frozen} that never changes would not be seen"


def released_rounds_are_captured_anew(device: str) -> None:
    """Their results are those of rounds that are not captured."""

    def release(learner: Learner, number: int) -> None:
        if number in (5, 7):
            assert learner.captured == learner._capture
            learner.release()
            assert not learner.captured

    eager, captured = (_run_rounds(device, capture, release) for capture in (False, True))
    torch.testing.assert_close(captured, eager, **CLOSE)


def masked_resets_follow_captured_steps(device: str, num_envs: int, **simulation: Any) -> None:
    """They begin episodes in the worlds of the mask alone, as in an environment that is not captured."""
    executions: tuple[Literal["device", "captured"], ...] = ("device", "captured")
    eager, captured = (
        envs.BatchEnv(
            Hopper(max_episode_steps=50),
            num_envs,
            device=device,
            simulation=envs.Simulation(physics="warp", **simulation),
            execution=execution,
        )
        for execution in executions
    )
    torch.testing.assert_close(captured.reset(), eager.reset())
    generator = torch.Generator().manual_seed(0)
    close: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3}
    for number in range(14):
        if number in (6, 9):
            mask = (torch.arange(num_envs) % 3 == number % 2).to(device)
            before = captured.state.qpos.clone()
            expected, found = eager.reset(mask), captured.reset(mask)
            torch.testing.assert_close(found, expected, **close)
            assert captured.captured
            assert torch.equal(captured.state.qpos[~mask], before[~mask])
            assert not (captured.state.qpos[mask] == before[mask]).all(-1).any()
        action = (2 * torch.rand(num_envs, eager.action_dim, generator=generator) - 1).to(device)
        (expected, expected_obs), (found, found_obs) = eager.step(action), captured.step(action)
        torch.testing.assert_close(found["next"].to_dict(), expected["next"].to_dict(), **close)
        torch.testing.assert_close(found_obs, expected_obs, **close)


def members_learn_in_captured_rounds(device: str) -> None:
    """All members of a population at once: their metrics and policies are those of rounds that are not captured."""
    recipe = presets.preset("fast", "Hopper-v5", num_envs=4, utd_ratio=1.0, learning_starts=80, **SMALL)
    configs = [dataclasses.replace(recipe, seed=seed, critic_lr=(seed + 1) * 1e-3) for seed in range(2)]
    eager, captured = (_run_members(configs, device, capture) for capture in (False, True))
    torch.testing.assert_close(captured, eager, **CLOSE)


def _run_members(configs: Sequence[Config], device: str, capture: bool) -> list[Any]:
    members = StackedAgents(configs, DIMENSIONS, device)
    replay = MemberReplay(configs, DIMENSIONS, device, members.gammas)
    for part in _random_transitions(400).split(8):
        replay.extend(part.to(device))
    learner, metrics = Learner(members, capture), list[Numbers]()
    torch.manual_seed(1)
    for number in range(6):
        members.apply_schedules(number / 6, 250_000 * number, 0.008)
        metrics.append({name: value.clone() for name, value in learner.round(replay, 4).items()})
    assert learner.captured == capture
    return [metrics, members.policy_state()]


def profile_a_few_steps(device: str, physics: str, **options: Any) -> Result:
    """The result of a short profile, whose phases, roofs and verdict are complete."""
    settings = {"num_envs": 16, "utd_ratio": 0.125, "learning_starts": 400, "buffer_size": 10_000, **SMALL, **options}
    config = presets.preset("sac", "Hopper-v5", device=device, physics=physics, total_env_steps=10_000_000, **settings)
    measured = measure(config, 0.5, Console(file=io.StringIO()), time.monotonic())
    result = summarize(measured)
    phases = result["phases"]
    assert abs(sum(phase["share"] for phase in phases.values()) - 1) < 1e-6
    assert all(value["mean"] > 0 for name, value in phases.items() if name != "reset")
    assert phases["physics"]["roof"] > 0
    assert result["updates"] == 2 * result["vector_steps"]
    assert result["failures"] == dict.fromkeys(("unstable", "nonfinite", "overflowed"), 0)
    assert sum("env steps/s" in line for line in verdict(result)) == 2
    return result

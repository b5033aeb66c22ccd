"""The tasks on the Warp engine: equal to the CPU engine within single precision, and without synchronisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from env_helpers import NAMES, WARP_MEMORY, Actions, CartBall, Noisy, equal, is_finite, overwrite
from graph_recorder import record_on_cpu
from torch import Tensor

import envs
from envs import BatchEnv, Simulation, State, Task
from envs import transition as transitions
from saltus.device.synchronizations import Synchronizations

pytestmark = pytest.mark.filterwarnings("ignore:the model asks for the PGS solver")
TASKS: list[Any] = [*NAMES, CartBall]
WORLDS = 4


def make(task: str | type[Task], seed: int = 1, execution: Any = "auto", **options: Any) -> BatchEnv:
    known = task if task in WARP_MEMORY else CartBall
    simulation = Simulation(physics="warp", **WARP_MEMORY[known])
    instance = (envs.find_task(task) if isinstance(task, str) else task)(**options)
    return BatchEnv(instance, WORLDS, seed=seed, simulation=simulation, execution=execution)


# Options with which episodes end within a few steps.
SHORT: dict[Any, dict[str, Any]] = {
    **{task: {"max_episode_steps": 5} for task in TASKS},
    "Ant-v5": {"healthy_z_range": (0.6, 1.0)},
    "Hopper-v5": {"healthy_angle_range": (-0.03, 0.03)},
    "Humanoid-v5": {"healthy_z_range": (1.3, 2.0)},
    "InvertedDoublePendulum-v5": {},
    "InvertedPendulum-v5": {"reset_noise_scale": 0.15},
    "Walker2d-v5": {"healthy_z_range": (1.24, 2.0)},
}


@pytest.mark.parametrize("task", TASKS)
def test_transitions_satisfy_the_contract(task: Any):
    env = make(task, **SHORT[task])
    draw = Actions(env)
    obs, done = env.reset(), 0
    for _ in range(9):
        action = draw()
        transition, next_obs = env.step(action)
        transitions.check(transition, env.observation_dim, env.action_dim)
        assert is_finite(transition)
        assert torch.equal(transition["observation"], obs)
        assert torch.equal(transition["action"], action)
        ended = transition["next", "done"].flatten()
        assert torch.equal(next_obs[~ended], transition["next", "observation"][~ended])
        assert not (next_obs[ended] == transition["next", "observation"][ended]).all(-1).any()
        obs, done = next_obs, done + int(ended.sum())
    assert done > 0
    totals = env.statistics()
    assert (totals["episodes"], totals["unstable"], totals["nonfinite"], totals["overflowed"]) == (done, 0, 0, 0)


# Relative to the largest number of a field. Humanoid's contact forces are differences of large numbers.
PARITY = dict.fromkeys(NAMES, 1e-4) | {"HalfCheetah-v5": 3e-4, "Humanoid-v5": 1e-3, "HumanoidStandup-v5": 1e-3}


def options_for_parity(task: str, folder: Path) -> dict[str, Any]:
    """Ant with friction cones: Warp turns friction pyramids of a steep capsule on a plane (see docs/gpu.md)."""
    if task != "Ant-v5":
        return {}
    text = Path(envs.find_task(task)().mjcf).read_text()
    (folder / "ant.xml").write_text(text.replace("<option ", '<option cone="elliptic" '))
    return {"xml_file": str(folder / "ant.xml")}


@pytest.mark.parametrize("task", NAMES)
def test_step_equals_the_cpus_within_single_precision(task: str, tmp_path: Path):
    options = options_for_parity(task, tmp_path)
    cpu, warp = envs.make(task, WORLDS, seed=3, solver="newton", **options), make(task, seed=3, **options)
    for env in (cpu, warp):
        env.reset()
    draw = Actions(cpu)
    for _ in range(6):
        qpos, qvel = cpu.state.qpos.float(), cpu.state.qvel.float()
        action = draw()
        for env in (cpu, warp):
            env.set_qpos_qvel(qpos, qvel)
        (expected, _), (found, _) = cpu.step(action), warp.step(action)
        for key in ("observation", ("next", "observation"), ("next", "reward")):
            size = max(1.0, float(expected[key].abs().max()))
            torch.testing.assert_close(found[key], expected[key], rtol=0, atol=PARITY[task] * size)
        assert torch.equal(found["next", "terminated"], expected["next", "terminated"])


@pytest.mark.parametrize("degrees", [20, 40])
@pytest.mark.parametrize("cone", ["pyramidal", "elliptic"])
def test_friction_pyramids_of_steep_capsules_differ_from_the_cpus(cone: str, degrees: int):
    """If this fails, Ant no longer needs another model in the test above."""

    @dataclass
    class Capsule(Task):
        def observation(self, state: State) -> Tensor:
            return state.qvel

        def reward(self, state: State, action: Tensor, next_state: State) -> Tensor:
            return next_state.qvel[:, 0]

    tilt = math.radians(degrees)
    axis = f"{0.8 * math.sin(tilt)} {0.6 * math.sin(tilt)} {math.cos(tilt)}"
    Capsule.mjcf = f"""<mujoco><option timestep="0.004" cone="{cone}"/><worldbody><geom type="plane" size="5 5 .1"/>
        <body pos="0 0 {0.095 + 0.2 * math.cos(tilt)}"><freejoint/>
        <geom type="capsule" size=".1 .2" zaxis="{axis}"/><site name="s"/></body></worldbody>
        <actuator><motor site="s" gear="1 0 0 0 0 0" ctrlrange="-1 1"/></actuator></mujoco>"""
    simulation = Simulation(physics="warp", **WARP_MEMORY[CartBall])
    found = []
    for env in (BatchEnv(Capsule(), 1), BatchEnv(Capsule(), 1, simulation=simulation)):
        env.reset()
        env.set_qpos_qvel(env.task.qpos0[None].float(), torch.tensor([[1.0, 0.3, 0, 0, 0, 0]]))
        found.append(env.step(torch.zeros(1, 1))[0]["next", "observation"])
    difference = float((found[0] - found[1]).abs().max())
    steep = degrees < 30 and cone == "pyramidal"
    assert difference > 1e-3 if steep else difference < 1e-5


@pytest.mark.parametrize("task", ["Hopper-v5", "Humanoid-v5", CartBall])
def test_step_on_the_device_never_synchronizes(task: Any):
    env = make(task, execution="device")
    draw = Actions(env)
    env.reset()
    actions = [draw() for _ in range(4)]
    env.step(actions[0])
    with Synchronizations() as waits:
        for action in actions[1:]:
            env.step(action)
    assert waits.found == []
    with Synchronizations() as waits:
        float(env.failed.sum())
    assert waits.found != [], "the test detects nothing"


@pytest.mark.parametrize("task", ["Hopper-v5", CartBall])
def test_execution_on_host_and_device_agree(task: Any):
    host, device = (make(task, execution=execution, max_episode_steps=7) for execution in ("host", "device"))
    draw = Actions(host)
    assert torch.equal(host.reset(), device.reset())
    ended = 0
    for _ in range(9):
        action = draw()
        (left, left_obs), (right, right_obs) = host.step(action), device.step(action)
        # Initial states differ after the first reset: on the device they are drawn at every step.
        if not ended:
            assert equal(left, right)
        ended += int(left["next", "done"].sum())
        assert is_finite(right)
        if not ended:
            assert torch.equal(left_obs, right_obs)
    assert ended


@pytest.mark.filterwarnings("ignore:.*did not fit")  # a world that diverges into the floor has many contacts
@pytest.mark.parametrize("value", [math.nan, 1e12])
def test_diverged_world_is_truncated_counted_and_reset(value: float):
    env = make("HalfCheetah-v5", execution="device")
    draw = Actions(env)
    env.reset()
    env.step(draw())
    overwrite(env.physics, "qvel", value, world=1)
    transition, obs = env.step(draw())
    assert env.failed.tolist() == [False, True, False, False]
    assert is_finite(transition)
    assert torch.isfinite(obs).all()
    assert transition["next", "truncated"].flatten().tolist() == [False, True, False, False]
    assert transition["next", "reward"][1] == 0
    assert torch.equal(transition["next", "observation"][1], transition["observation"][1])
    for _ in range(5):
        assert not env.step(draw())[0]["next", "done"].any()
    with pytest.warns(UserWarning, match="diverged"):
        assert env.statistics()["unstable"] == 1


def test_nonfinite_action_is_masked_and_counted_on_the_device():
    env = make("Hopper-v5", execution="device")
    draw = Actions(env)
    env.reset()
    action = draw()
    action[2, 1] = math.nan
    transition, obs = env.step(action)
    assert is_finite(transition)
    assert torch.isfinite(obs).all()
    assert env.failed.tolist() == [False, False, True, False]
    with pytest.warns(UserWarning, match="not finite"):
        assert env.statistics()["nonfinite"] == 1


class BadStart(CartBall):
    """While armed, initial states are NaN in world 1."""

    armed = False

    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        qpos, qvel = super().reset(num_envs, generator)
        if self.armed:
            qvel[1] = math.nan
        return qpos, qvel


def test_nonfinite_initial_state_fails_at_its_first_step_on_the_device():
    env = make(BadStart, execution="device")
    draw = Actions(env)
    env.task.armed = True
    assert torch.isfinite(env.reset()).all()
    env.task.armed = False
    transition, obs = env.step(draw())
    assert is_finite(transition)
    assert torch.isfinite(obs).all()
    assert env.failed.tolist() == [False, True, False, False]
    assert not env.step(draw())[0]["next", "done"].any()


@pytest.mark.parametrize("task", ["Hopper-v5", "Humanoid-v5"])
def test_seed_reproduces_everything(task: str):
    def play(seed: int) -> list[Tensor]:
        env = make(task, seed=seed, max_episode_steps=3)
        draw = Actions(env)
        return [env.reset(), *(env.step(draw())[1] for _ in range(4))]

    first, again, other = play(1), play(1), play(2)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(first, other, strict=True))


@pytest.mark.parametrize("task", ["Humanoid-v5", CartBall])
def test_state_continues_bit_for_bit(task: Any):
    env, other = make(task, max_episode_steps=6), make(task, seed=9, max_episode_steps=6)
    draw = Actions(env)
    env.reset()
    actions = [draw() for _ in range(9)]
    for action in actions[:4]:
        env.step(action)
    state = env.get_state()
    expected = [env.step(action) for action in actions[4:]]
    other.set_state(state)
    for action, (transition, obs) in zip(actions[4:], expected, strict=True):
        found, found_obs = other.step(action)
        assert equal(found, transition)
        assert torch.equal(found_obs, obs)


def test_a_recorded_graph_draws_the_noise_of_eager_steps(monkeypatch: pytest.MonkeyPatch):
    record_on_cpu(monkeypatch)
    eager, captured = (make(Noisy, execution=execution, max_episode_steps=4) for execution in ("device", "captured"))
    draw = Actions(eager)
    assert torch.equal(eager.reset(), captured.reset())
    for _ in range(9):
        action = draw()
        (expected, expected_obs), (found, obs) = eager.step(action), captured.step(action)
        assert equal(expected, found)
        assert torch.equal(obs, expected_obs)
        assert torch.equal(eager.privileged, captured.privileged)
    assert captured.captured

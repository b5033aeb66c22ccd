"""The tasks on the Warp engine: as on the CPU engine, within single precision, and without waiting for a device."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from env_helpers import NAMES, Actions, CartBall, equal, is_finite
from torch import Tensor
from waiting import Waits

import envs
from envs import BatchEnv, batch_env
from envs import transition as transitions

pytestmark = pytest.mark.filterwarnings("ignore:the model asks for the PGS solver")
TASKS: list[Any] = [*NAMES, CartBall]
WORLDS = 4


def make(task: Any, num_envs: int = WORLDS, **options: Any) -> BatchEnv:
    return envs.make(task, num_envs, physics="warp", **{"seed": 1, **options})


@pytest.mark.parametrize("task", TASKS)
def test_transitions_fulfil_the_contract_and_episodes_end_and_start_as_on_the_cpu(task: Any):
    env = make(task, max_episode_steps=15) if task is CartBall else make(task)
    draw = Actions(env)
    obs, done = env.reset(), 0
    for _ in range(40):
        action = draw()
        transition, following = env.step(action)
        transitions.check(transition, env.observation_dim, env.action_dim)
        assert is_finite(transition)
        assert torch.equal(transition["observation"], obs)
        assert torch.equal(transition["action"], action)
        ended = transition["next", "done"].flatten()
        assert torch.equal(following[~ended], transition["next", "observation"][~ended])
        assert not (following[ended] == transition["next", "observation"][ended]).all(-1).any()
        obs, done = following, done + int(ended.sum())
    assert done > 0 or task == "HalfCheetah-v5"
    totals = env.statistics()
    assert (totals["episodes"], totals["unstable"], totals["nonfinite"], totals["overflowed"]) == (done, 0, 0, 0)


# Of the largest number of each field; Humanoid's contact forces are differences of large numbers.
PARITY = {"Hopper-v5": 1e-4, "HalfCheetah-v5": 3e-4, "InvertedPendulum-v5": 1e-4, "Humanoid-v5": 1e-3}


@pytest.mark.parametrize("task", NAMES)
def test_one_step_from_the_same_state_is_the_cpus_within_single_precision(task: str):
    cpu, warp = envs.make(task, WORLDS, seed=3, solver="newton"), make(task, seed=3)
    for env in (cpu, warp):
        env.reset()
    draw = Actions(cpu)
    for _ in range(12):
        fields, action = cpu.get_state()["fields"], draw()
        for env in (cpu, warp):
            env.set_qpos_qvel(fields["qpos"].float(), fields["qvel"].float())
        (expected, _), (found, _) = cpu.step(action), warp.step(action)
        for key in ("observation", ("next", "observation"), ("next", "reward")):
            size = max(1.0, float(expected[key].abs().max()))
            torch.testing.assert_close(found[key], expected[key], rtol=0, atol=PARITY[task] * size)
        assert torch.equal(found["next", "terminated"], expected["next", "terminated"])


@pytest.mark.parametrize("task", ["Hopper-v5", "Humanoid-v5", CartBall])
def test_a_step_never_waits_for_the_device(task: Any):
    env = make(task)
    env._may_look = False  # as on a GPU
    draw = Actions(env)
    env.reset()
    actions = [draw() for _ in range(4)]
    env.step(actions[0])
    with Waits() as waits:
        for action in actions[1:]:
            env.step(action)
    assert waits.found == []
    with Waits() as waits:
        float(env.failed.sum())
    assert waits.found != [], "the test sees nothing"


@pytest.mark.parametrize("task", ["Hopper-v5", CartBall])
def test_without_looking_the_same_happens(task: Any):
    looking, blind = make(task), make(task)
    blind._may_look = False
    draw = Actions(looking)
    assert torch.equal(looking.reset(), blind.reset())
    ended = 0
    for _ in range(40):
        action = draw()
        (left, left_obs), (right, right_obs) = looking.step(action), blind.step(action)
        if not ended:  # from the first reset on, other starts: the one draws at each step, the other when one ends
            assert equal(left, right)
        ended += int(left["next", "done"].sum())
        assert is_finite(right)
        if not ended:
            assert torch.equal(left_obs, right_obs)


@pytest.mark.filterwarnings("ignore:.*did not fit")  # what is far within the floor has many contacts
@pytest.mark.parametrize("value", [math.nan, 1e12])
def test_a_diverged_world_is_cut_counted_and_reset(value: float):
    env = make("HalfCheetah-v5")
    env._may_look = False
    draw = Actions(env)
    env.reset()
    env.step(draw())
    env.physics._state["qvel"][1] = value
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


def test_where_nobody_may_look_an_action_that_is_not_finite_is_counted_and_kept_out():
    env = make("Hopper-v5")
    env._may_look = False
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
    """A first state that is none in world 1, at the second drawing."""

    calls = 0

    def reset(self, num_worlds: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        qpos, qvel = super().reset(num_worlds, generator)
        type(self).calls += 1
        if type(self).calls == 2:
            qvel[1] = math.nan
        return qpos, qvel


def test_where_nobody_may_look_a_start_that_is_none_fails_at_its_first_step_and_leaves_no_number():
    BadStart.calls = 0
    env = make(BadStart)
    env._may_look = False
    draw = Actions(env)
    assert torch.isfinite(env.reset()).all()
    transition, obs = env.step(draw())
    assert is_finite(transition)
    assert torch.isfinite(obs).all()
    assert env.failed.tolist() == [False, True, False, False]
    assert not env.step(draw())[0]["next", "done"].any()


@pytest.mark.parametrize("task", ["Hopper-v5", "Humanoid-v5"])
def test_a_seed_gives_the_same_again_and_another_seed_something_else(task: str):
    def play(seed: int) -> list[Tensor]:
        env = make(task, seed=seed)
        draw = Actions(env)
        return [env.reset(), *(env.step(draw())[1] for _ in range(25))]

    first, again, other = play(1), play(1), play(2)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(first, other, strict=True))


@pytest.mark.parametrize("task", ["Humanoid-v5", CartBall])
def test_a_state_continues_bit_for_bit(task: Any):
    env, other = make(task), make(task, seed=9)
    draw = Actions(env)
    env.reset()
    actions = [draw() for _ in range(30)]
    for action in actions[:10]:
        env.step(action)
    state = env.get_state()
    expected = [env.step(action) for action in actions[10:]]
    other.set_state(state)
    for action, (transition, obs) in zip(actions[10:], expected, strict=True):
        found, found_obs = other.step(action)
        assert equal(found, transition)
        assert torch.equal(found_obs, obs)


CHOICES: list[tuple[dict[str, Any], str]] = [
    ({"physics": "gpu"}, "physics is 'gpu'; there are cpu, warp"),
    ({"solver": "pgs"}, "solver is 'pgs'; there are model"),
    ({"physics": "warp", "max_contacts": -1}, "max_contacts is -1"),
    ({"physics": "cpu", "max_constraints": 20}, "go with physics warp"),
    ({"device": "cuda"}, "torch sees no CUDA device"),
]


@pytest.mark.parametrize(("options", "message"), CHOICES)
def test_impossible_choices_are_named(options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        envs.make("Hopper-v5", 2, **options)


def test_a_gpu_simulates_unless_warp_is_missing(monkeypatch: pytest.MonkeyPatch):
    assert batch_env._suited_physics(torch.device("cpu")) == "cpu"
    assert batch_env._suited_physics(torch.device("cuda")) == "warp"
    monkeypatch.setattr(batch_env, "missing_packages", lambda: ["mujoco_warp"])
    with pytest.warns(UserWarning, match=r"the CPU simulates: pip install 'saltus\[warp\]'"):
        assert batch_env._suited_physics(torch.device("cuda")) == "cpu"


def test_the_solver_is_a_choice_on_the_cpu_too():
    asked, newton = envs.make("Humanoid-v5", 2, seed=0), envs.make("Humanoid-v5", 2, seed=0, solver="newton")
    draw = Actions(asked)
    assert torch.equal(asked.reset(), newton.reset())
    for _ in range(10):
        action = draw()
        left, right = asked.step(action)[1], newton.step(action)[1]
    assert not torch.equal(left, right)
    torch.testing.assert_close(left[:, :45], right[:, :45], rtol=0, atol=1e-2)

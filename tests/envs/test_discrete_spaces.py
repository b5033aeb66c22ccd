"""Discrete actions of other libraries: a policy's numbers in [-1, 1] become the environment's indices."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from external_helpers import TensorWalks, Walk
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from envs.environment_ref import make_environment, resolve_environment
from envs.external.external_env import ExternalEnv
from envs.external.gymnasium_worlds import GymnasiumWorlds
from envs.external.spaces import actions
from envs.simulation import Simulation
from saltus.errors import SaltusError


class Recorder(Walk):
    """Keeps the actions that it gets, and requires that its space contains them."""

    def __init__(self, space: Any):
        super().__init__()
        self.action_space, self.seen = space, []

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self.seen.append(np.asarray(action).flatten().tolist())
        return super().step(np.zeros(1))


SPACES = [
    (Discrete(2), [range(2)]),
    (Discrete(5, start=-2), [range(-2, 3)]),
    (Discrete(2, start=2**23 - 1), [range(2**23 - 1, 2**23 + 1)]),
    (Discrete(3, start=-(2**23)), [range(-(2**23), 3 - 2**23)]),
    (MultiDiscrete([3, 2]), [range(3), range(2)]),
    (MultiDiscrete([2, 4, 3], start=[1, -1, 0]), [range(1, 3), range(-1, 3), range(3)]),
    (MultiDiscrete([[2, 3], [4, 5]]), [range(2), range(3), range(4), range(5)]),
]


@pytest.mark.parametrize(("space", "indices"), SPACES, ids=[str(space) for space, _ in SPACES])
def test_every_choice_reaches_the_environment_as_its_index(space: Any, indices: list[range]) -> None:
    inner = SyncVectorEnv([lambda: Recorder(space)], autoreset_mode=AutoresetMode.SAME_STEP)
    env = ExternalEnv(GymnasiumWorlds(inner), "mine")
    assert env.action_choices == tuple(map(len, indices))
    assert (env.control_low.tolist(), env.control_high.tolist()) == ([i[0] for i in indices], [i[-1] for i in indices])
    env.reset()
    expected = [*itertools.product(*indices)]
    grids = [np.linspace(-1, 1, len(values)) for values in indices]
    for action in itertools.product(*grids):
        nudge = (np.random.default_rng(0).random(len(grids)) - 0.5) * 1.9 / (np.array(env.action_choices) - 1)
        given = torch.tensor(np.clip(action + nudge, -1, 1)[None], dtype=torch.float32)
        transition, _ = env.step(given)
        assert torch.equal(transition["action"], given), "transitions hold the policy's numbers"
    recorder: Any = inner.envs[0]
    assert recorder.seen == [list(one) for one in expected]


def test_tensors_of_indices_have_whole_numbers() -> None:
    class Walks(TensorWalks):
        single_action_space: Any = Discrete(3, start=1)

        def step(self, actions: Any) -> Any:
            assert actions.dtype == torch.int64
            self.seen = actions.tolist()
            return super().step(torch.zeros(self.num_envs, 1))

    inner = Walks()
    env = ExternalEnv(GymnasiumWorlds(inner), "mine")
    env.reset()
    env.step(torch.tensor([[-1.0], [0.0], [1.0]]))
    assert inner.seen == [1, 2, 3]


@pytest.mark.parametrize("space", [Discrete(1), MultiDiscrete([2, 1]), MultiBinary(3), gymnasium.spaces.Text(3)])
def test_spaces_without_a_choice_and_others_are_refused(space: Any) -> None:
    with pytest.raises(
        SaltusError, match=r"expected a Box .* or Gymnasium's Discrete or MultiDiscrete with at least 2"
    ):
        actions(space)


def test_boxes_of_integers_are_refused_with_the_space_to_use() -> None:
    with pytest.raises(SaltusError, match=r"a Box of int32; expected a Box of floating-point numbers.*a MultiDiscrete"):
        actions(Box(0, 3, (2,), np.int32))


@pytest.mark.parametrize("start", [2**23 - 1, -(2**23) - 1, 2**40])
def test_indices_that_float32_does_not_hold_are_refused(start: int) -> None:
    with pytest.raises(SaltusError, match=r"expected indices from -2\^23 to 2\^23"):
        actions(Discrete(3, start=start))


@pytest.mark.parametrize("name", ["CartPole-v1", "Acrobot-v1", "MountainCar-v0"])
def test_gymnasiums_discrete_ids_step_as_gymnasium_does(name: str) -> None:
    """CartPole's own vector form has an autoreset mode that cannot be trained with: its worlds are made one by one."""
    env = make_environment(resolve_environment(f"gym:{name}"), 3, {}, seed=1, simulation=Simulation())
    plain = [gymnasium.make(name).unwrapped for _ in range(3)]
    observation = env.reset()
    inner: Any = env
    generator, ends = torch.Generator().manual_seed(0), 0
    for _ in range(60):
        index = torch.randint(env.action_choices[0], (3, 1), generator=generator)
        for one, world in zip(plain, inner.worlds._env.envs, strict=True):
            one.reset()
            one.state = np.array(world.unwrapped.state)
        transition, following = env.step(2 * index.float() / (env.action_choices[0] - 1) - 1)
        assert torch.equal(transition["observation"], observation)
        for world, one in enumerate(plain):
            successor, reward, terminated, _, _ = one.step(int(index[world, 0]))
            after = transition["next"][world]
            torch.testing.assert_close(after["observation"], torch.as_tensor(successor), rtol=0, atol=1e-6)
            assert (float(after["reward"]), bool(after["terminated"])) == (reward, terminated)
        ends += int(transition["next", "done"].sum())
        observation = following
    assert ends > 0 or name != "CartPole-v1"

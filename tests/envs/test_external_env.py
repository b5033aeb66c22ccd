"""Environments of other libraries give the transitions of worlds stepped by hand, or are refused."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from env_helpers import is_finite
from external_helpers import (
    HIGH,
    LIMIT,
    LOW,
    Forgetful,
    GoalWalk,
    Paid,
    TensorWalks,
    TorchWalks,
    Walk,
    actions,
    external,
    sync,
    walk,
)  # fmt: skip
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv
from torch import Tensor
from torchrl.data import Categorical
from torchrl.envs import (
    Compose,
    DTypeCastTransform,
    GymWrapper,
    RewardSum,
    SerialEnv,
    StepCounter,
    TransformedEnv,
)  # fmt: skip

import envs
from envs import transition as transitions
from envs.external.external_env import ExternalEnv
from envs.statistics import REWARD_TERM
from saltus.device.synchronizations import Synchronizations
from saltus.errors import SaltusError

SAME, NEXT, DISABLED = AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED


def require_steps_by_hand(env: ExternalEnv, steps: int, columns: tuple[int, int] = (0, 1)) -> int:
    """Require that every transition without a failure is one by hand, from where the last one led; count ends."""
    x, elapsed = columns
    observation, ends = env.reset(), 0
    assert (observation[:, elapsed] == 0).all()
    for action in actions(steps, env.num_envs):
        transition, following = env.step(action)
        transitions.check(transition, env.observation_dim, 1)
        assert torch.equal(transition["observation"], observation)
        assert torch.equal(transition["action"], action)
        after, good = transition["next"], ~env.failed
        control = (LOW + HIGH) / 2 + (HIGH - LOW) / 2 * action[:, 0].double()
        hand = walk(observation[:, x].double(), observation[:, elapsed], control)
        found = (after["observation"][:, x], after["observation"][:, elapsed], after["reward"][:, 0])
        for one, other in zip(found, hand[:3], strict=True):
            torch.testing.assert_close(one[good].double(), other[good].double(), rtol=0, atol=1e-6)
        assert torch.equal(after["terminated"][good, 0], hand[3][good])
        assert torch.equal(after["truncated"][good, 0], hand[4][good])
        done = after["done"][:, 0]
        assert torch.equal(following[~done], after["observation"][~done])
        assert (following[done & good, elapsed] == 0).all()
        assert is_finite(transition)
        assert torch.isfinite(following).all()
        ends += int(done.sum())
        observation = following
    assert ends > steps * env.num_envs / LIMIT / 2
    return ends


ENVIRONMENTS: dict[str, tuple[Any, tuple[int, int]]] = {
    "same step": (partial(sync, SAME), (0, 1)),
    "next step": (partial(sync, NEXT), (0, 1)),
    "disabled": (partial(sync, DISABLED), (0, 1)),
    "goals, same step": (partial(sync, SAME, cls=GoalWalk), (2, 3)),
    "goals, next step": (partial(sync, NEXT, cls=GoalWalk), (2, 3)),
    "tensors": (TensorWalks, (0, 1)),
    "tensors, the former key": (partial(TensorWalks, key="final_observation"), (0, 1)),
    "tensors, no mask": (partial(TensorWalks, mask=False), (0, 1)),
    "tensors, disabled": (partial(TensorWalks, mode=DISABLED), (0, 1)),
    "TorchRL": (TorchWalks, (1, 0)),
    "TorchRL, of Gymnasium": (lambda: SerialEnv(3, lambda: GymWrapper(Walk())), (0, 1)),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_transitions_are_those_of_worlds_stepped_by_hand(name: str) -> None:
    make, columns = ENVIRONMENTS[name]
    env = external(make())
    ends = require_steps_by_hand(env, 40, columns)
    totals = env.statistics()
    assert totals["steps"] == 120
    assert totals["episodes"] == ends
    assert totals["nonfinite"] == totals["unstable"] == 0


@pytest.mark.slow
def test_processes_of_next_step_are_reset_within_the_step() -> None:
    inner = AsyncVectorEnv([Walk] * 2, autoreset_mode=NEXT, context="fork")
    try:
        require_steps_by_hand(external(inner, 2), 10)
    finally:
        inner.close()


@pytest.mark.slow
def test_the_step_and_the_limit_of_processes_are_those_of_their_worlds() -> None:
    def world() -> Any:
        return gymnasium.make("InvertedPendulum-v5", frame_skip=5, max_episode_steps=7)

    with closing(AsyncVectorEnv([world], autoreset_mode=SAME, context="fork")) as inner:
        env = external(inner, 1)
        assert (env.dt, env.max_episode_steps) == (0.1, 7)
        env.reset()
        env.step(torch.zeros(1, 1))
        assert env.reward_terms.keys() == {"reward_survive"}


@pytest.mark.parametrize("mode", [SAME, NEXT, DISABLED])
def test_worlds_that_are_not_finite_fail_and_end(mode: AutoresetMode) -> None:
    """A reading that is lost for one step: no later transition joins what came before and after it."""
    env = external(sync(mode, broken_at=3))
    require_steps_by_hand(env, 40)
    with pytest.warns(UserWarning, match="not finite: check the environment"):
        totals = env.statistics()
    assert totals["nonfinite"] > 5


def test_a_start_that_is_not_finite_fails() -> None:
    env = external(sync(SAME, broken_at=0))
    env.reset()
    for action in actions(20):
        transition, observation = env.step(action)
        assert env.failed.all()
        assert is_finite(transition)
        assert torch.isfinite(observation).all()


def test_equal_seeds_give_equal_episodes() -> None:
    one, same, other = (external(sync(SAME), seed=seed) for seed in (0, 0, 1))
    first = [env.reset() for env in (one, same, other)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    assert not torch.equal(one.reset(), first[0])  # the stream continues


def test_seeding_decides_the_next_episodes() -> None:
    env, same = external(sync(SAME)), external(sync(SAME), seed=7)
    first = env.reset()
    env.seed(7)
    assert torch.equal(expected := same.reset(), env.reset())
    assert not torch.equal(first, expected)


def test_a_resumed_environment_continues_its_totals_and_begins_other_episodes() -> None:
    env, resumed = external(sync(SAME, cls=Paid)), external(sync(SAME, cls=Paid))
    first = env.reset()
    for action in actions(10):
        env.step(action)
    resumed.set_state(env.get_state().to_dict())
    assert resumed.statistics() == env.statistics()
    assert not torch.equal(resumed.reset(), first)
    resumed.step(actions(1)[0])
    assert resumed.statistics()["reward_terms/reward_x"] != env.statistics()["reward_terms/reward_x"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: None, "state is a NoneType; expected a mapping with ['action_choices', 'totals']"),
        (lambda state: {"totals": 3.0}, "state['totals'] is a float; expected a mapping with ['episode_length', "),
        (lambda state: {**state, "physics": {}}, "of another environment: state has ['action_choices', 'physics', "),
        (lambda state: {**state, "totals": {}}, "of another environment: state['totals'] has []; expected ['"),
        (lambda state: {**state, "action_choices": torch.tensor([3])}, "state['action_choices'] has shape (1,);"),
    ],
)  # fmt: skip
def test_what_is_no_state_of_it_is_refused_without_effect(spoil: Any, message: str) -> None:
    env = external(sync(SAME, cls=Paid))
    env.reset()
    env.step(actions(1)[0])
    before = env.statistics()
    with pytest.raises(SaltusError) as caught:
        env.set_state(spoil(env.get_state().to_dict()))
    assert message in str(caught.value)
    assert env.statistics() == before
    env.set_state({"totals": env.get_state()["totals"]})  # as of earlier versions


def test_the_step_and_the_limit_are_read_where_they_are_known() -> None:
    def known(env: Any) -> tuple[float, int]:
        made = external(env)
        return made.dt, made.max_episode_steps

    assert known(gymnasium.make_vec("InvertedPendulum-v5", 3, vector_kwargs={"autoreset_mode": SAME})) == (0.04, 1000)
    limited = gymnasium.make_vec("InvertedPendulum-v5", 3, vector_kwargs={"autoreset_mode": SAME}, max_episode_steps=7)
    assert known(limited) == (0.04, 7)
    assert known(sync(SAME)) == (0.05, 1000)  # by render_fps; an unknown limit is 1,000 steps
    assert known(TensorWalks()) == (0.1, LIMIT)
    assert known(TorchWalks()) == (0.1, LIMIT)
    assert known(SerialEnv(3, lambda: GymWrapper(Walk()))) == (0.02, 1000)


@pytest.mark.parametrize("mode", [SAME, NEXT, DISABLED])
def test_hopper_of_gymnasium_gives_the_transitions_and_reward_terms_of_ours(mode: AutoresetMode) -> None:
    """Also the terms of an episode's last step."""
    ours = envs.make("Hopper-v5", 2, num_threads=1)
    theirs = external(gymnasium.make_vec("Hopper-v5", 2, vector_kwargs={"autoreset_mode": mode}), 2, seed=3)
    ours.reset()
    theirs.reset()
    generator = torch.Generator().manual_seed(0)
    compared = 0
    for _ in range(60):
        inner = [one.unwrapped for one in theirs.worlds._env.envs]  # type: ignore[attr-defined]
        qpos, qvel = (torch.tensor(np.stack([getattr(one.data, name) for one in inner])) for name in ("qpos", "qvel"))
        ours.set_qpos_qvel(qpos, qvel)
        action = 2 * torch.rand(2, 3, generator=generator) - 1
        mine, other = ours.step(action)[0], theirs.step(action)[0]
        for key in transitions.layout(11, 3):
            torch.testing.assert_close(mine[key], other[key], rtol=1e-5, atol=1e-5)
        assert theirs.reward_terms.keys() == {"reward_forward", "reward_ctrl", "reward_survive"}
        for name, term in theirs.reward_terms.items():
            torch.testing.assert_close(ours.reward_terms[name].double(), term.double(), rtol=1e-5, atol=1e-5)
        compared += int(mine["next", "done"].sum())
    assert compared > 2
    expected = {name: total for name, total in ours.statistics().items() if name.startswith(REWARD_TERM)}
    found = {name: total for name, total in theirs.statistics().items() if name.startswith(REWARD_TERM)}
    assert found == pytest.approx(expected, rel=1e-4)


def test_no_world_is_made_for_numbers_that_the_vector_environment_has() -> None:
    class Known(AsyncVectorEnv):
        dt, max_episode_steps = 0.25, 8

    with closing(Known([Walk], autoreset_mode=SAME, context="fork")) as inner:
        inner.env_fns = (lambda: pytest.fail("a world was made"),)
        env = external(inner, 1)
        assert (env.dt, env.max_episode_steps) == (0.25, 8)


def test_observations_have_names_in_the_order_of_gymnasiums_flatten() -> None:
    env = external(sync(SAME, cls=GoalWalk))
    names = ["achieved_goal 0", "desired_goal 0", "observation 0", "observation 1"]
    assert env.worlds.observation_names == names
    reading = {"observation": np.array([3.0, 4.0]), "desired_goal": np.ones(1) * 2, "achieved_goal": np.ones(1)}
    assert gymnasium.spaces.flatten(GoalWalk.observation_space, reading).tolist() == [1, 2, 3, 4]


class Refusing(TensorWalks):
    """Resets all worlds, whatever the mask."""

    def begin(self, mask: Tensor) -> None:
        super().begin(torch.ones_like(mask))


def spaced(observations: Any = None, acts: Any = None) -> Any:
    env = TensorWalks()
    env.single_observation_space = observations or env.single_observation_space
    env.single_action_space = acts or env.single_action_space
    return env


def of_specs(**specs: Any) -> Any:
    env = TorchWalks()
    for name, spec in specs.items():
        setattr(env, name, spec)
    return env


CAST = "DTypeCastTransform(torch.int64, torch.float32, in_keys=['step_count'])"


class Plain:
    """Has the attributes that the documentation asks for, and derives from nothing."""

    def __init__(self, mode: AutoresetMode):
        env = TensorWalks(mode=mode)
        self.num_envs, self.metadata, self.reset, self.step = env.num_envs, env.metadata, env.reset, env.step
        self.single_observation_space, self.single_action_space = env.single_observation_space, env.single_action_space


@pytest.mark.parametrize("mode", [SAME, DISABLED])
def test_an_environment_need_not_derive_from_a_class_of_gymnasium(mode: AutoresetMode) -> None:
    require_steps_by_hand(external(Plain(mode)), 20)
    with pytest.raises(SaltusError, match="NEXT_STEP"):
        external(Plain(NEXT))


class Timed(TorchWalks):
    """Has its step and limit as properties."""

    dt = property(lambda self: 0.3, lambda self, value: None)
    max_episode_steps = property(lambda self: 9, lambda self, value: None)


def test_step_and_limit_are_read_within_transforms_and_as_properties() -> None:
    wrapped = external(TransformedEnv(Timed(), RewardSum()))
    assert (wrapped.dt, wrapped.max_episode_steps) == (0.3, 9)


def test_the_cast_that_is_advised_for_counters_works() -> None:
    cast = DTypeCastTransform(torch.int64, torch.float32, in_keys=["step_count"])
    env = external(TransformedEnv(TorchWalks(), Compose(StepCounter(), cast)))
    require_steps_by_hand(env, 20, (2, 0))
    assert env.worlds.observation_names == ["elapsed 0", "step_count 0", "x 0"]


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (partial(TensorWalks, mode=None), ["autoreset_mode None", "env.metadata = {**env.metadata, 'autoreset_mode'"]),
        (partial(TensorWalks, mode=NEXT), ["NEXT_STEP", "SyncVectorEnv and AsyncVectorEnv", "AutoresetMode.DISABLED"]),
        (partial(Refusing, mode=DISABLED), ["changed the observations of worlds outside the mask"]),
        (Forgetful, ["mine ended episodes without their last observations", "infos['_final_obs']"]),
        (partial(spaced, acts=Discrete(1)), ["actions are in Discrete(1)", "a Box with finite bounds"]),
        (partial(spaced, acts=Box(-np.inf, np.inf, (1,))), ["a Box with finite bounds", "single_action_space"]),
        (partial(spaced, Discrete(3)), ["the observation is in the space Discrete(3)", "FlattenObservation"]),
        (partial(spaced, Box(0, 255, (8, 8, 3), np.uint8)), ["is an image, of shape (8, 8, 3)", "encode the image"]),
        (partial(spaced, Box(-1, 1, (5,))), ["has shape (3, 2); its space says (3, 5)"]),
        (partial(TensorWalks, 4), ["an environment of 4 worlds; expected num_envs = 3"]),
        (Walk, ["expected a gymnasium.vector.VectorEnv", "put it into gymnasium.vector.SyncVectorEnv"]),
        (partial(int, 3), ["mine returned 3; expected a gymnasium.vector.VectorEnv or a torchrl.envs.EnvBase"]),
        (partial(envs.make, "InvertedPendulum-v5", 3), ["returned a BatchEnv", "as file.py:ClassName"]),
        (lambda: GymWrapper(Walk()), ["has batch size []; expected [3]", "SerialEnv(num_envs, ...)"]),
        (partial(of_specs, action_spec=Categorical(3, (3, 1))), ["actions are in Categorical", "finite bounds"]),
        (lambda: TransformedEnv(TorchWalks(), StepCounter()), ["'step_count' is of type torch.int64", CAST]),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on_is_refused(make: Any, parts: list[str]) -> None:
    def try_to_step() -> None:
        env = external(make())
        env.reset()
        for action in actions(20):
            env.step(action)

    with pytest.raises(SaltusError) as caught:
        try_to_step()
    assert [part for part in parts if part not in str(caught.value)] == []


def test_missing_successors_never_reach_a_transition_where_values_are_not_read() -> None:
    """As on CUDA: the worlds fail, and the statistics raise."""
    env = external(Forgetful())
    env._can_sync = False
    observation = env.reset()
    failures = 0
    for action in actions(20):
        transition, following = env.step(action)
        failed = env.failed
        assert torch.equal(transition["next", "observation"][failed], observation[failed])
        assert transition["next", "truncated"][failed].all()
        observation, failures = following, failures + int(failed.sum())
    assert failures > 5
    with pytest.raises(SaltusError, match="without their last observations"):
        env.statistics()


def test_an_action_that_is_no_action_is_refused() -> None:
    env = external(sync(SAME))
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(torch.zeros(3, 1))
    env.reset()
    with pytest.raises(SaltusError, match=r"expected torch.float32 of shape \(3, 1\)"):
        env.step(torch.zeros(3, 2))
    with pytest.raises(SaltusError, match="world 1 is not finite"):
        env.step(torch.tensor([[0.0], [np.nan], [0.0]]))


def test_actions_stay_within_the_bounds_of_the_space() -> None:
    seen: list[np.ndarray] = []

    class Watched(Walk):
        def step(self, action: Any) -> Any:
            seen.append(action.copy())
            return super().step(action)

    env = external(sync(SAME, cls=Watched))
    env.reset()
    for value in (-3.0, -1.0, 0.0, 1.0, 3.0):
        env.step(torch.full((3, 1), value))
    assert [float(action[0]) for action in seen[::3]] == [LOW, LOW, -0.5, HIGH, HIGH]
    assert all(isinstance(action, np.ndarray) and action.dtype == np.float32 for action in seen)


def test_a_step_of_tensors_reads_no_value_where_that_would_wait_for_a_gpu() -> None:
    env = external(TensorWalks())
    env._can_sync = False
    env.reset()
    with Synchronizations() as synchronizations:
        for action in actions(10):
            env.step(action)
    assert synchronizations.found == []
    assert env.statistics()["episodes"] > 3


def test_a_vector_environment_of_tensors_never_sees_numpy() -> None:
    class Strict(TensorWalks):
        def step(self, actions: Any) -> Any:
            assert isinstance(actions, Tensor)
            return super().step(actions)

    assert issubclass(Strict, VectorEnv)
    require_steps_by_hand(external(Strict()), 10)

"""`state.drawn`: in every state that a task's functions see, the drawn numbers are those of the world's model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from env_helpers import WARP_MEMORY, CartBall, equal
from torch import Tensor

import envs
from envs import BatchEnv, Simulation, State, draw_fields, offset, scale
from envs.entry_names import observation_entries
from saltus.device.synchronizations import Synchronizations
from saltus.errors import SaltusError

WORLDS, VARIANTS, PRIVILEGED = 4, 6, 5  # privileged: the masses of four bodies, and gravity
ENGINES = pytest.mark.parametrize("physics", ["cpu", "warp"])


class Informed(CartBall):
    """CartBall whose critics see masses and gravity of the world's model."""

    model_variants = VARIANTS

    def randomize(self, num_envs: int, generator: torch.Generator) -> dict[str, Tensor]:
        changes = scale("body_mass", 0.5, 2), offset("opt.gravity", -1, 1)
        return draw_fields(self.model, num_envs, generator, *changes)

    def observation(self, state: State) -> Any:
        drawn = torch.cat([state.drawn["body_mass"], state.drawn["opt.gravity"][:, 2:]], dim=1)
        return {"policy": super().observation(state), "critic": drawn}


class Fixed(Informed):
    model_variants = 0


def make(physics: Any = "cpu", execution: Any = "auto", task: type[Informed] = Informed) -> BatchEnv:
    memory = WARP_MEMORY[CartBall] if physics == "warp" else {}
    simulation = Simulation(physics=physics, **memory)
    return BatchEnv(task(max_episode_steps=3), WORLDS, simulation=simulation, execution=execution)


def of_the_models(env: BatchEnv) -> Tensor:
    """The privileged numbers of the models that the worlds run, (N, 5)."""
    models = [env.physics.world_model(world) for world in range(WORLDS)]
    rows = [[*model.body_mass, model.opt.gravity[2]] for model in models]
    return torch.tensor(rows, dtype=torch.float64)


@ENGINES
def test_numbers_are_those_of_the_model_that_a_world_runs(physics: str):
    """Also those of the last state of an episode, whose next one has another model."""
    env = make(physics, "device")
    env.reset()
    assert env.privileged_dim == PRIVILEGED
    address, changes = env.physics.models.data_ptr(), 0
    for _ in range(8):
        before = of_the_models(env)
        transition, _ = env.step(torch.zeros(WORLDS, 2))
        for part in (transition, transition["next"]):
            torch.testing.assert_close(part["privileged"], before.float())
        torch.testing.assert_close(env.privileged, of_the_models(env).float())
        changes += not torch.equal(before, of_the_models(env))
    assert changes == 2
    assert env.physics.models.data_ptr() == address, "CUDA graphs read the models where they were"
    assert env.state.drawn["body_mass"].dtype == env.physics.dtype


def test_worlds_with_models_of_their_own_read_these():
    env = make(task=Fixed)
    env.reset()
    torch.testing.assert_close(env.privileged, of_the_models(env).float())
    assert len(env.privileged.unique(dim=0)) == WORLDS


@ENGINES
def test_numbers_come_back_with_the_state(physics: str):
    env, other = make(physics), make(physics)
    env.reset()
    env.step(torch.zeros(WORLDS, 2))
    other.set_state(env.get_state())
    for one in (env, other):
        torch.testing.assert_close(one.privileged, of_the_models(env).float())
    for _ in range(6):
        ours, theirs = (one.step(torch.zeros(WORLDS, 2))[0] for one in (env, other))
        assert equal(ours, theirs)


def test_reading_waits_for_no_gpu():
    env = make("warp", "device")
    env.reset()
    with Synchronizations() as waits:
        for _ in range(4):
            env.step(torch.zeros(WORLDS, 2))
    assert waits.found == []


def test_numbers_are_copies():
    env = make(task=Fixed)
    env.reset()
    before = env.state.drawn["body_mass"]
    env.state.drawn["body_mass"].zero_()
    assert torch.equal(env.state.drawn["body_mass"], before)
    assert list(env.state.drawn) == ["body_mass", "body_inertia", "opt.gravity"]


def test_entries_of_the_policys_observation_keep_their_names():
    named, plain = observation_entries(make()), observation_entries(BatchEnv(CartBall(), WORLDS))
    assert named == plain


def refused(task: type[CartBall], *parts: str) -> None:
    with pytest.raises(SaltusError) as caught:
        envs.make(task, WORLDS)
    assert not [part for part in parts if part not in str(caught.value)], caught.value


def test_fields_that_are_not_drawn_are_refused():
    class Wrong(Fixed):
        def observation(self, state: State) -> Any:
            return state.drawn["dof_damping"]

    class Without(CartBall):
        def observation(self, state: State) -> Any:
            return state.drawn["body_mass"]

    refused(Wrong, "state.drawn['dof_damping']", "`randomize` draws body_mass, body_inertia, opt.gravity")
    refused(Without, "state.drawn['body_mass']", "`randomize` draws nothing", "self.model")


def test_functions_that_mix_the_worlds_numbers_are_refused():
    class Mixing(Fixed):
        def observation(self, state: State) -> Any:
            masses = state.drawn["body_mass"]
            return {"policy": CartBall.observation(self, state), "critic": masses - masses.mean()}

    refused(Mixing, "Mixing.observation mixes worlds")


def test_own_tensors_cannot_have_the_name():
    class Named(CartBall):
        def reset(self, num_envs: int, generator: torch.Generator) -> Any:
            return {"drawn": torch.zeros(num_envs, 1)}

    refused(Named, "'drawn'", "choose another name")

"""Models that episodes draw: exact copies of separately compiled models, drawn, kept and resumed exactly."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from env_helpers import MODEL, WARP_MEMORY, Actions, CartBall, equal, same_bits
from torch import Tensor

import envs
from envs import BatchEnv, Simulation, draw_fields, offset, scale
from pipeline.check.probes import probe_warp
from saltus.device.synchronizations import Synchronizations
from saltus.errors import SaltusError

WORLDS, VARIANTS = 4, 5
OBJECTS = {"body": "bodies", "geom": "geoms", "joint": "joints", "actuator": "actuators"}


class Varied(CartBall):
    """Each episode draws one of five models."""

    model_variants = VARIANTS

    def randomize(self, num_envs: int, generator: torch.Generator) -> dict[str, Tensor]:
        self.drawn = draw_fields(
            self.model, num_envs, generator,
            scale("body_mass", 0.5, 2),
            scale("geom_friction", 0.3, 1.5, shared=True),
            scale("dof_damping", 0.5, 2, names="slide"),
            offset("dof_damping", 0, 0.1, names=["hinge"]),
            scale("actuator_gainprm", 0.5, 2, names="servo"),
            offset("body_pos", -0.1, 0.1, names="pole"),
            offset("opt.gravity", -1, 1),
        )  # fmt: skip
        return self.drawn


def make(seed: int = 0, physics: Any = "cpu", execution: Any = "auto", **options: Any) -> BatchEnv:
    memory = WARP_MEMORY[CartBall] if physics == "warp" else {}
    simulation = Simulation(physics=physics, **memory)
    return BatchEnv(
        Varied(**options), WORLDS, seed=seed, simulation=simulation, execution=execution, normalized_actions=False
    )


def compiled(task: Varied, row: int) -> mujoco.MjModel:
    """A model compiled from a spec with the numbers of one of a task's models."""
    spec = mujoco.MjSpec.from_string(MODEL)
    values = {name: drawn[row].numpy() for name, drawn in task.drawn.items()}
    for index, body in enumerate(spec.bodies[1:], 1):
        body.pos = values["body_pos"][index]
        body.explicitinertial = True
        body.mass, body.inertia = values["body_mass"][index], values["body_inertia"][index]
        body.ipos, body.iquat = task.model.body_ipos[index], task.model.body_iquat[index]
    for index, geom in enumerate(spec.geoms):
        geom.friction = values["geom_friction"][index]
    for index, joint in enumerate(spec.joints[:2]):
        joint.damping[0] = values["dof_damping"][index]
    for index, actuator in enumerate(spec.actuators):
        actuator.gainprm[:], actuator.biasprm[:] = values["actuator_gainprm"][index], values["actuator_biasprm"][index]
    spec.option.gravity = values["opt.gravity"]
    return spec.compile()


def rows(env: BatchEnv) -> list[int]:
    """The model that each world runs."""
    return env.physics.get_state()["models"].tolist()


def masses(env: BatchEnv) -> list[float]:
    return [float(env.physics.world_model(world).body_mass[2]) for world in range(WORLDS)]


def test_worlds_move_as_separately_compiled_models_bit_for_bit():
    env = make(seed=1, max_episode_steps=8)
    models = [compiled(env.task, row) for row in range(VARIANTS)]
    env.reset()
    draw, datas, seen = Actions(env), list[mujoco.MjData](), set[int]()
    done = torch.ones(WORLDS, dtype=torch.bool)
    datas = [mujoco.MjData(models[0]) for _ in range(WORLDS)]
    for _ in range(40):
        for world in torch.nonzero(done).flatten().tolist():  # an episode begins
            model = models[rows(env)[world]]
            datas[world] = data = mujoco.MjData(model)
            data.qpos[:], data.qvel[:] = env.state.qpos[world], env.state.qvel[world]
            mujoco.mj_forward(model, data)
        running, action = rows(env), draw()
        seen |= set(running)
        transition, _ = env.step(action)
        done = transition["next", "done"].flatten()
        for world in torch.nonzero(~done).flatten().tolist():
            datas[world].ctrl[:] = action[world]
            mujoco.mj_step(models[running[world]], datas[world], env.task.frame_skip)
            assert same_bits(env.state.qpos[world], datas[world].qpos)
            assert same_bits(env.state.qvel[world], datas[world].qvel)
    assert len(seen) == VARIANTS


def test_constants_are_those_of_separately_compiled_models():
    env = make()
    env.reset()
    for world, row in enumerate(rows(env)):
        ours, theirs = env.physics.world_model(world), compiled(env.task, row)
        for name in ("body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0", "actuator_acc0"):
            assert same_bits(getattr(ours, name), getattr(theirs, name)), name
            assert not same_bits(getattr(ours, name), getattr(env.task.model, name)), name


def test_warp_runs_the_models_of_the_cpu_in_single_precision():
    cpu, warp = make(), make(physics="warp", max_episode_steps=3)
    warp.reset()
    for _ in range(4):
        warp.step(torch.zeros(WORLDS, 2))
    views = warp.physics._model_views
    assert {"body_subtreemass", "body_invweight0", "dof_invweight0", "actuator_acc0", "opt.gravity"} <= views.keys()
    assert len(set(rows(warp))) > 1
    for world, row in enumerate(rows(warp)):
        theirs = compiled(cpu.task, row)
        for name, view in views.items():
            expected = theirs.opt.gravity if name == "opt.gravity" else getattr(theirs, name)
            assert same_bits(view[world].flatten(), expected.astype(np.float32).flatten()), name


def test_warps_worlds_move_as_separately_compiled_models_within_single_precision():
    env = make(physics="warp", max_episode_steps=3)
    env.reset()
    draw, checked = Actions(env), 0
    for _ in range(9):
        qpos, qvel, running, action = env.state.qpos.clone(), env.state.qvel.clone(), rows(env), draw()
        env.set_qpos_qvel(qpos, qvel)  # without the last step's accelerations, from which the solver starts
        done = env.step(action)[0]["next", "done"].flatten()
        for world in torch.nonzero(~done).flatten().tolist():
            model = compiled(env.task, running[world])
            data = mujoco.MjData(model)
            data.qpos[:], data.qvel[:], data.ctrl[:] = qpos[world], qvel[world], action[world]
            mujoco.mj_step(model, data, env.task.frame_skip)
            np.testing.assert_allclose(env.state.qpos[world], data.qpos, atol=1e-4)
            np.testing.assert_allclose(env.state.qvel[world], data.qvel, atol=1e-4 * max(1, np.abs(data.qvel).max()))
            checked += 1
    assert checked > 2 * WORLDS


def test_episodes_draw_models_and_worlds_within_one_keep_theirs():
    env, again, other = (make(seed, max_episode_steps=5, reach=0.15) for seed in (3, 3, 4))
    for one in (env, again, other):
        one.reset()
    assert rows(env) == rows(again)
    assert masses(env) == masses(again)
    assert set(masses(env)).isdisjoint(masses(other))
    draw, changes, history = Actions(env), 0, {tuple(rows(env))}
    for _ in range(20):
        before, masses_before, action = rows(env), masses(env), draw()
        done = env.step(action)[0]["next", "done"].flatten().tolist()
        again.step(action)
        assert rows(env) == rows(again)
        for world in range(WORLDS):
            assert (masses(env)[world] == masses_before[world]) == (rows(env)[world] == before[world])
            assert done[world] or rows(env)[world] == before[world]
        changes += sum(new != old for new, old in zip(rows(env), before, strict=True))
        history.add(tuple(rows(env)))
    assert changes > WORLDS
    assert max(len(set(drawn)) for drawn in history) > 1


@pytest.mark.parametrize("physics", ["cpu", "warp"])
def test_reset_of_some_worlds_keeps_the_models_of_the_others(physics: str):
    env = make(5, physics)
    env.reset()
    mask, seen = torch.tensor([True, False, True, False]), set[int]()
    before = rows(env)
    for _ in range(20):
        env.reset(mask)
        assert rows(env)[1::2] == before[1::2]
        seen |= set(rows(env)[::2])
    assert seen == set(range(VARIANTS))


@pytest.mark.parametrize("physics", ["cpu", "warp"])
def test_state_continues_with_the_models_of_its_episodes(physics: str):
    env = make(6, physics, max_episode_steps=7)
    draw = Actions(env)
    env.reset()
    for _ in range(10):
        env.step(draw())
    state, actions = env.get_state(), [draw() for _ in range(12)]
    expected = [env.step(action) for action in actions]
    for other in (env, make(6, physics, max_episode_steps=7)):  # the first after other episodes
        other.set_state(state)
        assert equal(other.get_state(), state)
        for action, (theirs, their_obs) in zip(actions, expected, strict=True):
            ours, obs = other.step(action)
            assert equal(ours, theirs)
            assert torch.equal(obs, their_obs)


@pytest.mark.parametrize("physics", ["cpu", "warp"])
def test_states_of_the_physics_hold_their_models(physics: str):
    env = make(8, physics, max_episode_steps=2)
    env.reset()
    kept = [(env.physics.get_state(), masses(env))]
    for _ in range(4):
        env.step(torch.zeros(WORLDS, 2))
        kept.append((env.physics.get_state(), masses(env)))
    assert kept[0][1] != kept[-1][1]
    for state, expected in kept:
        env.physics.set_state(state)
        assert masses(env) == expected
        assert equal(env.physics.get_state(), state)


def test_a_seed_determines_the_models_of_the_episodes_that_follow():
    env = make(7)
    env.reset()
    env.seed(1)
    env.reset()
    first = rows(env)
    env.reset()
    env.seed(1)
    env.reset()
    assert rows(env) == first


def test_models_change_on_the_device_without_synchronization():
    env = make(physics="warp", execution="device", max_episode_steps=2)
    env.reset()
    env.step(torch.zeros(WORLDS, 2))
    before = env.physics.models.clone()
    with Synchronizations() as waits:
        for _ in range(4):
            env.step(torch.zeros(WORLDS, 2))
    assert waits.found == []
    assert not torch.equal(env.physics.models, before)


def test_tasks_without_variants_keep_their_states():
    class Plain(Varied):
        model_variants = 0

    env = envs.make(Plain, WORLDS)
    env.reset()
    assert len(env.task.drawn["body_mass"]) == WORLDS
    assert "models" not in env.physics.get_state().keys()  # noqa: SIM118  (a TensorDict iterates over worlds)


# Tasks that draw wrongly


def test_variants_without_fields_or_of_a_wrong_number_are_refused():
    class Same(CartBall):
        model_variants = 10

    with pytest.raises(SaltusError, match=r"model_variants of task Same is 10, and Same\.randomize draws no field"):
        envs.make(Same, 2)
    whole = r"Same\.model_variants is 2\.5; expected a whole number$"
    for wrong, message in ((-1, "model_variants of task Same is -1"), (2.5, whole)):
        Same.model_variants = wrong
        with pytest.raises(SaltusError, match=message):
            envs.make(Same, 2)


def test_values_that_mujoco_refuses_have_its_words():
    class Shifted(CartBall):
        def randomize(self, num_envs: int, generator: torch.Generator) -> dict[str, Tensor]:
            return draw_fields(self.model, num_envs, generator, offset("body_ipos", 0.01, 0.02, "ball"))

    words = "mj_setConstGroups: body 3 is compiled as simple .* use body/simple='false'"
    with pytest.raises(SaltusError, match=f"MuJoCo refuses the drawn values of body_ipos: {words}"):
        envs.make(Shifted, 2)


@pytest.mark.parametrize(
    ("change", "shared"),
    [(scale("site_size", 1, 2), "site_size"), (offset("actuator_armature", 1, 2, "push"), "jnt_actuatorid")],
)
def test_check_says_that_warp_cannot_vary_a_field_or_what_follows_from_it(change: Any, shared: str):
    class Shared(CartBall):
        def randomize(self, num_envs: int, generator: torch.Generator) -> dict[str, Tensor]:
            return draw_fields(self.model, num_envs, generator, change)

    (finding,) = probe_warp(envs.make(Shared, 2).task, 2)
    assert "not supported" in finding.text
    assert f"cannot differ between worlds in Warp: {shared}" in finding.text


def test_check_draws_as_many_models_as_the_task_has():
    class Fourth(CartBall):
        model_variants = 8

        def randomize(self, num_envs: int, generator: torch.Generator) -> dict[str, Tensor]:
            damping = torch.ones(num_envs, self.model.nv, dtype=torch.float64)
            damping[3] = 2
            return {"dof_damping": damping}

    (finding,) = probe_warp(envs.make(Fourth, 2).task, 2)
    assert "Warp: supported" in finding.text

"""Worlds with models of their own."""

from __future__ import annotations

import mujoco
import numpy as np
import torch
from env_helpers import MODEL, Actions, CartBall, qpos_qvel, same_bits, spy
from torch import Tensor

import envs
from envs import BatchEnv


class RandomMass(CartBall):
    """Masses and damping differ between worlds."""

    def randomize(self, num_envs: int, generator: torch.Generator) -> dict[str, Tensor]:
        mass = torch.from_numpy(self.model.body_mass).repeat(num_envs, 1)
        mass[:, 2:] *= 1 + torch.rand(num_envs, 2, generator=generator, dtype=mass.dtype)
        damping = torch.rand(num_envs, self.model.nv, generator=generator)
        self.drawn = {"body_mass": mass, "dof_damping": damping}
        return self.drawn


def single_model(env: BatchEnv, world: int) -> mujoco.MjModel:
    """One world's model, with constants derived by MuJoCo."""
    model = mujoco.MjSpec.from_string(MODEL).compile()
    for name, values in env.task.drawn.items():
        getattr(model, name)[:] = values[world].numpy()
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


def test_randomised_worlds_move_like_single_models():
    env = envs.make(RandomMass, 3, seed=6, normalized_actions=False)
    env.reset()
    models = [single_model(env, world) for world in range(3)]
    datas = [mujoco.MjData(model) for model in models]
    qpos, qvel = qpos_qvel(env)
    for world, (model, data) in enumerate(zip(models, datas, strict=True)):
        data.qpos[:], data.qvel[:] = qpos[world], qvel[world]
        mujoco.mj_forward(model, data)
    draw = Actions(env)
    for _ in range(60):
        action = draw()[:1].repeat(3, 1)
        assert not env.step(action)[0]["next", "done"].any()
        qpos, qvel = qpos_qvel(env)
        for world, (model, data) in enumerate(zip(models, datas, strict=True)):
            data.ctrl[:] = action[world]
            mujoco.mj_step(model, data, env.task.frame_skip)
            assert same_bits(qpos[world], data.qpos)
            assert same_bits(qvel[world], data.qvel)
    assert len(qpos.unique(dim=0)) == 3


def test_derived_constants_follow_masses_and_inertias_do_not():
    env = envs.make(RandomMass, 3, seed=6)
    plain = mujoco.MjModel.from_xml_string(MODEL)
    for world in range(3):
        ours, theirs = env.physics.world_model(world), single_model(env, world)
        for constant in ("body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0", "actuator_acc0"):
            assert same_bits(getattr(ours, constant), getattr(theirs, constant)), constant
            assert not same_bits(getattr(ours, constant), getattr(plain, constant)), constant
        assert same_bits(ours.body_inertia, plain.body_inertia), "inertias do not follow masses"


def test_randomised_models_survive_resets_and_depend_on_the_seed():
    def masses(env: BatchEnv) -> np.ndarray:
        return np.stack([env.physics.world_model(world).body_mass for world in range(3)])

    env = envs.make(RandomMass, 3, seed=6, max_episode_steps=2)
    first = masses(env)
    env.reset()
    for _ in range(6):
        env.step(Actions(env)())
    assert same_bits(masses(env), first)
    assert same_bits(masses(envs.make(RandomMass, 3, seed=6)), first)
    assert not (masses(envs.make(RandomMass, 3, seed=7)) == first)[:, 2:].any()


def test_mocap_body_starts_at_the_position_of_its_worlds_model():
    class Target(CartBall):
        mjcf = MODEL.replace("<worldbody>", '<worldbody><body name="target" mocap="true" pos="1 2 3"/>')
        fields = ("qpos", "qvel", "xpos", "sensordata")

        def randomize(self, num_envs: int, generator: torch.Generator) -> dict[str, Tensor]:
            positions = torch.from_numpy(self.model.body_pos).repeat(num_envs, 1, 1)
            positions[:, 1] = torch.rand(num_envs, 3, generator=generator)
            return {"body_pos": positions}

    env = envs.make(Target, 3)
    shown = spy(env.task, "observation")
    env.reset()
    ours = shown[-1][0][0].body("target").xpos
    theirs = [env.physics.world_model(world).body("target").pos for world in range(3)]
    assert same_bits(ours, np.stack(theirs))

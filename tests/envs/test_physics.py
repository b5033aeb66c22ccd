"""The Physics contract on both engines. Warp runs on the CPU here: the same kernels as on a GPU, without graphs."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from env_helpers import MODEL, overwrite
from physics_helpers import FIELDS, HEAP, SKIP, WORLDS, flagged, make
from torch import Tensor

from envs.physics import Physics
from saltus.errors import SaltusError

ENGINES = ["cpu", "warp"]
TOLERANCE = {"cpu": 0.0, "warp": 2e-4}  # relative to the largest number of a field, over a few control steps

both_engines = pytest.mark.parametrize("engine", ENGINES)


def starts(physics: Physics, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Initial states near the default one, with the ball just above the floor."""
    generator = torch.Generator().manual_seed(seed)
    model = physics.model
    qpos = torch.as_tensor(model.qpos0).repeat(WORLDS, 1)
    qpos[:, :2] += 0.2 * torch.rand(WORLDS, 2, generator=generator, dtype=torch.float64)
    qpos[:, 4] = 0.12
    qvel = 0.2 * torch.rand(WORLDS, model.nv, generator=generator, dtype=torch.float64) - 0.1
    # Values that both precisions represent exactly.
    return qpos.float().to(physics.dtype), qvel.float().to(physics.dtype)


def controls(step: int) -> Tensor:
    return 2 * torch.rand(WORLDS, 2, generator=torch.Generator().manual_seed(100 + step)) - 1


def started(engine: str, **options: Any) -> Physics:
    physics = make(engine, **options)
    physics.reset(torch.ones(WORLDS, dtype=torch.bool), *starts(physics))
    return physics


def stepped(physics: Physics, count: int, first: int = 0) -> dict[str, Tensor]:
    for step in range(first, first + count):
        physics.step(controls(step), SKIP)
    return physics.read()


def by_mujoco(physics: Physics, world: int, count: int, model: mujoco.MjModel | None = None) -> mujoco.MjData:
    """One world simulated by mj_step."""
    model = model or physics.model
    data = mujoco.MjData(model)
    qpos, qvel = starts(physics)
    data.qpos[:], data.qvel[:] = qpos[world], qvel[world]
    mujoco.mj_forward(model, data)
    for step in range(count):
        data.ctrl[:] = controls(step)[world]
        mujoco.mj_step(model, data, SKIP)
    return data


def assert_near(found: Tensor, expected: Any, tolerance: float, what: str) -> None:
    expected = expected.double() if isinstance(expected, Tensor) else torch.tensor(expected, dtype=torch.float64)
    size = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(
        found.double(), expected, rtol=0, atol=tolerance * size, msg=lambda text: f"{what}: {text}"
    )


def same(left: dict[str, Tensor], right: dict[str, Tensor], worlds: Any = slice(None)) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key][worlds], right[key][worlds]) for key in left)


@both_engines
def test_fields_have_mujocos_shapes_and_are_copies(engine: str):
    physics = started(engine)
    fields, data = stepped(physics, 2), mujoco.MjData(physics.model)
    assert tuple(fields) == FIELDS
    for name, values in fields.items():
        assert values.shape == (WORLDS, *np.shape(getattr(data, name)))
        assert (values.dtype, values.device) == (physics.dtype, physics.device)
    kept = {name: values.clone() for name, values in fields.items()}
    for values in fields.values():
        values.fill_(7)
    assert same(physics.read(), kept)
    physics.unstable().fill_(True)
    assert not physics.unstable().any()
    taken = physics.read()
    stepped(physics, 2)
    assert same(taken, kept), "a later step changed tensors that had been read"


@both_engines
def test_read_copies_into_given_tensors(engine: str):
    physics = started(engine)
    out = physics.read()
    addresses = [values.data_ptr() for values in out.values()]
    stepped(physics, 2)
    assert physics.read(out=out) is out
    assert same(out, physics.read())
    assert [values.data_ptr() for values in out.values()] == addresses
    kept = {name: values.clone() for name, values in out.items()}
    stepped(physics, 2, first=2)
    assert same(out, kept), "a later step changed tensors that had been read"
    for values in out.values():
        values.fill_(7)
    assert not any((values == 7).any() for values in physics.read().values()), "the engine handed out its own arrays"
    part = {"qpos": torch.empty_like(out["qpos"])}
    assert same(physics.read(out=part), {"qpos": physics.read()["qpos"]})


@both_engines
def test_step_equals_mj_step(engine: str):
    physics = started(engine)
    fields = stepped(physics, 5)
    for world in range(WORLDS):
        data = by_mujoco(physics, world, 5)
        assert data.ncon, "the ball does not touch the floor"
        mujoco.mj_rnePostConstraint(physics.model, data)
        for name in FIELDS:
            # Contact forces and accelerometers are differences of large numbers.
            loose = 20 if name in ("cfrc_ext", "sensordata") else 1
            assert_near(fields[name][world], getattr(data, name), loose * TOLERANCE[engine], name)


@both_engines
@pytest.mark.parametrize("fields", [("qpos", "qvel", "xpos", "sensordata"), FIELDS], ids=["plain", "contact forces"])
def test_recomputed_fields_describe_the_state_after_the_step(engine: str, fields: tuple[str, ...]):
    recomputing, lagging = started(engine, fields=fields, recompute_derived=True), started(engine, fields=fields)
    new, old = stepped(recomputing, 4), stepped(lagging, 4)
    for name in ("qpos", "qvel"):
        assert torch.equal(new[name], old[name]), "recomputing changed the motion"
    model, data = recomputing.model, mujoco.MjData(recomputing.model)
    for world in range(WORLDS):
        data.qpos[:], data.qvel[:] = new["qpos"][world], new["qvel"][world]
        mujoco.mj_forward(model, data)
        assert_near(new["xpos"][world], data.xpos, 1e-6, "xpos")
        assert_near(new["sensordata"][world, :4], data.sensordata[:4], 1e-5, "position and velocity sensors")
        assert np.abs(old["xpos"][world].numpy() - data.xpos).max() > 1e-4
    # The accelerometer describes the last physics step.
    assert_near(new["sensordata"][:, 4:], old["sensordata"][:, 4:], 1e-6, "accelerometer")


@both_engines
def test_reset_affects_masked_worlds_only(engine: str):
    physics, undisturbed = started(engine), started(engine)
    before = stepped(physics, 4)
    stepped(undisturbed, 4)
    mask = torch.tensor([False, True, False, True])
    qpos, qvel = starts(physics, seed=5)
    physics.reset(mask, qpos, qvel)
    after = physics.read()
    assert same(after, before, ~mask)
    assert torch.equal(after["qpos"][mask], qpos[mask])
    assert torch.equal(after["qvel"][mask], qvel[mask])
    assert (after["time"][mask] == 0).all()
    assert (after["cfrc_ext"][mask] == 0).all(), "as after mj_resetData"
    data = mujoco.MjData(physics.model)
    data.qpos[:], data.qvel[:] = qpos[1], qvel[1]
    mujoco.mj_forward(physics.model, data)
    assert_near(after["xpos"][1], data.xpos, 1e-6, "xpos after reset")
    assert same(stepped(physics, 3, first=4), stepped(undisturbed, 3, first=4), ~mask)


@pytest.mark.parametrize(
    "fields",
    [
        ("qpos", "qvel", "cfrc_ext"), ("xpos", "xquat", "geom_xmat", "site_xpos", "subtree_com", "cinert"),
        ("xipos", "cvel", "qfrc_actuator", "actuator_force", "actuator_velocity"), ("xpos", "qacc"),
    ],
    ids=["state", "kinematics", "actuation", "all"],
)  # fmt: skip
def test_reset_on_warp_computes_the_fields_that_are_read(fields: tuple[str, ...]):
    physics, everything = started("warp", fields=fields), started("warp", fields=(*fields, "qacc"))
    for one in (physics, everything):
        stepped(one, 3)
        one.reset(torch.tensor([False, True, False, True]), *starts(one, seed=5))
    found, expected = physics.read(), everything.read()
    assert same(found, {name: expected[name] for name in fields})
    assert same(stepped(physics, 3), {name: value for name, value in stepped(everything, 3).items() if name in fields})


@both_engines
def test_reset_leaves_nothing_of_the_earlier_episode(engine: str):
    physics, new = started(engine), make(engine)
    stepped(physics, 7)
    everywhere = torch.ones(WORLDS, dtype=torch.bool)
    for one in (physics, new):
        one.reset(everywhere, *starts(physics, seed=2))
    assert same(stepped(physics, 4), stepped(new, 4))


@both_engines
@pytest.mark.parametrize(("field", "value"), [("qpos", np.nan), ("qvel", np.nan), ("qvel", 1e12), ("qpos", -np.inf)])
def test_diverged_world_is_reported_and_reset_and_others_are_unaffected(engine: str, field: str, value: float):
    physics, healthy = started(engine), started(engine)
    stepped(physics, 2)
    stepped(healthy, 2)
    overwrite(physics, field, value, world=1)
    others = torch.tensor([True, False, True, True])
    found, expected = stepped(physics, 1, first=2), stepped(healthy, 1, first=2)
    assert physics.unstable().tolist() == (~others).tolist()
    assert same(found, expected, others)
    qpos, qvel = starts(physics, seed=3)
    for one in (physics, healthy):
        one.reset(~others, qpos, qvel)
    assert not physics.unstable().any()
    assert same(stepped(physics, 3, first=3), stepped(healthy, 3, first=3)), "the failure left something behind"
    assert not physics.unstable().any()


@both_engines
def test_nonfinite_initial_state_is_reported(engine: str):
    physics = make(engine)
    qpos, qvel = starts(physics)
    qvel[2, 0] = np.nan
    physics.reset(torch.ones(WORLDS, dtype=torch.bool), qpos, qvel)
    assert physics.unstable().tolist() == [False, False, True, False]
    assert "implicitfast" not in physics.failure_advice
    physics.model.actuator_biasprm[0, 2] = -1.0  # damping by an actuator
    assert 'integrator="implicitfast"' in physics.failure_advice


@both_engines
def test_state_continues_bit_for_bit(engine: str):
    physics, other = started(engine), make(engine)
    stepped(physics, 4)
    state = physics.get_state()
    assert state.batch_size == (WORLDS,)
    expected = stepped(physics, 3, first=4)
    other.set_state(state)
    assert same(stepped(other, 3, first=4), expected)
    physics.set_state(state)
    assert same(stepped(physics, 3, first=4), expected), "later steps changed the state"


@both_engines
def test_mj_data_is_one_world_after_mj_forward(engine: str):
    physics = started(engine)
    fields = stepped(physics, 3)
    data = physics.mj_data(2)
    assert_near(fields["qpos"][2], data.qpos, 0, "qpos")
    assert data.time == pytest.approx(float(fields["time"][2]))
    assert np.abs(data.site_xpos).max() > 0.1
    assert physics.world_model(2) is physics.model, "copied, although worlds share their model"
    assert_near(
        stepped(physics, 1, first=3)["qpos"][2], by_mujoco(physics, 2, 4).qpos, TOLERANCE[engine], "undisturbed"
    )


@both_engines
def test_worlds_with_their_own_model_fields_move_like_single_models(engine: str):
    mass = torch.as_tensor(mujoco.MjModel.from_xml_string(MODEL).body_mass).repeat(WORLDS, 1)
    mass[:, 2] *= torch.tensor([1.0, 2.0, 3.0, 4.0])
    physics = started(engine, model_fields={"body_mass": mass})
    fields = stepped(physics, 5)
    for world in range(WORLDS):
        model = copy.copy(physics.model)
        model.body_mass[:] = mass[world]
        mujoco.mj_setConst(model, mujoco.MjData(model))
        for name in ("body_mass", "body_subtreemass", "dof_invweight0"):
            assert_near(torch.as_tensor(getattr(physics.world_model(world), name)), getattr(model, name), 1e-6, name)
        data = by_mujoco(physics, world, 5, model)
        assert_near(fields["qpos"][world], data.qpos, TOLERANCE[engine], "qpos")
        # mj_data uses the world's own model.
        shown = mujoco.MjData(model)
        shown.qpos[:], shown.qvel[:], shown.ctrl[:] = fields["qpos"][world], fields["qvel"][world], controls(4)[world]
        mujoco.mj_forward(model, shown)
        assert_near(torch.as_tensor(physics.mj_data(world).qfrc_bias), shown.qfrc_bias, 1e-6, "qfrc_bias")
    assert (fields["qvel"][0] - fields["qvel"][3]).abs().max() > 0.01


@both_engines
def test_worlds_with_their_own_gravity_move_like_single_models(engine: str):
    gravity = torch.tensor([[0.0, 0, -9.81], [0, 0, -1], [1, 0, 0], [0, 0, 0]])
    physics = started(engine, fields=(*FIELDS, "cacc"), model_fields={"opt.gravity": gravity})
    fields = stepped(physics, 5)
    for world in range(WORLDS):
        model = copy.copy(physics.model)
        model.opt.gravity[:] = gravity[world]
        assert physics.world_model(world).opt.gravity.tolist() == pytest.approx(gravity[world].tolist())
        data = by_mujoco(physics, world, 5, model)
        mujoco.mj_rnePostConstraint(model, data)
        for name in ("qpos", "cacc"):
            assert_near(fields[name][world], getattr(data, name), TOLERANCE[engine], name)


@both_engines
@pytest.mark.parametrize("field", ["opt.timestp", "nbody", "names"])
def test_field_that_cannot_differ_between_worlds_is_named(engine: str, field: str):
    with pytest.raises(SaltusError, match=f"cannot differ between worlds.*{field}"):
        make(engine, model_fields={field: torch.ones(WORLDS)})


def test_medium_that_warp_omits_is_refused():
    """Warp compiles no drag for a model without a medium."""
    density = {"opt.density": torch.ones(WORLDS)}
    with pytest.raises(SaltusError, match=r"cannot differ between worlds in Warp: opt\.density"):
        make("warp", model_fields=density)
    water = MODEL.replace('timestep="0.005"', 'timestep="0.005" density="1000"')
    assert make("warp", model_fields=density, xml=water).world_model(1).opt.density == 1


# State that MuJoCo keeps outside the integration state


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("flag", ["sleep", "ipc"])
def test_hidden_state_is_warned_about_and_does_not_outlive_a_reset(flag: str, recompute: bool):
    with pytest.warns(UserWarning, match=f'sets <flag {flag}="enable"/>.*resumed run differs.*bit for bit'):
        physics = make("cpu", fields=("qpos", "qvel"), xml=flagged(flag), recompute_derived=recompute)
    fresh = make("cpu", fields=("qpos", "qvel"), xml=flagged(flag), recompute_derived=recompute)
    everywhere = torch.ones(WORLDS, dtype=torch.bool)
    physics.reset(everywhere, *starts(physics, seed=1))
    for _ in range(60):
        physics.step(torch.zeros(WORLDS, 2), SKIP)
    state = physics.get_state()
    for one in (physics, fresh):
        one.reset(everywhere, *starts(physics, seed=2))
    assert same(stepped(physics, 5), stepped(fresh, 5)), "a reset left something behind"
    for one in (physics, fresh):
        one.set_state(state)
    assert same(stepped(physics, 5), stepped(fresh, 5)), "a restored state depends on what was before"


FORK = """
import os, sys, torch, envs
for threads in (1, 2):
    env = envs.make("InvertedPendulum-v5", 2, num_threads=threads)
    env.reset()
    child = os.fork()
    if child == 0:
        try:
            env.step(torch.zeros(2, 1))
            print("stepped", flush=True)
        except ValueError as error:
            print(error, flush=True)
        del env  # to free its threads would hang
        sys.exit(0)
    print("ended", os.waitpid(child, 0)[1], flush=True)
    env.step(torch.zeros(2, 1))
"""


def test_environment_in_a_forked_child_says_so_and_never_hangs():
    result = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, check=True)
    one_thread, ended, two_threads, also_ended = result.stdout.splitlines()
    assert (one_thread, ended, also_ended) == ("stepped", "ended 0", "ended 0")
    assert re.search("make it in the child process.*num_threads=1", two_threads)


OVERFLOWS = [
    pytest.param("cpu", "<size memory='12000'/>", {}, "<size memory=.../>", id="cpu"),
    pytest.param("warp", "", {"max_contacts": 2, "max_constraints": 99}, "max_contacts (it is 2)", id="contacts"),
    pytest.param("warp", "", {"max_contacts": 16, "max_constraints": 8}, "max_constraints (it is 8)", id="constraints"),
]


@pytest.mark.parametrize(("engine", "size", "options", "advice"), OVERFLOWS)
def test_overflow_is_reported_with_advice(engine: str, size: str, options: dict, advice: str):
    fields = ("qpos", "qacc")  # qacc, so that a reset runs all of mj_forward
    small = make(engine, fields=fields, xml=HEAP.format(size=size), **options)
    ample = make(
        engine, fields=fields, xml=HEAP.format(size=""), **({} if engine == "cpu" else {"max_constraints": 99})
    )
    qpos, qvel = (torch.as_tensor(value).expand(WORLDS, -1) for value in (small.model.qpos0, np.zeros(small.model.nv)))
    pressed = qpos.clone()
    pressed[:, 2:-1:7] -= 0.01  # slightly into the floor
    everywhere = torch.ones(WORLDS, dtype=torch.bool)
    for do in (
        lambda physics: physics.reset(everywhere, pressed.to(physics.dtype), qvel.to(physics.dtype)),
        lambda physics: physics.step(torch.zeros(WORLDS, 1), 2),
    ):
        for physics in (small, ample):
            do(physics)
        # Worlds share Warp's memory for contacts: if it is full, any world may have lost contacts.
        assert small.overflowed().all() if "contacts" in advice else small.overflowed().any()
        assert advice in small.overflow_advice
        assert not ample.overflowed().any()
    for physics in (small, ample):
        physics.reset(everywhere, (qpos + 1).to(physics.dtype), qvel.to(physics.dtype))  # in the air
        assert not physics.overflowed().any()


@both_engines
def test_unreadable_field_lists_readable_ones(engine: str):
    with pytest.raises(SaltusError, match=r"not readable fields of MjData.*: xpostion; readable are .*xpos, xquat"):
        make(engine, fields=("qpos", "xpostion"))

"""`draw_fields`, `scale` and `offset`: the numbers that they draw, and the changes that they refuse."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from env_helpers import MODEL, same_bits
from torch import Tensor

from envs import draw_fields, offset, scale, scale_masses
from saltus.errors import SaltusError


def plain_model() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(MODEL)


def draw(*changes: Any, model: mujoco.MjModel | None = None, count: int = 200) -> dict[str, Tensor]:
    return draw_fields(model or plain_model(), count, torch.Generator().manual_seed(0), *changes)


def test_scaled_masses_take_inertias_along():
    model, fields = plain_model(), draw(scale("body_mass", 0.5, 2))
    factor = fields["body_mass"][:, 1:] / torch.as_tensor(model.body_mass[1:])
    torch.testing.assert_close(
        fields["body_inertia"][:, 1:], factor[..., None] * torch.as_tensor(model.body_inertia[1:])
    )
    assert factor.min() >= 0.5
    assert factor.max() <= 2
    assert len(factor.flatten().unique()) == factor.numel(), "bodies and models draw factors of their own"
    assert fields.keys() == {"body_mass", "body_inertia"}
    assert draw(offset("body_mass", 0, 1)).keys() == {"body_mass"}


def test_scaled_gains_keep_the_targets_of_servos():
    model, fields = plain_model(), draw(scale("actuator_gainprm", 0.5, 2, names="servo"))
    gain, bias = fields["actuator_gainprm"][:, 1], fields["actuator_biasprm"][:, 1]
    torch.testing.assert_close(bias[:, 1], -gain[:, 0])
    assert len(gain[:, 0].unique()) == len(gain)
    assert same_bits(fields["actuator_gainprm"][0, 0], model.actuator_gainprm[0])


def test_factors_are_those_of_objects_and_offsets_those_of_numbers():
    model = plain_model()
    friction = draw(scale("geom_friction", 0.5, 2))["geom_friction"] / torch.as_tensor(model.geom_friction)
    torch.testing.assert_close(friction, friction[..., :1].expand_as(friction))
    assert len(friction[..., 0].flatten().unique()) == friction[..., 0].numel()
    shared = draw(scale("geom_friction", 0.5, 2, shared=True))["geom_friction"] / torch.as_tensor(model.geom_friction)
    torch.testing.assert_close(shared, shared[:, :1, :1].expand_as(shared))
    gravity = draw(offset("opt.gravity", -1, 1))["opt.gravity"] - torch.as_tensor(model.opt.gravity)
    assert len(gravity.flatten().unique()) == gravity.numel()
    moved = draw(offset("geom_friction", 1, 2, shared=True))["geom_friction"] - torch.as_tensor(model.geom_friction)
    torch.testing.assert_close(moved, moved[:, :1].expand_as(moved))
    assert len(moved[:, 0].flatten().unique()) == moved[:, 0].numel(), "one for each number, in each model"
    scaled = draw(scale("opt.gravity", 0.5, 2))["opt.gravity"]
    assert not scaled[:, :2].any()
    assert len(scaled[:, 2].unique()) == len(scaled)


def test_named_objects_change_and_others_do_not():
    model, fields = plain_model(), draw(offset("dof_armature", 1, 2, names="free"), scale("dof_damping", 2, 2, "slide"))
    assert (fields["dof_armature"][:, 2:] >= 1).all()
    assert not fields["dof_armature"][:, :2].any()
    assert same_bits(fields["dof_damping"][0], model.dof_damping * [2, 1, 1, 1, 1, 1, 1, 1])


def test_changes_of_one_field_apply_in_turn():
    fields = draw(scale("dof_damping", 3, 3, "slide"), offset("dof_damping", 1, 1), scale("dof_damping", 2, 2))
    np.testing.assert_allclose(fields["dof_damping"][0], [2 * (3 * 0.1 + 1), *[2] * 7])


def test_draws_are_uniform_and_the_generators():
    values = draw(scale("dof_damping", 1, 3, "slide"), count=4000)["dof_damping"][:, 0] / 0.1
    assert float(values.mean()) == pytest.approx(2, abs=4 * 2 / math.sqrt(12 * 4000))
    assert float(values.std()) == pytest.approx(2 / math.sqrt(12), rel=0.05)
    assert torch.equal(draw(scale("body_mass", 1, 2))["body_mass"], draw(scale("body_mass", 1, 2))["body_mass"])


MUSCLE = """<mujoco><worldbody><body><joint name="j" range="-1 1" limited="true"/><geom size=".1"/></body></worldbody>
<actuator><muscle name="biceps" joint="j" lengthrange="0.1 1"/></actuator></mujoco>"""


@pytest.mark.parametrize(
    ("make_change", "parts"),
    [
        (lambda: scale("body_mass", 2, 1), ["range is reversed", "write scale('body_mass', 1, 2)"]),
        (lambda: scale("dof_damping", -1, 1), ["scale('dof_damping', -1, 1)", "must not be negative"]),
        (lambda: scale("body_mass", 0, 1), ["scale('body_mass', 0, 1)", "could become 0", "raise the lower end"]),
        (lambda: scale("body_inertia", 0, 1, "pole"), ["body_inertia of body pole", "could become 0"]),
        (lambda: scale("geom_size", 0, 1), ["geom_size of geom", "could become 0"]),
        (lambda: offset("body_pos", 0, math.inf), ["offset('body_pos', 0, inf)", "two finite numbers"]),
        (lambda: offset("body_pos", "0", 1), ["offset('body_pos', '0', 1)", "two finite numbers"]),
        (lambda: scale("geom_friction", 1, 2, []), ["has names=[]", "leave names out for all"]),
        (lambda: scale("geom_friction", 1, 2, ["rod", ""]), ["names=['rod', '']", "name one object or more"]),
        (lambda: scale("geom_friction", 1, 2, 3), ["has names=3: it must"]),
        (lambda: scale("dof_damping", 1, 2, ["slide", "hinge", "slide"]), ["'slide']", "name slide once"]),
        (lambda: scale("body_mas", 1, 2), ["scale('body_mas', 1, 2)", "no such field; did you mean body_mass or "]),
        (lambda: scale("qpos", 1, 2), ["qpos is a field of MjData", "in `reset`"]),
        (lambda: scale("geom_type", 1, 2), ["geom_type holds indices, types or flags", "only floating-point"]),
        (lambda: scale("geom_rgba", 1, 2), ["geom_rgba holds float32 numbers", "only pictures"]),
        (lambda: scale("mesh_vert", 1, 2), ["all worlds share mesh_vert"]),
        (lambda: scale("opt.timestep", 1, 2), ["one timestep"]),
        (lambda: offset("dof_armature", -0.2, 1, "slide"), ["joint slide is 0, and could become -0.2", "lower end"]),
        (lambda: offset("body_mass", -0.1, 0.1), ["body_mass of body world is 0", "name other objects"]),
        (lambda: offset("opt.viscosity", -1, 1), ["opt.viscosity is 0, and could become -1, which"]),
        (lambda: offset("body_quat", 0, 1), ["unit quaternions"]),
        (lambda: scale("eq_solref", 1, 2), ["eq_solref is empty"]),
        (lambda: scale("geom_friction", 1, 2, "flor"), ["has no geom 'flor'", "floor"]),
        (lambda: scale("dof_damping", 1, 2, ["slide", "knee"]), ["has no joint 'knee'", "hinge"]),
        (lambda: scale("qpos_spring", 1, 2, "hinge"), ["names=['hinge']", "has no named objects"]),
        (lambda: scale("dof_armature", 1, 2), ["has no effect", "all 0", "offset"]),
    ],
)  # fmt: skip
def test_impossible_changes_are_refused(make_change: Callable[[], Any], parts: list[str]):
    with pytest.raises(SaltusError) as caught:
        draw(make_change())
    assert not [part for part in parts if part not in str(caught.value)], caught.value


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            (2, scale("body_mass", 0.8, 1.2)),
            "got a FieldChange as generator; expected draw_fields(self.model,",
        ),
        ((torch.Generator(), 2, scale("body_mass", 0.8, 1.2)), "got a int as generator"),
        ((2, torch.Generator(), "body_mass"), "got a str as a change; expected"),
        ((2.0, torch.Generator(), scale("body_mass", 0.8, 1.2)), "num_models of draw_fields is 2.0"),
        ((2, torch.Generator()), "got no changes, and would draw nothing"),
    ],
)
def test_arguments_of_wrong_types_are_refused(arguments: tuple[Any, ...], text: str):
    with pytest.raises(SaltusError, match=re.escape(text)):
        draw_fields(plain_model(), *arguments)
    for call in (lambda: draw_fields(torch.ones(2), *arguments), lambda: scale_masses(torch.ones(2), plain_model())):
        with pytest.raises(SaltusError, match="got a Tensor as model; expected"):
            call()


def test_masses_of_0_are_refused_by_one_rule():
    mass = float(plain_model().body("pole").mass[0])
    with pytest.raises(SaltusError, match=f"body_mass of body pole is {mass:g}, and could become 0, which has no"):
        draw(offset("body_mass", -mass, 0, "pole"))


def test_stiffness_and_damping_have_both_signs():
    fields = draw(offset("dof_damping", -2, -1), offset("jnt_stiffness", -2, -1), offset("tendon_damping", -2, -1))
    assert all((values < 0).all() for values in fields.values())


def test_negative_numbers_of_the_model_do_not_excuse_those_of_a_draw():
    model = plain_model()
    model.dof_armature[:2] = -1, 0.5
    with pytest.raises(SaltusError, match=r"dof_armature of joint hinge is 0\.5, and could become -0\.5"):
        draw(offset("dof_armature", -1, 0, "hinge"), model=model)
    with pytest.raises(SaltusError, match=r"dof_armature of joint slide is -1"):
        draw(offset("dof_armature", 0, 1), model=model)


def test_sizes_that_a_shape_does_not_have_may_be_anything():
    model = plain_model()
    spheres = [model.geom(i).name for i in range(model.ngeom) if model.geom_type[i] == mujoco.mjtGeom.mjGEOM_SPHERE]
    smallest = min(float(model.geom(name).size[0]) for name in spheres)
    assert (draw(offset("geom_size", -smallest / 2, 0, spheres))["geom_size"][:, :, 0] > 0).all()
    with pytest.raises(SaltusError, match="geom_size of geom"):
        draw(offset("geom_size", -smallest, 0, spheres))


def test_ends_of_a_range_may_be_numbers_of_numpy():
    low, high = np.float32(0.5), np.int64(2)
    assert scale("body_mass", low, high) == scale("body_mass", 0.5, 2)


def test_gains_of_muscles_are_refused():
    with pytest.raises(SaltusError, match="actuator biceps are not gains"):
        draw(scale("actuator_gainprm", 1, 2), model=mujoco.MjModel.from_xml_string(MUSCLE))

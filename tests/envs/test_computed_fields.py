"""Fields that mj_step does not compute: forces of the step, and refusals."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
import torch
from env_helpers import MODEL
from physics_helpers import WORLDS, make

from saltus.errors import SaltusError

# External forces

SPATIAL = '<spatial stiffness="9" springlength="0"><site site="tip"/><site site="hook"/></spatial></tendon>'
PULLED = MODEL.replace("</tendon>", SPATIAL).replace("<worldbody>", '<worldbody><site name="hook" pos="1 1 1"/>')


@pytest.mark.parametrize(("xml", "computed"), [(MODEL, [1]), (PULLED, [0, 1, 2, 3])], ids=["pushed", "pulled"])
def test_external_forces_of_worlds_without_contacts(
    xml: str, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    physics = make("cpu", fields=("qpos", "cfrc_ext"), xml=xml)
    push = torch.zeros(WORLDS, physics.model.nbody, 6, dtype=torch.float64)
    push[1, -1] = torch.arange(6)
    called, function = list[int](), mujoco.mj_rnePostConstraint

    def count(model: mujoco.MjModel, data: mujoco.MjData) -> None:
        called.append(1)
        function(model, data)

    monkeypatch.setattr(mujoco, "mj_rnePostConstraint", count)
    physics.step(torch.zeros(WORLDS, 2), 3, {"xfrc_applied": push})
    assert len(called) == len(computed), "worlds without such forces cost nothing"
    for world in range(WORLDS):
        data = mujoco.MjData(physics.model)
        data.xfrc_applied[:] = push[world]
        mujoco.mj_step(physics.model, data, 3)
        assert not data.ncon
        function(physics.model, data)
        assert physics.read()["cfrc_ext"][world].tolist() == data.cfrc_ext.tolist()
        assert data.cfrc_ext.any() == (world in computed)


# Fields that stay zero

UNCOMPUTED = [
    ("subtree_linvel", "", 'for subtree_linvel add <sensor><subtreelinvel body="..."/></sensor>'),
    ("subtree_angmom", "", 'for subtree_angmom add <sensor><subtreeangmom body="..."/></sensor>'),
    ("energy", "", 'for energy add <option><flag energy="enable"/></option>'),
    ("sensordata", '<flag sensor="disable"/>', 'for sensordata remove <flag sensor="disable"/>'),
]


def with_flag(flag: str) -> str:
    return MODEL.replace('<option timestep="0.005"/>', f'<option timestep="0.005">{flag}</option>')


@pytest.mark.parametrize("engine", ["cpu", "warp"])
@pytest.mark.parametrize(("field", "flag", "advice"), UNCOMPUTED)
def test_field_that_steps_do_not_compute_is_refused_with_the_way_to_get_it(
    engine: str, field: str, flag: str, advice: str
) -> None:
    with pytest.raises(SaltusError) as caught:
        make(engine, fields=("qpos", field), xml=with_flag(flag))
    assert str(caught.value) == (
        f"steps of this model do not compute {field}: the values would be zeros. Remove them from `fields`, or change "
        f"the model: {advice}"
    )


@pytest.mark.parametrize("fields", [("qDeriv", "qLU"), ("qfrc_inverse",)], ids=["integrator", "inverse"])
def test_field_that_no_change_makes_readable_is_refused(fields: tuple[str, ...]) -> None:
    names = ", ".join(fields)
    with pytest.raises(SaltusError, match=f"do not compute {names}: the values would be zeros.* from `fields`$"):
        make("cpu", fields=("qpos", *fields), xml=with_flag('<flag fwdinv="enable"/>'))


COMPUTED = [
    (with_flag('<flag energy="enable"/>'), ("energy",)),
    (MODEL.replace("<sensor>", '<sensor><subtreelinvel body="cart"/>'), ("subtree_linvel", "subtree_angmom")),
    (MODEL.replace("<sensor>", "<sensor><e_kinetic/><e_potential/>"), ("energy",)),
    (MODEL.replace('timestep="0.005"', 'timestep="0.005" integrator="implicit"'), ("qDeriv", "qLU")),
    ("<mujoco><worldbody><body><freejoint/><geom size='1'/></body><geom size='1'/></worldbody></mujoco>", ("nisland",)),
]


@pytest.mark.parametrize(("xml", "fields"), COMPUTED)
def test_fields_that_need_a_flag_or_a_sensor_equal_mujocos(xml: str, fields: tuple[str, ...]) -> None:
    physics = make("cpu", fields=fields, xml=xml)
    physics.step(torch.ones(WORLDS, physics.model.nu), 3)
    data = mujoco.MjData(physics.model)
    data.ctrl[:] = 1
    mujoco.mj_step(mujoco.MjModel.from_xml_string(xml), data, 3)
    for field, values in physics.read().items():
        assert np.any(getattr(data, field))
        assert np.array_equal(values[1].numpy(), getattr(data, field)), field

"""Fields that mj_step does not compute: forces of the step, and refusals."""

from __future__ import annotations

import mujoco
import pytest
import torch
from env_helpers import MODEL
from physics_helpers import WORLDS, make

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

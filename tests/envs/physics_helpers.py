"""Small simulations on both engines."""

from __future__ import annotations

from typing import Any

import mujoco
from env_helpers import MODEL

from envs.physics import Physics
from envs.physics.cpu import CpuPhysics
from envs.physics.warp import WarpPhysics

FIELDS = ("qpos", "qvel", "xpos", "xmat", "sensordata", "cfrc_ext", "time")
SKIP, WORLDS = 3, 4


def make(
    engine: str, fields: tuple[str, ...] = FIELDS, recompute_derived: bool = False, xml: str = MODEL, **options: Any
) -> Physics:
    model = mujoco.MjModel.from_xml_string(xml)
    if engine == "cpu":
        return CpuPhysics(model, WORLDS, fields, recompute_derived, **options)
    options = {"max_contacts": 16, "max_constraints": 48, **options}
    return WarpPhysics(model, WORLDS, fields, recompute_derived, device="cpu", **options)


def flagged(flag: str) -> str:
    return MODEL.replace(
        '<option timestep="0.005"/>',
        f'<option timestep="0.005" integrator="discrete"><flag {flag}="enable"/></option>'
        if flag == "ipc"
        else f'<option timestep="0.005"><flag {flag}="enable"/></option>',
    )


# Spheres on a floor, with one contact each.
HEAP = (
    "<mujoco>{size}<worldbody><geom type='plane' size='5 5 .1'/>"
    + "".join(f"<body pos='{x} 0 .1'><freejoint/><geom size='.1' mass='1'/></body>" for x in (0, 0.5, 1, 1.5, 2, 2.5))
    + "<body pos='0 1 1'><joint name='j'/><geom size='.1'/></body></worldbody>"
    "<actuator><motor joint='j' ctrlrange='-1 1'/></actuator></mujoco>"
)

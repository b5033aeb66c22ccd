"""Warp's limits: models and flags that it lacks, memory, capacity. On the CPU."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from arm_task import MODEL as WELDED
from env_helpers import MODEL, overwrite
from physics_helpers import HEAP, WORLDS, flagged, make
from torch import Tensor

from envs.physics import Physics, warp_model
from envs.physics.warp_fields import readable_fields
from envs.physics.warp_graph import WarpGraph
from envs.physics.warp_memory import ccd_workspace_bytes, estimate_capacity, num_bytes
from saltus.device import memory
from saltus.errors import SaltusError


def without_warnings(call: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call()


def test_pgs_becomes_newton_with_one_warning():
    xml = MODEL.replace('timestep="0.005"', 'timestep="0.005" solver="PGS"')
    with pytest.warns(
        UserWarning, match=r"PGS solver, which Warp does not have: Newton's is used.*solver newton"
    ) as caught:
        physics = make("warp", xml=xml)
    assert len([one for one in caught if "PGS" in str(one.message)]) == 1
    assert physics.model.opt.solver == mujoco.mjtSolver.mjSOL_NEWTON
    without_warnings(lambda: make("warp"))


def test_model_that_warp_cannot_simulate_is_refused_with_the_reason():
    xml = MODEL.replace('timestep="0.005"', 'timestep="0.005" jacobian="dense"')
    many = "".join("<body><joint type='slide' axis='1 0 0'/><geom size='.1' mass='1'/></body>" for _ in range(70))
    xml = xml.replace("</worldbody>", many + "</worldbody>")
    with pytest.raises(SaltusError, match=r"Warp cannot simulate this model: Dense is unsupported.*physics cpu"):
        make("warp", xml=xml)


@pytest.mark.parametrize(("flag", "message"), [("sleep", "enables sleeping.*remove"), ("ipc", "does not have IPC")])
@pytest.mark.parametrize("memory", [{}, {"max_contacts": 0, "max_constraints": 0}], ids=["given", "estimated"])
def test_flag_that_warp_lacks_is_refused_before_the_rollout(flag: str, message: str, memory: dict[str, int]):
    with pytest.raises(SaltusError, match=f"{message}.*physics cpu"):
        make("warp", xml=flagged(flag), **memory)


def test_rollout_in_which_mujoco_raises_names_the_remedies():
    box = "<body pos='0 0 {}'><freejoint/><geom type='box' size='.1 .1 .1'/></body>"
    heap = "".join(box.format(1 + 0.25 * i) for i in range(9))
    xml = HEAP.format(size="<size memory='30K'/>").replace("</worldbody>", heap + "</worldbody>")
    with pytest.raises(SaltusError, match=r"rollout .* failed\. .*stack overflow.*<size memory.*max_contacts"):
        make("warp", xml=xml, max_contacts=0, max_constraints=0)


def test_model_field_that_cannot_differ_between_worlds_is_named():
    with pytest.raises(SaltusError, match=r"cannot differ between worlds in Warp: opt.*body_mass"):
        make("warp", model_fields={"opt": torch.zeros(WORLDS)})


def test_worlds_that_exceed_memory_are_refused_before_allocation(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    from envs.physics import warp as module

    made = []
    make_data = module.modules()[1].make_data
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1_000)
    monkeypatch.setattr(
        module.modules()[1], "make_data", lambda *a, **k: made.append(k["nworld"]) or make_data(*a, **k)
    )
    caplog.set_level("INFO", "saltus")
    with pytest.raises(MemoryError, match=r"4 worlds need .* GB and cpu has 0.00 GB free: lower num_envs.*48"):
        make("warp")
    assert re.match(
        r"memory on cpu: physics: 4 worlds, \d+ MB.*--num-envs.*--max-contacts 16.*--max-constraints 48",
        caplog.messages[0],
    )
    assert made == [1, 2], "only to measure one and two worlds"
    free = iter([1_000, 10**12])  # unreferenced memory is released before the check fails
    monkeypatch.setattr(memory, "free_bytes", lambda device: next(free))
    make("warp")
    assert next(free, None) is None


def test_failed_capture_of_a_warp_graph_is_retried(monkeypatch: pytest.MonkeyPatch):
    done, captures = [], iter([RuntimeError("no"), "graph"])

    def capture(self: object) -> str:
        one = next(captures)
        if isinstance(one, Exception):
            raise one
        return one

    monkeypatch.setattr(WarpGraph, "_capture", capture)
    monkeypatch.setattr(warp_model.modules()[0], "capture_launch", done.append)
    work = WarpGraph(lambda: done.append("work"), torch.device("cuda"))
    work()
    with pytest.raises(RuntimeError, match="no"):
        work()
    work()
    work()
    assert done == ["work", "graph", "graph"]


# Two touching bodies of the same shape.
SHAPES = (
    "<mujoco><asset><mesh name='m' vertex='{vertices}'/></asset>"
    "<worldbody><geom type='plane' size='5 5 .1'/>"
    + "".join(f"<body pos='{x} 0 .2'><freejoint/><geom name='g{x}' {{shape}}/></body>" for x in (0, 0.15))
    + "</worldbody>{more}</mujoco>"
)
PRISM = " ".join(
    f"{0.1 * math.cos(angle):.5f} {0.1 * math.sin(angle):.5f} {z}"
    for z in (-0.1, 0.1)
    for angle in np.linspace(0, 2 * math.pi, 40, endpoint=False)
)
APART = "type='box' size='.1 .1 .1' contype='0' conaffinity='0'"


@pytest.mark.parametrize(
    ("shape", "more", "convex"),
    [
        ("size='.1'", "", False),
        ("type='capsule' size='.1 .1'", "", False),
        ("type='box' size='.1 .1 .1'", "", True),
        ("type='cylinder' size='.1 .1'", "", True),
        ("type='ellipsoid' size='.1 .1 .1'", "", True),
        ("type='mesh' mesh='m'", "", True),
        (APART, "", False),
        (APART, "<contact><pair geom1='g0' geom2='g0.15'/></contact>", True),
        (APART, "<sensor><distance geom1='g0' geom2='g0.15'/></sensor>", True),
    ],
)
def test_workspace_stays_below_the_logged_bound(
    shape: str, more: str, convex: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    from warp._src.context import CpuDefaultAllocator

    held: dict[int, int] = {}
    most = [0]
    original_allocate, original_deallocate = CpuDefaultAllocator.allocate, CpuDefaultAllocator.deallocate

    def allocate(self: CpuDefaultAllocator, size: int) -> int:
        address = original_allocate(self, size)
        held[address] = size
        most[0] = max(most[0], sum(held.values()))
        return address

    def deallocate(self: CpuDefaultAllocator, address: int, size: int) -> None:
        held.pop(address, None)
        original_deallocate(self, address, size)

    caplog.set_level("INFO", "saltus")
    xml = SHAPES.format(shape=shape, more=more, vertices=PRISM)
    physics = make("warp", fields=("qpos",), xml=xml, max_contacts=24, max_constraints=96)
    monkeypatch.setattr(CpuDefaultAllocator, "allocate", allocate)
    monkeypatch.setattr(CpuDefaultAllocator, "deallocate", deallocate)
    physics.step(torch.zeros(WORLDS, 0), 1)
    assert physics.working_bytes == physics.num_bytes + WORLDS * 24 * ccd_workspace_bytes(physics.model)
    assert f"at most {physics.working_bytes / 1e6:,.0f} MB more" in caplog.messages[0]
    assert 0 < most[0] <= physics.working_bytes
    assert (ccd_workspace_bytes(physics.model) > 0) == convex


def test_num_bytes_equals_allocated_bytes():
    physics = make("warp")
    allocated = {}

    def collect(data: Any) -> None:
        for value in vars(data).values():
            if type(value).__name__ in ("Contact", "Constraint"):
                collect(value)
            elif hasattr(value, "capacity"):
                allocated[id(value)] = value.capacity

    collect(physics._data)
    assert physics.num_bytes == sum(allocated.values())
    assert physics.num_bytes == num_bytes(physics.model, WORLDS, 16, 48)


def test_every_field_that_warp_lists_can_be_viewed() -> None:
    physics = make("warp")
    assert len(readable_fields()) > 40
    for field in readable_fields():
        assert physics._view(field).shape == (WORLDS, *np.shape(getattr(physics._mj_data, field)))


@pytest.mark.parametrize("fields", [("qpos", "qvel"), ("qpos", "qvel", "qacc")], ids=["state", "all"])
def test_welds_read_no_velocity_of_another_episode(fields: tuple[str, ...]):
    """Warp's welds read velocities of the step before: a reset replaces them, in the worlds that it resets alone."""
    physics, undisturbed, new = (make("warp", fields, xml=WELDED, max_constraints=64) for _ in range(3))
    qpos, qvel = (
        torch.tensor(values).float().repeat(WORLDS, 1) for values in ([0.4] * 2 + [0] * 3 + [1] + [0] * 3, [0.5] * 8)
    )
    everywhere, mask = torch.ones(WORLDS, dtype=torch.bool), torch.tensor([False, True, False, True])

    def steps(one: Physics, count: int) -> dict[str, Tensor]:
        for _ in range(count):
            one.step(torch.full((WORLDS, 2), 0.5), 2)
        return one.read()

    for one in (physics, undisturbed):
        steps(one, 5)
    overwrite(physics, "qvel", np.nan, world=1)
    physics.step(torch.zeros(WORLDS, 2), 2)
    undisturbed.step(torch.zeros(WORLDS, 2), 2)
    assert physics.unstable().tolist() == [False, True, False, False]
    physics.reset(mask, qpos, qvel)
    new.reset(everywhere, qpos, qvel)
    assert not physics.unstable().any()
    found, others, fresh = (steps(one, 3) for one in (physics, undisturbed, new))
    for field in fields:
        assert torch.equal(found[field][mask], fresh[field][mask]), "something of the earlier episode is left"
        assert torch.equal(found[field][~mask], others[field][~mask]), "the reset of other worlds changed the motion"
    state = physics.get_state()
    physics.set_state(state.exclude("cvel", "cdof_dot"))  # as of saltus 0.5.0
    assert physics.get_state()["cvel"].count_nonzero() == 0


def test_estimated_capacity_suffices_for_bodies_on_the_floor():
    model = mujoco.MjModel.from_xml_string(HEAP.format(size=""))
    contacts, constraints = estimate_capacity(model)
    assert contacts >= 2 * 6
    assert constraints >= 2 * 6 * 4
    assert estimate_capacity(model) == (contacts, constraints)
    physics = make("warp", fields=("qpos",), xml=HEAP.format(size=""), max_contacts=0, max_constraints=0)
    assert (physics.max_contacts, physics.max_constraints) == (contacts, constraints)
    for _ in range(20):
        physics.step(torch.ones(WORLDS, 1), 5)
        assert not physics.overflowed().any()


def test_missing_warp_or_cuda_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch):

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SaltusError, match=r"torch finds no CUDA device. Choose physics cpu"):
        warp_model.require_warp(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(warp_model.modules()[0], "is_cuda_available", lambda: False)
    with pytest.raises(
        ValueError, match=r"torch finds the GPU but Warp does not.*Update the driver, or choose physics cpu"
    ):
        warp_model.require_warp(torch.device("cuda"))
    monkeypatch.setattr(warp_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SaltusError, match=r"needs warp and mujoco_warp: pip install .* '\.\[warp\]', or"):
        warp_model.require_warp(torch.device("cpu"))

"""Named access to a state, and which step its derived fields describe."""

from __future__ import annotations

from collections.abc import Iterator

import mujoco
import numpy as np
import pytest
import torch
from env_helpers import MODEL, Actions, CartBall, equal, qpos_qvel, same_bits, spy
from task_helpers import ACCELERATION, FIELDS, POSITION, VELOCITY
from torch import Tensor

import envs
from envs import BatchEnv, State, Task
from envs.state import NameIndex


class Recomputed(CartBall):
    """Reads all fields, of the state after the step."""

    fields = FIELDS

    def terminated(self, state: State) -> Tensor:
        return torch.zeros(len(state), dtype=torch.bool)


class Lagging(Recomputed):
    """Reads all fields, as mj_step leaves them."""

    recompute_derived = False


class Reference:
    """One world simulated by mj_step, from the same initial state."""

    def __init__(self, env: BatchEnv, world: int):
        self._frame_skip = env.task.frame_skip
        self.model = env.physics.model
        self.data = mujoco.MjData(self.model)
        qpos, qvel = qpos_qvel(env)
        self.data.qpos[:], self.data.qvel[:] = qpos[world], qvel[world]
        mujoco.mj_forward(self.model, self.data)

    def step(self, ctrl: Tensor) -> None:
        self.data.ctrl[:] = ctrl
        mujoco.mj_step(self.model, self.data, self._frame_skip)
        mujoco.mj_rnePostConstraint(self.model, self.data)

    def forwarded(self) -> mujoco.MjData:
        """A new MjData in the same state, after mj_forward."""
        data = mujoco.MjData(self.model)
        data.qpos[:], data.qvel[:], data.ctrl[:] = self.data.qpos, self.data.qvel, self.data.ctrl
        data.time = self.data.time
        mujoco.mj_forward(self.model, data)
        return data


def walk(task: type[Task], steps: int = 60) -> Iterator[tuple[State, list[Reference]]]:
    """Step an env and references together; yield the state that the task observed, and the references."""
    env = envs.make(task, 3, seed=2, normalized_actions=False)
    shown = spy(env.task, "observation")
    env.reset()
    references = [Reference(env, world) for world in range(3)]
    draw = Actions(env)
    for _ in range(steps):
        action = draw()
        env.step(action)
        for world, reference in enumerate(references):
            reference.step(action[world])
        yield shown[-1][0][0], references


def test_lagging_fields_equal_those_after_mj_step():
    contacts = 0
    for state, references in walk(Lagging):
        for world, reference in enumerate(references):
            contacts += reference.data.ncon
            for field in FIELDS:
                theirs = np.asarray(getattr(reference.data, field), dtype=np.float64)
                assert same_bits(getattr(state, field)[world], theirs), field
    assert contacts > 100


@pytest.mark.parametrize("field", ["qpos", "qvel", "ctrl", "time", *POSITION, *VELOCITY, "actuator_length"])
def test_recomputed_fields_describe_the_new_state(field: str):
    differs = False
    for state, references in walk(Recomputed, steps=30):
        for world, reference in enumerate(references):
            ours = getattr(state, field)[world]
            assert same_bits(ours, np.asarray(getattr(reference.forwarded(), field), dtype=np.float64))
            differs |= not same_bits(ours, np.asarray(getattr(reference.data, field), dtype=np.float64))
    assert differs == (field not in ("qpos", "qvel", "ctrl", "time")), "lagging fields would pass this test, too"


@pytest.mark.parametrize("field", ACCELERATION)
def test_acceleration_fields_describe_the_last_physics_step(field: str):
    contacts = 0
    for state, references in walk(Recomputed):
        for world, reference in enumerate(references):
            contacts += reference.data.ncon
            assert same_bits(getattr(state, field)[world], getattr(reference.data, field))
    assert contacts > 100


def test_accelerometer_describes_the_last_physics_step():
    for state, references in walk(Recomputed, steps=20):
        for world, reference in enumerate(references):
            assert same_bits(state.sensor("imu")[world], reference.data.sensor("imu").data)


def test_recompute_derived_does_not_change_the_motion():
    one, other = envs.make(Recomputed, 3, seed=1), envs.make(Lagging, 3, seed=1)
    draw = Actions(one)
    one.reset()
    other.reset()
    for _ in range(50):
        action = draw()
        one.step(action)
        other.step(action)
        for ours, theirs in zip(qpos_qvel(one), qpos_qvel(other), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("kind", "name", "attribute", "shape"),
    [
        ("body", "cart", "xpos", (3,)),
        ("body", "ball", "xquat", (4,)),
        ("body", "pole", "xipos", (3,)),
        ("body", "pole", "cvel", (6,)),
        ("joint", "slide", "qpos", (1,)),
        ("joint", "hinge", "qvel", (1,)),
        ("joint", "free", "qpos", (7,)),
        ("joint", "free", "qvel", (6,)),
        ("geom", "sphere", "xpos", (3,)),
        ("geom", "rod", "xmat", (9,)),
        ("site", "tip", "xpos", (3,)),
        ("site", "tip", "xmat", (9,)),
        ("actuator", "push", "ctrl", (1,)),
        ("actuator", "servo", "force", (1,)),
        ("actuator", "servo", "length", (1,)),
        ("actuator", "push", "velocity", (1,)),
        ("tendon", "cable", "length", (1,)),
        ("tendon", "cable", "velocity", (1,)),
        ("sensor", "tip_position", "data", (3,)),
        ("sensor", "hinge_velocity", "data", (1,)),
        ("sensor", "imu", "data", (3,)),
    ],
)
def test_named_access_equals_mujocos(kind: str, name: str, attribute: str, shape: tuple[int, ...]):
    for state, references in walk(Lagging, steps=8):
        named = getattr(state, kind)(name)
        ours = named if kind == "sensor" else getattr(named, attribute)
        assert ours.shape == (3, *shape)
        for world, reference in enumerate(references):
            theirs = getattr(getattr(reference.data, kind)(name), attribute)
            assert same_bits(ours[world], np.reshape(theirs, shape)), world


def test_names_are_located_without_a_search_of_mjdata():
    index = NameIndex(mujoco.MjModel.from_xml_string(MODEL), ("xpos",))
    data, read = index._data, list[str]()

    class Recorded:
        def __dir__(self) -> list[str]:
            return dir(data)

        def __getattr__(self, attribute: str) -> object:
            read.append(attribute)
            return getattr(data, attribute)

    index._data = Recorded()
    assert index.locate("body", "ball", "xpos") == ("xpos", 9, (3,))
    assert index.locate("actuator", "servo", "force") == ("actuator_force", 1, (1,))
    assert read == ["body", "actuator"]


def test_initial_states_have_all_fields_computed():
    for task in (Recomputed, Lagging):
        env = envs.make(task, 3)
        shown = spy(env.task, "observation")
        env.reset()
        for world in range(3):
            data = Reference(env, world).data
            for field in (*POSITION, *VELOCITY, "qacc", "sensordata"):
                assert same_bits(getattr(shown[-1][0][0], field)[world], getattr(data, field)), field


def test_mj_data_is_one_world_after_mj_forward():
    env = envs.make(CartBall, 3, seed=4)
    env.reset()
    env.step(Actions(env)())
    before = env.get_state()
    qpos, _ = qpos_qvel(env)
    for world in range(3):
        data = env.physics.mj_data(world)
        assert same_bits(qpos[world], data.qpos)
        theirs = mujoco.MjData(env.physics.model)
        theirs.qpos[:] = qpos[world]
        mujoco.mj_kinematics(env.physics.model, theirs)
        assert same_bits(data.xpos, theirs.xpos)
        data.qpos[:] = 99
    assert equal(env.get_state(), before)

"""Plan: the choices that a new task makes for a model."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from envs.home import default_data
from envs.object_names import find_control, one_line
from envs.validation import bounds_fault
from saltus.errors import SaltusError

CONTROL_RATE = 50.0  # Hz
FALL_SECONDS = 2.0  # in which a model that starts above the ground lands
FALL_STEPS = 4000  # at most
MOCAP_STEP = 0.02  # of the model's extent, or of 1 m: 1 m/s at 50 Hz
SERVO_SHARE = 0.3  # of half a servo's range, on both sides of its home position
_SCALAR = (mujoco.mjtJoint.mjJNT_SLIDE, mujoco.mjtJoint.mjJNT_HINGE)


@dataclass(frozen=True)
class Travel:
    """The coordinates in which a model moves over the ground.

    Attributes:
        dof: index in qvel of the forward velocity.
        start, stop: range in qpos of the coordinates, which the policy need not see.
        min_height: height of a free joint, in m, below which an episode ends; 0: never.
    """

    dof: int
    start: int
    stop: int
    min_height: float = 0.0


@dataclass(frozen=True)
class Plan:
    """The choices that a new task makes for a model.

    Attributes:
        model: the compiled model.
        frame_skip: physics steps per action.
        home: name or index of the first keyframe; None: the model has none.
        travel: how the model moves over the ground; None: it stays in its place.
        goal: for a model that stays: index of the body whose subtree's centre of mass is to move, and of the axis.
        bounds: (nu, 2) lower and upper ends of controls.
        unbounded: indices of controls whose bounds are guesses.
        servo_scale: actions are offsets of this size from the controls of `home`; None: actions are controls.
        mocap: indices of the mocap bodies that actions move.
        mocap_step, mocap_reach: in m: the longest move per action, and the largest coordinate.
    """

    model: mujoco.MjModel
    frame_skip: int
    home: str | int | None
    travel: Travel | None
    goal: tuple[int, int]
    bounds: np.ndarray
    unbounded: list[int]
    servo_scale: float | None
    mocap: list[int]
    mocap_step: float
    mocap_reach: float


def make_plan(model: mujoco.MjModel, name: str) -> Plan:
    """Choose what a task of `model` does.

    Args:
        model: the compiled model.
        name: of the task's class, for messages.

    Raises:
        SaltusError: nothing in the model can move or be controlled, or its physics fails.
    """
    if model.nv == 0:
        raise SaltusError("the model has no joints, so nothing in it moves: give its bodies joints")
    if model.nu == 0 and model.nmocap == 0:
        raise SaltusError(
            'the model has nothing to control: give it actuators, as in <actuator><motor joint="..." '
            'ctrlrange="-1 1"/></actuator>, or a mocap body. A URDF has no actuators: save it as MJCF, and add some'
        )
    home = (model.key(0).name or 0) if model.nkey else None
    try:
        data = default_data(model, name, home, 0)
        mujoco.mj_forward(model, data)
        pulled, mocap = _mocap_bodies(model)
        dofs = _actuated_dofs(model, data)
        trees = list(dict.fromkeys(int(model.dof_treeid[dof]) for dof in dofs))
        held = {int(model.body_treeid[body]) for body in pulled}
        travel = _find_travel(model, data, dofs, [tree for tree in trees if tree not in held])
        goal = _choose_goal(model, data, [*trees, *held])
    except mujoco.FatalError as error:
        raise SaltusError(f"MuJoCo cannot step the model: {one_line(str(error))}") from error
    extent = min(float(model.stat.extent), 1.0)
    unbounded = [index for index in range(model.nu) if bounds_fault(model, index)]
    bounds = np.array(model.actuator_ctrlrange)
    for index in unbounded:
        bounds[index] = _guess_bounds(model, index)
    return Plan(
        model, max(1, round(1 / (CONTROL_RATE * model.opt.timestep))), home, travel, goal, bounds, unbounded,
        _servo_scale(model, data, bounds), mocap, rounded(MOCAP_STEP * extent),
        rounded(float(np.abs(data.mocap_pos).max(initial=0)) + extent),
    )  # fmt: skip


def rounded(value: float) -> float:
    """The value with two significant digits."""
    return float(f"{value:.2g}")


def _mocap_bodies(model: mujoco.MjModel) -> tuple[list[int], list[int]]:
    """The bodies that mocap bodies pull by equality constraints, and the mocap indices of those that actions move.

    Mocap bodies that pull nothing are often goals: actions move them only in a model that has nothing else to control.
    """
    pulled, moving = [], set()
    for index in range(model.neq):
        if mujoco.mjtEq(model.eq_type[index]) not in (mujoco.mjtEq.mjEQ_WELD, mujoco.mjtEq.mjEQ_CONNECT):
            continue
        ends = [int(model.eq_obj1id[index]), int(model.eq_obj2id[index])]
        if model.eq_objtype[index] == mujoco.mjtObj.mjOBJ_SITE:
            ends = [int(model.site_bodyid[site]) for site in ends]
        for one, other in (ends, ends[::-1]):
            if model.body_mocapid[one] >= 0:
                moving.add(int(model.body_mocapid[one]))
                pulled.append(other)
    if not moving and model.nu == 0:
        moving = set(range(model.nmocap))
    return pulled, sorted(moving)


def _actuated_dofs(model: mujoco.MjModel, data: mujoco.MjData) -> list[int]:
    """Degrees of freedom that actuators with controls act on."""
    found: set[int] = set()
    for actuator in np.flatnonzero(model.actuator_ctrlnum):
        first = model.actuator_outadr[actuator]
        for row in range(first, first + model.actuator_outnum[actuator]):
            start = data.moment_rowadr[row]
            found |= {int(dof) for dof in data.moment_colind[start : start + data.moment_rownnz[row]]}
    return sorted(found)


def _find_travel(model: mujoco.MjModel, data: mujoco.MjData, dofs: list[int], trees: list[int]) -> Travel | None:
    """The free joint, or the horizontal slides without actuators, at the root of one of the trees."""
    for tree in trees:
        first = int(model.dof_jntid[model.tree_dofadr[tree]])
        start, dof = int(model.jnt_qposadr[first]), int(model.jnt_dofadr[first])
        if model.jnt_type[first] == mujoco.mjtJoint.mjJNT_FREE:
            height = _height_on_ground(model, data, start + 2, tree)
            return Travel(dof, start, start + 2, rounded(0.5 * height) if height > 0 else 0.0)
        stop = first
        while stop < model.njnt and _is_planar_root(model, data, stop, tree, dofs):
            stop += 1
        if stop > first:
            return Travel(dof, start, start + stop - first)
    return None


def _is_planar_root(model: mujoco.MjModel, data: mujoco.MjData, joint: int, tree: int, dofs: list[int]) -> bool:
    dof = int(model.jnt_dofadr[joint])
    return bool(
        model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_SLIDE
        and model.dof_treeid[dof] == tree
        and not model.jnt_limited[joint]
        and dof not in dofs
        and abs(data.xaxis[joint, 2]) < 1e-6
    )


def _height_on_ground(model: mujoco.MjModel, data: mujoco.MjData, index: int, tree: int) -> float:
    """qpos[index], a height, when the tree first touches the world; at the start if it does not."""
    start = float(data.qpos[index])
    falling = mujoco.MjData(model)
    mujoco.mj_copyData(falling, model, data)
    for _ in range(min(int(FALL_SECONDS / model.opt.timestep), FALL_STEPS)):
        geoms = falling.contact.geom
        bodies = model.geom_bodyid[geoms[(geoms >= 0).all(axis=1)]]
        on_world, of_tree = model.body_weldid[bodies] == 0, model.body_treeid[bodies] == tree
        if (on_world.any(axis=1) & of_tree.any(axis=1)).any():
            return min(start, float(falling.qpos[index]))
        mujoco.mj_step(model, falling)
    return start


def _choose_goal(model: mujoco.MjModel, data: mujoco.MjData, trees: list[int]) -> tuple[int, int]:
    """The root of the first tree that is controlled, and an axis along which its centre of mass can move."""
    tree = next((tree for tree in trees if tree >= 0), 0)
    body = int(model.dof_bodyid[model.tree_dofadr[tree]])
    bent = mujoco.MjData(model)
    bent.qpos[:] = data.qpos
    mujoco.mj_integratePos(model, bent.qpos, np.linspace(0.3, 0.5, model.nv), 1.0)  # no pose of symmetry
    mujoco.mj_forward(model, bent)
    jacobian = np.zeros((3, model.nv))
    mujoco.mj_jacSubtreeCom(model, bent, jacobian, body)
    moves = np.abs(jacobian).max(axis=1) > 1e-6
    return body, next((axis for axis in (2, 0, 1) if moves[axis]), 2)


def _is_servo(model: mujoco.MjModel, control: int) -> bool:
    """Whether a control is the position that its actuator pulls to."""
    index, place = find_control(model, control)
    gain, bias = model.actuator_gainprm[index], model.actuator_biasprm[index]
    kinds = (model.actuator_gaintype[index], model.actuator_biastype[index])
    if model.actuator_dyntype[index] == mujoco.mjtDyn.mjDYN_INTEGRATOR:  # its control is the position's rate
        return False
    if model.actuator_gaintype[index] == mujoco.mjtGain.mjGAIN_PID:
        return mujoco.mj_actuatorInputName(model, index, place) == "pos"
    return kinds == (mujoco.mjtGain.mjGAIN_FIXED, mujoco.mjtBias.mjBIAS_AFFINE) and gain[0] == -bias[1] > 0


def _guess_bounds(model: mujoco.MjModel, control: int) -> tuple[float, float]:
    """Bounds for a control without: for a servo the range of its hinge, slide or tendon, else -1 and 1."""
    index, _ = find_control(model, control)
    limits = _range_of_target(model, index)
    if limits is not None and _is_servo(model, control):
        ends = sorted(model.actuator_gear[model.actuator_outadr[index], 0] * limits)
        low, high = (float(f"{end:.4g}") for end in ends)
        if low < high:  # a gear may be 0
            return low, high
    return -1.0, 1.0


def _range_of_target(model: mujoco.MjModel, actuator: int) -> np.ndarray | None:
    """The limits of the hinge, slide or tendon that an actuator moves; None if it has none."""
    target, transmission = int(model.actuator_trnid[actuator, 0]), mujoco.mjtTrn(model.actuator_trntype[actuator])
    if transmission == mujoco.mjtTrn.mjTRN_TENDON:
        return model.tendon_range[target] if model.tendon_limited[target] else None
    if transmission != mujoco.mjtTrn.mjTRN_JOINT or mujoco.mjtJoint(model.jnt_type[target]) not in _SCALAR:
        return None
    return model.jnt_range[target] if model.jnt_limited[target] else None


def _servo_scale(model: mujoco.MjModel, data: mujoco.MjData, bounds: np.ndarray) -> float | None:
    """The size of offsets from the controls of a keyframe, if all are positions of servos and it has any."""
    if not (data.ctrl.any() and all(_is_servo(model, index) for index in range(model.nu))):
        return None
    return rounded(SERVO_SHARE * float(np.median(bounds[:, 1] - bounds[:, 0])) / 2)

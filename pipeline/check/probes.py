"""Probes: what a task's model and functions do that a rollout does not show."""

from __future__ import annotations

import math
import warnings

import mujoco
import torch
from tensordict import TensorDict
from torch import Tensor

from envs import BatchEnv, Task
from envs.control_map import control_map
from envs.entry_names import action_names
from envs.object_names import find_control, label
from envs.physics.model_fields import with_constants
from envs.physics.warp_fields import require_readable
from envs.physics.warp_model import (
    missing_packages,
    put_model,
    require_per_world,
    require_supported_flags,
    with_supported_solver,
)
from envs.state import NameIndex, State
from envs.task_class import SIGNATURES, uncalled_methods
from envs.task_functions import defines
from pipeline.check.findings import Finding, Findings
from pipeline.check.rollout import control_inputs, to_control
from saltus.errors import SaltusError

# Hz: beyond them actions are too coarse, or show too late in the reward.
CONTROL_RATES = 5.0, 500.0
DEPTH = 0.01  # of the model's extent: contacts of stable initial states are shallower
_STEPS = 8
_HELD_STEPS = 8  # control steps: the longest delay of a task's own, such as of a radio link


def probe_model(env: BatchEnv) -> Findings:
    """Findings about the model and its initial states. `env` has been reset."""
    task, model = env.task, env.task.model
    rate = 1 / task.dt
    if not CONTROL_RATES[0] <= rate <= CONTROL_RATES[1]:
        yield Finding(
            "warning",
            f"the policy acts {rate:.3g} times per second (timestep {model.opt.timestep:g} s, frame_skip "
            f"{task.frame_skip}): 20 to 100 are common. Change frame_skip",
        )
    yield from _deep_contacts(env)
    yield from _actions_without_effect(env)


def _deep_contacts(env: BatchEnv) -> Findings:
    model = env.task.model
    for world in range(min(env.num_envs, 4)):
        data = env.physics.mj_data(world)
        deepest = min(data.contact, key=lambda contact: contact.dist, default=None)
        if deepest is not None and deepest.dist < -DEPTH * model.stat.extent:
            names = " and ".join(_touching(model, deepest, side) for side in range(2))
            yield Finding(
                "warning",
                f"{names} overlap by {-deepest.dist:.3g} m in an initial state, which pushes them apart with great "
                "force: change `reset` or the model's default state",
            )
            return


def _touching(model: mujoco.MjModel, contact: mujoco.MjContact, side: int) -> str:
    """The geom or the flex on one side of a contact."""
    if contact.geom[side] < 0:
        flex = int(contact.flex[side])
        return f"flex {label(mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_FLEX, flex) or '', flex)}"
    geom = model.geom(int(contact.geom[side]))
    return f"geom {geom.name or f'#{geom.id}'} of body {model.body(int(geom.bodyid[0])).name}"


def _actions_without_effect(env: BatchEnv) -> Findings:
    """Actions whose lowest and highest value lead to the same state after a control step and all delays."""
    physics, start = env.physics, env.physics.get_state()
    task, delay = env.task, _delay_steps(env.task.model)
    counts = [1 + math.ceil(delay / task.frame_skip)]
    if defines(task, "advance"):  # it may hold actions back
        counts.append(counts[0] + _HELD_STEPS)
    idle: list[int] = []
    for index in range(env.action_dim):
        low, high = (torch.zeros(env.num_envs, env.action_dim) for _ in range(2))
        low[:, index], high[:, index] = -1.0, 1.0
        differs = any(not torch.equal(*(_repeat(env, start, one, count) for one in (low, high))) for count in counts)
        if not differs and not _is_adhesion(env, index):
            idle.append(index)
    names = action_names(env, control_map(env)) if idle else []
    physics.set_state(start)
    if idle:
        yield Finding(
            "warning",
            f"actions that change nothing from the initial states: {', '.join(names[i] for i in idle)}. Check the "
            "actuators' gear and joints, and `control`",
        )


def _repeat(env: BatchEnv, start: TensorDict, action: Tensor, count: int) -> Tensor:
    """The worlds' mechanical state after `count` control steps with one action, whether episodes end or not."""
    task, physics, state = env.task, env.physics, env.state
    names, generator = NameIndex(task.model, task.fields), torch.Generator().manual_seed(0)
    physics.set_state(start)
    for _ in range(count):
        physics.step(None, task.frame_skip, control_inputs(env, action, state))
        values = {**state.values(), **physics.read()}
        if defines(task, "advance"):
            values |= task.advance(State(values, names, state.drawn), to_control(env, action), generator)
        state = State(values, names, state.drawn)
    return _mechanical_state(env)


def _delay_steps(model: mujoco.MjModel) -> int:
    """Physics steps after which every actuator applies a control, by the length of its history."""
    return int(model.actuator_history[:, 0].max(initial=0))


def _is_adhesion(env: BatchEnv, index: int) -> bool:
    """Whether an action is the control of an adhesion, which acts on contacts: there may be none yet."""
    model = env.task.model
    if defines(env.task, "control"):
        return False
    return bool(model.actuator_trntype[find_control(model, index)[0]] == mujoco.mjtTrn.mjTRN_BODY)


def _mechanical_state(env: BatchEnv) -> Tensor:
    """qpos, qvel, act and the mocap bodies' poses of every world."""
    rows = []
    for world in range(env.num_envs):
        data = env.physics.mj_data(world)
        parts = (data.qpos, data.qvel, data.act, data.mocap_pos.ravel(), data.mocap_quat.ravel())
        rows.append(torch.cat([torch.from_numpy(part.copy()) for part in parts]))
    return torch.stack(rows)


def probe_class(task: type[Task]) -> Findings:
    """Findings about the task's class."""
    if names := uncalled_methods(task):
        yield Finding(
            "note",
            f"nothing calls {', '.join(names)} of {task.__name__}: saltus calls {', '.join(SIGNATURES)}",
        )


def probe_functions(env: BatchEnv) -> Findings:
    """Findings about the task's functions. Starts new episodes in `env`."""
    before = dict(vars(env.task))
    values = {name: value.clone() for name, value in before.items() if isinstance(value, Tensor)}
    start, state = env.reset(), env.get_state()
    if torch.equal(env.reset(), start) and (start != start[:1]).any():
        yield Finding(
            "note",
            "each world begins all its episodes with the same observation, another one than the other worlds: `reset` "
            "draws no random state from `generator`",
        )
    env.set_state(state)
    first, second = (_states_after(env, seed=0) for _ in range(2))
    if not torch.equal(first, second):
        yield Finding(
            "error",
            "a state that was saved and restored continues with other observations: the task keeps something besides "
            "the physics' state, or draws random numbers from elsewhere than `generator`. Resumed runs would differ",
        )
    changed = [
        name
        for name, value in vars(env.task).items()
        if before.get(name, _MISSING) is not value or (name in values and not torch.equal(values[name], value))
    ]
    if changed:
        yield Finding(
            "error",
            f"the task's functions set {', '.join(f'self.{name}' for name in sorted(changed))}: what they keep is "
            "neither saved nor reset, and a CUDA graph does not see it. Compute it from the state, or return it from "
            "`reset` as a tensor of the task's own and renew it in `advance`",
        )


_MISSING = object()


def _states_after(env: BatchEnv, seed: int) -> Tensor:
    """Observations of some steps, (steps, N, all groups), after which the environment is in its state of before."""
    state, generator = env.get_state(), torch.Generator().manual_seed(seed)
    observations = []
    for _ in range(_STEPS):
        action = 2 * torch.rand(env.num_envs, env.action_dim, generator=generator) - 1
        observations.append(torch.cat([env.step(action)[1], env.privileged], dim=1))
    env.set_state(state)
    return torch.stack(observations)


def probe_warp(task: Task, num_envs: int) -> Findings:
    """Whether Warp simulates the model. No kernel is compiled.

    Args:
        task: a task that is bound to its model.
        num_envs: number of worlds.
    """
    if missing := missing_packages():
        yield Finding(
            "note", f"Warp: not checked, without {' and '.join(missing)} (pip install -c constraints.txt -e '.[warp]')"
        )
        return
    try:
        require_supported_flags(task.model)
        require_readable(task.fields)
        models = task.model_variants or num_envs
        drawn = task.randomize(models, torch.Generator().manual_seed(0))
        require_per_world(task.model, drawn, derived=with_constants(task.model, drawn))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the solver, which the engine gives where it is used
            model = with_supported_solver(task.model)
            put_model(model, num_envs, (), torch.device("cpu"))
    except SaltusError as error:
        yield Finding("note", f"Warp: not supported, so that a GPU cannot simulate the task. {error}")
        return
    from envs.physics.warp_memory import estimate_capacity

    home = task.data0 if task.home is not None or task.settle_steps else None
    try:
        contacts, constraints = estimate_capacity(model, home)
    except SaltusError as error:
        yield Finding("note", f"Warp: supported, but {error}")
        return
    yield Finding(
        "note",
        f"Warp: supported. Memory per world for {contacts} contacts and {constraints} constraint rows (--max-contacts, "
        "--max-constraints)",
    )

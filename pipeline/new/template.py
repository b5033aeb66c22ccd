"""The text of a new task's file."""

from __future__ import annotations

import json
import textwrap
from itertools import groupby

import mujoco
import numpy as np

from envs.object_names import control_label, label, one_line
from pipeline.new.names import names_comment, shortened
from pipeline.new.plan import Plan

WIDTH = 88  # ruff's default

HEAD = '"""A task for {file}: change what it observes and rewards, and when episodes end."""'
SHORT_HEAD = '"""A task for the model below: change what it observes and rewards, and its end."""'

IMPORTS = '''
from dataclasses import dataclass

import torch
from saltus import Task

{names}

@dataclass
class {class_name}(Task):
    """{goal}, with little effort."""

'''

RESET = """
    def reset(self, num_envs, generator):
        qpos, qvel = super().reset(num_envs, generator)
        noise = torch.empty_like(qvel).uniform_(-1, 1, generator=generator)
        return qpos, qvel + self.reset_noise * noise
"""

REWARD = """
    def reward(self, state, action, next_state):
        # Replace this: what should the model do?
        {term} = {value}
        effort = self.effort_cost * {action}.square().mean(dim=-1)
        terms = {{"{term}": {term}, "effort": -effort}}  # logged
        return {term}{bonus} - effort, terms
"""

TERMINATED = """
    def terminated(self, state):
        return state.qpos[:, {index}] < self.min_height
"""


def task_file(plan: Plan, mjcf: str, class_name: str) -> str:
    """The text of a task's file.

    Args:
        plan: the choices that the task makes.
        mjcf: the path of the model, as the file names it.
        class_name: name of the class.
    """
    goal, term, value = _goal(plan)
    file, names = one_line(mjcf.rpartition("/")[2]), names_comment(plan.model, WIDTH)
    title = HEAD.format(file=file.replace("\\", "/").replace('"', "'"))
    if len(title) > WIDTH:
        title = SHORT_HEAD
    text = f"{title}\n" + IMPORTS.format(names=names, class_name=class_name, goal=goal)
    text += textwrap.indent("\n".join(_attributes(plan, mjcf)) + "\n", "    ")
    text += RESET + _control(plan) + _observation(plan)
    action = f"action[:, :{plan.model.nu}]" if plan.mocap and plan.model.nu else "action"
    bonus = " + self.alive_bonus" if _min_height(plan) else ""
    text += REWARD.format(term=term, value=value, action=action, bonus=bonus)
    if plan.travel is not None and _min_height(plan):
        text += TERMINATED.format(index=plan.travel.stop)
    return text


def _min_height(plan: Plan) -> float:
    return plan.travel.min_height if plan.travel is not None else 0.0


def _goal(plan: Plan) -> tuple[str, str, str]:
    """The reward's purpose, its first term, and that term's expression."""
    if plan.travel is not None:
        return "Moves forward", "forward", f"next_state.qvel[:, {plan.travel.dof}]  # m/s"
    body, axis = plan.goal
    goal, term = (("Reaches out along x", "x"), ("Reaches out along y", "y"), ("Rises", "height"))[axis]
    center = f"of body {label(plan.model.body(body).name, body)} and its children"
    value = f"next_state.subtree_com[:, {body}, {axis}]"
    line = f"{value}  # m, {center}"
    return goal, term, line if len(line) <= WIDTH - len(f"        {term} = ") else f"{value}  # m"


def _attributes(plan: Plan, mjcf: str) -> list[str]:
    """Lines that set the attributes and options of the class."""
    model, min_height = plan.model, _min_height(plan)
    step = model.opt.timestep * plan.frame_skip
    fields = [
        "qpos", "qvel", *["act"] * bool(model.na), *["sensordata"] * bool(_named_sensors(model)),
        *["mocap_pos"] * bool(plan.mocap), *["subtree_com"] * (plan.travel is None),
    ]  # fmt: skip
    lines = [f"mjcf = {_quoted(mjcf)}", f"fields = ({', '.join(map(_quoted, fields))})"]
    if plan.home is not None:
        home = _quoted(plan.home) if isinstance(plan.home, str) else plan.home
        lines.append(f"home = {home}  # the keyframe that episodes start from")
    lines += [
        *_action_bounds(plan),
        f"frame_skip: int = {plan.frame_skip}  # physics steps of {model.opt.timestep:g} s: {1 / step:.3g} actions/s",
        f"max_episode_steps: int = 500  # {500 * step:.3g} s",
    ]
    if min_height:
        lines.append(f"min_height: float = {min_height}  # m; below it an episode ends")
        lines.append("alive_bonus: float = 1.0  # per step")
    lines.append(f"effort_cost: float = {_effort_cost(plan)}  # an option: --task.effort-cost")
    lines.append("reset_noise: float = 0.1  # of velocities")
    if plan.servo_scale is not None:
        guess = "; a guess: no usable ctrlrange" if plan.unbounded else ""
        lines.append(f"action_scale: float = {plan.servo_scale}  # of servos, around home{guess}")
    if plan.mocap:
        lines.append(f"mocap_reach: float = {plan.mocap_reach}  # m, the largest coordinate")
    return lines


def _effort_cost(plan: Plan) -> float:
    """The weight by which the effort of extreme actions is about a tenth, or a hundredth where rewards are lengths."""
    if plan.servo_scale is not None:
        square = 1.0
    elif plan.model.nu:
        square = float((plan.bounds**2).max(axis=1).mean())
    else:
        square = plan.mocap_step**2
    return float(f"{(0.1 if plan.travel is not None else 0.01) / square:.1g}")


def _action_bounds(plan: Plan) -> list[str]:
    """Lines that set bounds of actions, where those of the actuators do not serve."""
    if not (plan.unbounded or plan.mocap or plan.servo_scale is not None):
        return []
    model, servos = plan.model, plan.servo_scale is not None
    bounds = np.tile([-1.0, 1.0], (model.nu, 1)) if servos else plan.bounds
    moves = np.tile([-plan.mocap_step, plan.mocap_step], (3 * len(plan.mocap), 1))
    lines = []
    if plan.unbounded and not servos:
        names = [control_label(model, index) for index in plan.unbounded]
        line = "# Choose bounds for {}: no usable ctrlrange."
        lines.append(line.format(shortened(names, WIDTH - 4 - len(line))))
    if plan.mocap:
        names = [_mocap_label(model, index) for index in plan.mocap]
        who = f"The last {len(moves)} actions" if model.nu else "Actions"
        lines.append(f"# {who} move, in m: {shortened(names, WIDTH - 40)}.")
    for name, values in zip(("action_low", "action_high"), np.concatenate([bounds, moves]).T, strict=True):
        lines += _assignment(name, [float(f"{value:.4g}") for value in values], one_number=not plan.mocap)
    return lines


def _mocap_label(model: mujoco.MjModel, mocap: int) -> str:
    body = int(np.flatnonzero(model.body_mocapid == mocap)[0])
    return label(model.body(body).name, body)


def _assignment(name: str, values: list[float], one_number: bool) -> list[str]:
    """Lines that assign numbers to a name, as one number if all are equal and that is allowed."""
    groups = [(value, len(list(equal))) for value, equal in groupby(values)]
    if one_number and len(groups) == 1:
        return [f"{name} = {values[0]}"]
    runs = " + ".join(f"({value},) * {count}" for value, count in groups)
    for line in (f"{name} = ({', '.join(map(str, values))}{',' * (len(values) == 1)})", f"{name} = {runs}"):
        if len(line) <= WIDTH - 4:
            return [line]
    rows = textwrap.wrap(", ".join(map(str, values)) + ",", WIDTH - 8)
    return [f"{name} = (", *(f"    {row}" for row in rows), ")  # fmt: skip"]


def _control(plan: Plan) -> str:
    ctrl = "self.ctrl0 + self.action_scale * action" if plan.servo_scale is not None else "action"
    nu = plan.model.nu
    if not plan.mocap:
        body = f"        return {ctrl}\n" if plan.servo_scale is not None else ""
    else:
        moves = f"action[:, {nu}:]" if nu else "action"
        inputs = '"ctrl": ctrl, "mocap_pos": place' if nu else '"mocap_pos": place'
        body = (
            "        place = state.mocap_pos.clone()\n"
            f"        for index, move in zip({tuple(plan.mocap)}, {moves}.split(3, dim=-1), strict=True):\n"
            "            place[:, index] += move\n"
            "        place = place.clamp(-self.mocap_reach, self.mocap_reach)\n"
            + (f"        ctrl = {ctrl}[:, :{nu}]\n" if nu else "")
            + f"        return {{{inputs}}}\n"
        )
    return body and f"\n    def control(self, state, action):\n{body}"


def _observation(plan: Plan) -> str:
    model = plan.model
    free = int((model.jnt_type == mujoco.mjtJoint.mjJNT_FREE).sum())
    qpos, comment = ["state.qpos"], ""
    if plan.travel is not None and free <= 1 and not plan.mocap:  # distances between bodies need no absolute position
        start, stop = plan.travel.start, plan.travel.stop
        qpos = [f"state.qpos[:, :{start}]"] * bool(start) + [f"state.qpos[:, {stop}:]"]
        comment = "  # without the absolute position"
    parts = ", ".join([*qpos, "state.qvel", *["state.act"] * bool(model.na)])
    lines = [f"parts = [{parts}]{comment}"]
    if plan.mocap:
        lines.append("parts.append(state.mocap_pos.flatten(1))")
    if sensors := _named_sensors(model):
        names = f"({', '.join(map(_quoted, sensors))}{',' * (len(sensors) == 1)})"
        line = f"parts += [state.sensor(name) for name in {names}]"
        lines.append(line if len(line) <= WIDTH - 8 else "parts.append(state.sensordata)  # of all sensors")
    lines.append("return torch.cat(parts, dim=-1)")
    return "\n    def observation(self, state):\n" + textwrap.indent("\n".join(lines) + "\n", "        ")


def _named_sensors(model: mujoco.MjModel) -> list[str]:
    return [name for index in range(model.nsensor) if (name := model.sensor(index).name)]


def _quoted(text: str) -> str:
    """A string literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)

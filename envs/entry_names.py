"""Names of the entries of observations and actions, for programs that use a policy without saltus."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
import torch
from torch import Tensor

from envs.batch_env import BatchEnv
from envs.control_map import ControlMap
from envs.object_names import actuator_label, control_label, joint_label
from envs.random_states import random_states
from envs.state import NameIndex
from envs.task_functions import split_observation

_WORLDS = 64
_INSIDE = 4  # equal random numbers, of _WORLDS, that are no coincidence
_COUNTS = {
    "body": "nbody", "joint": "njnt", "geom": "ngeom", "site": "nsite", "camera": "ncam", "actuator": "nactuator",
    "tendon": "ntendon", "sensor": "nsensor",
}  # fmt: skip
_LABELS = {"joint": joint_label, "actuator": actuator_label}


def action_names(env: BatchEnv, controls: ControlMap) -> list[str]:
    """The label of the control that each action sets, such as ``"servo rx"``, or ``"#0 of hinge"`` without a name.

    An action that does not set one control alone is named by its index.

    Args:
        env: the environment.
        controls: how its actions set the controls.
    """
    found = map(controls.only_control_of, range(env.action_dim))
    return [
        f"action {action}" if control is None else control_label(env.task.model, control)
        for action, control in enumerate(found)
    ]


@torch.no_grad()
def observation_entries(env: BatchEnv, group: str = "policy") -> list[dict[str, Any] | None]:
    """The number of MjData that each entry of one of the observation's groups is, clipped or not.

    The task's `observation` is called for states of random numbers from 0.1 to 100, all of which differ. The
    environment is reset.

    Args:
        env: the environment.
        group: "policy", or "critic", which may be absent.

    Returns:
        For each entry a dict: ``name``, such as ``"joint hinge qpos"``; ``field`` and ``index`` into the flattened
        field of MjData. An entry of the task's own tensors, or of `state.drawn`, has the name alone; a computed entry
        is None.
    """
    width = env.observation_dim if group == "policy" else env.privileged_dim
    if not width:
        return []
    task, state = env.task, random_states(env, _WORLDS, whole_numbers=False)
    values = {**state.values(), **{f"drawn {name}": state.drawn[name] for name in state.drawn}}
    try:
        observation = split_observation(task.observation(state))[group].float().cpu()
    except Exception:  # a task may refuse states that its physics never reaches
        return [None] * width
    numbers = torch.cat([value.reshape(_WORLDS, -1).double() for value in values.values()], dim=1).float().cpu()
    places = [(name, index) for name, value in values.items() for index in range(value[0].numel())]
    names = _element_names(task.model, task.fields)
    found = (_find(column, numbers) for column in observation.unbind(-1))
    return [None if one is None else _describe(*places[one], names, task.fields) for one in found]


def _find(column: Tensor, numbers: Tensor) -> int | None:
    """The column of `numbers` (N, K) that `column` (N,) equals after clipping, if one does."""
    low, high = column.min(), column.max()
    inside = (column > low) & (column < high)
    if int(inside.sum()) < _INSIDE:
        return None
    equal = (numbers.clamp(low, high) == column[:, None]).all(dim=0).nonzero()
    return int(equal[0]) if len(equal) else None


def _describe(field: str, index: int, names: dict[tuple[str, int], str], fields: tuple[str, ...]) -> dict[str, Any]:
    if field not in fields:
        return {"name": f"{field} {index}"}
    return {"name": names.get((field, index), f"{field} {index}"), "field": field, "index": index}


def _element_names(model: mujoco.MjModel, fields: tuple[str, ...]) -> dict[tuple[str, int], str]:
    """Names such as ``"body torso xpos 2"`` by field of MjData and index into it.

    Of named objects, and of joints and actuators without a name: ``"joint #0 of ball qpos 2"``.
    """
    data, located, found = mujoco.MjData(model), NameIndex(model, fields), dict[tuple[str, int], str]()
    for kind, count in _COUNTS.items():
        for number in range(getattr(model, count)):
            view = getattr(data, kind)(number)
            name = view.name or (_LABELS[kind](model, number) if kind in _LABELS else "")
            for attribute in dir(view):
                part = getattr(view, attribute, None)
                if not name or not isinstance(part, np.ndarray) or not part.size:
                    continue
                try:
                    field, offset, _ = located.locate(kind, number, attribute)
                except AttributeError:  # computed by the view, as an actuator's moment
                    continue
                for index in range(part.size if field in fields else 0):
                    component = f" {index}" if part.size > 1 else ""
                    found.setdefault((field, offset + index), f"{kind} {name} {attribute}{component}")
    return found

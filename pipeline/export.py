"""Files of a policy for programs without saltus: torch.export, ONNX, the names of its numbers, and the model."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
from torch import Tensor, nn

from envs import BatchEnv
from envs.control_map import ControlMap, control_map
from envs.entry_names import action_names, observation_entries
from envs.environment import Environment
from envs.external.external_env import ExternalEnv
from envs.home import HOME_FIELDS
from envs.object_names import actuator_label, control_label
from envs.physics import POST_CONSTRAINT
from envs.task import Task
from envs.task_functions import defines
from envs.task_options import encode_options, option_hints
from envs.task_ref import GYMNASIUM
from pipeline import files
from pipeline.file_names import POLICY_FACTS, POLICY_MODEL, POLICY_ONNX, POLICY_PROGRAM
from pipeline.networks import set_matmul_dtype
from pipeline.normalize import EPSILON
from pipeline.policy import Policy
from pipeline.stored_task import to_binary
from saltus.errors import SaltusError
from saltus.versions import versions

_NAMES = (POLICY_FACTS, POLICY_PROGRAM, POLICY_ONNX, POLICY_MODEL)
_WRITER = "saltus export"
_OPSET = 17  # of ONNX; the first with layer normalisation


class ExportedPolicy(nn.Module):
    """A deterministic policy: observation (N, obs_dim) float32 -> action (N, action_dim) float32 in the task's units.

    Discrete actions of an environment are indices, (N, action_dim) int64.

    Normalises the observation, and scales and limits the action. All matrix products are in float32, also those of a
    run with bfloat16 products, whose own actions differ by their rounding.

    Args:
        policy: the policy.
        env: an environment of its task.
    """

    mean: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, policy: Policy, env: Environment):
        super().__init__()
        self.actor = policy.agent.eval_actor.standalone().cpu().eval().requires_grad_(False)
        set_matmul_dtype(self.actor, torch.float32)
        self.discrete = bool(env.action_choices)
        self.register_buffer("low", env.control_low.cpu())
        self.register_buffer("high", env.control_high.cpu())
        normalizer = policy.agent.normalizers.observations
        self.normalizes = normalizer is not None
        if normalizer is not None:
            self.register_buffer("mean", normalizer.moments.mean.float().cpu())
            self.register_buffer("scale", torch.rsqrt(normalizer.moments.variance.float().cpu() + EPSILON))

    def forward(self, observation: Tensor) -> Tensor:
        if self.normalizes:
            observation = (observation - self.mean) * self.scale
        action = self.actor.deterministic(observation)
        center, half_range = (self.low + self.high) / 2, (self.high - self.low) / 2
        # The limits hold in spite of the rounding of the scaling.
        action = torch.clamp(center + half_range * action, self.low, self.high)
        return action.round().long() if self.discrete else action


def export_policy(policy: Policy, folder: Path) -> list[Path]:
    """Write a policy's files to a folder, which is made if it does not exist; replace those of an earlier export.

    All files are written, or none: after an error an earlier export is as it was.

    ``policy.onnx`` needs the package onnx: without it the file is left out, with a warning. A run on an environment of
    another library has no ``policy.mjb``.

    Args:
        policy: the policy.
        folder: where to write.

    Returns:
        The files.

    Raises:
        SaltusError: see `check_folder`; or the files cannot be written.
    """
    check_folder(folder)
    env = policy.make_env(2)  # worlds of two models, if the task randomises them
    module = ExportedPolicy(policy, env)
    example = torch.zeros(2, env.observation_dim)
    contents: dict[str, bytes | None] = {  # None: the file of an earlier export is removed
        POLICY_FACTS: (json.dumps(_facts(policy, env), indent=1) + "\n").encode(),  # first: it marks the others as ours
        POLICY_PROGRAM: _to_program(module, example),
        POLICY_ONNX: None,
        POLICY_MODEL: None if env.model is None else to_binary(env.model),
    }
    if importlib.util.find_spec("onnx") is None:
        warnings.warn(
            f"{POLICY_ONNX} is not written: it needs pip install -c constraints.txt -e '.[export]'", stacklevel=2
        )
    else:
        contents[POLICY_ONNX] = _to_onnx(module, example)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_together(folder, contents)
    except OSError as error:
        raise SaltusError(f"could not write to {folder}: {error.strerror}. Choose another --output") from error
    return [folder / name for name, content in contents.items() if content is not None]


def check_folder(folder: Path) -> None:
    """Check that an export overwrites nothing but an earlier export.

    Raises:
        SaltusError: a file instead of a folder, or one that holds other files under the names of an export's.
    """
    if folder.exists() and not folder.is_dir():
        raise SaltusError(f"{folder} is a file, not a folder: choose another --output")
    taken = [name for name in _NAMES if os.path.lexists(folder / name)]
    if folders := [name for name in taken if (folder / name).is_dir()]:
        raise SaltusError(f"{folder} has a folder named {folders[0]}: choose another folder with --output")
    if taken and not _is_own(folder / POLICY_FACTS):
        raise SaltusError(
            f"{folder} holds {', '.join(taken)}, which `saltus export` did not write and would overwrite: choose "
            "another folder with --output"
        )


def _is_own(file: Path) -> bool:
    try:
        return file.is_file() and json.loads(file.read_text())["written_by"] == _WRITER
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _to_program(module: nn.Module, example: Tensor) -> bytes:
    """The program that ``torch.export.load`` reads."""
    shapes = {"observation": {0: torch.export.Dim("batch")}}
    program = torch.export.export(module, (example,), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def _to_onnx(module: nn.Module, example: Tensor) -> bytes:
    """The ONNX model, with the input ``observation`` and the output ``action``."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch prefers its newer exporter, which needs onnxscript
        path = Path(folder) / POLICY_ONNX
        torch.onnx.export(
            module, (example,), path, dynamo=False, opset_version=_OPSET,
            input_names=["observation"], output_names=["action"],
            dynamic_axes={"observation": {0: "batch"}, "action": {0: "batch"}},
        )  # fmt: skip
        return path.read_bytes()


def _facts(policy: Policy, env: Environment) -> dict[str, Any]:
    """The names of a policy's numbers, and what a program needs to know to simulate its task."""
    if isinstance(env, BatchEnv):
        controls = control_map(env)
        observation, names = observation_entries(env), action_names(env, controls)
        options, simulation = _task_options(env.task), _simulation_facts(env, controls)
    else:
        assert isinstance(env, ExternalEnv)
        observation = [{"name": name} for name in env.worlds.observation_names]
        names, options = [f"action {index}" for index in range(env.action_dim)], dict[str, Any]()
        simulation = {"dt": env.dt}
    return {
        "written_by": _WRITER,
        "task": policy.config.task if policy.config.task.startswith(GYMNASIUM) else policy.config.task_name,
        "task_options": _strict_json(options | policy.config.task_options),
        "policy": policy.which,
        "env_steps": policy.env_steps,
        "observation": observation,
        "action": _action_facts(names, env),
        "max_episode_steps": env.max_episode_steps,
        **simulation,
        "versions": versions(),
    }


def _action_facts(names: list[str], env: Environment) -> list[dict[str, Any]]:
    """The name and the bounds of each action; of a discrete one the first and the last index, and their number."""
    bounds = zip(names, env.control_low.tolist(), env.control_high.tolist(), strict=True)
    if not env.action_choices:
        return [{"name": name, "low": low, "high": high} for name, low, high in bounds]
    return [
        {"name": name, "low": int(low), "high": int(high), "choices": count}
        for (name, low, high), count in zip(bounds, env.action_choices, strict=True)
    ]


def _task_options(task: Task) -> dict[str, Any]:
    """The options of a task, defaults included, without those that cannot be written as JSON."""
    options = dict[str, Any]()
    for name in option_hints(type(task)):
        with contextlib.suppress(SaltusError):
            options |= encode_options(type(task), {name: getattr(task, name)})
    return options


def _strict_json(options: dict[str, Any]) -> dict[str, Any]:
    """The options with strings, such as ``"Infinity"``, for numbers that are not finite: JSON has none."""
    return json.loads(json.dumps(options), parse_constant=str)


def _simulation_facts(env: BatchEnv, controls: ControlMap) -> dict[str, Any]:
    """The facts that a program needs to simulate a task of saltus."""
    task = env.task
    return {
        "action_is_ctrl": not defines(task, "control"),
        "actuators": _actuator_facts(task.model),
        "ctrl": _ctrl_facts(task.model, controls),
        "computed_inputs": controls.computed_inputs,
        "model": POLICY_MODEL,
        "timestep": task.model.opt.timestep,
        "frame_skip": task.frame_skip,
        "contact_forces": not {*POST_CONSTRAINT}.isdisjoint(task.fields),
        "recompute_derived": task.recompute_derived,
        "start": {
            field: values.tolist() for field in HOME_FIELDS if (values := np.asarray(getattr(task.data0, field))).size
        },
    }


def _actuator_facts(model: mujoco.MjModel) -> list[dict[str, Any]]:
    """The name of each actuator and the indices of its controls."""
    controls = zip(model.actuator_ctrladr.tolist(), model.actuator_ctrlnum.tolist(), strict=True)
    return [
        {"name": actuator_label(model, index), "controls": list(range(first, first + count))}
        for index, (first, count) in enumerate(controls)
    ]


def _ctrl_facts(model: mujoco.MjModel, controls: ControlMap) -> list[dict[str, Any]] | None:
    """The affine function of the actions that each control is; None if one of them is not."""
    if controls.offset is None or controls.matrix is None:
        return None
    return [
        {"name": control_label(model, control), "offset": offset, "actions": actions, "scales": row[actions].tolist()}
        for control, (offset, row) in enumerate(zip(controls.offset.tolist(), controls.matrix, strict=True))
        for actions in (controls.actions_of(control),)
    ]

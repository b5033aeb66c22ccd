"""The report of a check: tables on the terminal, a picture, a file for each failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from envs import BatchEnv
from envs.object_names import actuator_label, label
from envs.render import Renderer
from pipeline import files
from pipeline.check.check import Check
from pipeline.check.findings import verdict
from pipeline.check.rollout import Range, Rollout
from pipeline.console import print_line
from pipeline.stored_task import to_binary

_ROWS = 40


def report(result: Check, console: Console) -> None:
    """Print the model, the ranges, the findings and the verdict."""
    if result.env is not None:
        for line in describe_model(result.env):
            print_line(console, line)
    if result.rollout is not None:
        console.print(_ranges(result.rollout, result.names, result.privileged_names))
        print_line(console, _describe_episodes(result.rollout))
    for severity in ("error", "warning", "note"):
        for finding in result.findings:
            if finding.severity == severity:
                print_line(console, f"{severity}: {finding.text}")
    print_line(console, verdict(result.findings))


def describe_model(env: BatchEnv) -> list[str]:
    """Lines about a task's model, its time and its spaces."""
    model, task = env.task.model, env.task
    names = ", ".join(_actuator(model, index) for index in range(model.nactuator)) or "none"
    cameras = ", ".join(label(model.camera(index).name, index) for index in range(model.ncam)) or "none"
    keyframes = ", ".join(label(model.key(index).name, index) for index in range(model.nkey)) or "none"
    integrator = mujoco.mjtIntegrator(model.opt.integrator).name.removeprefix("mjINT_").lower()
    solver = mujoco.mjtSolver(model.opt.solver).name.removeprefix("mjSOL_").lower()
    privileged = f"{env.privileged_dim} privileged observations, " if env.privileged_dim else ""
    return [
        f"model: {model.nq} positions, {model.nv} degrees of freedom, {model.nbody - 1} bodies, {model.ngeom} geoms, "
        f"{model.nsensor} sensors; integrator {integrator}, solver {solver}",
        f"actuators: {names}; cameras: {cameras}; keyframes: {keyframes}",
        f"time: {1 / task.dt:.4g} actions per second ({task.frame_skip} physics steps of {model.opt.timestep:g} s); an "
        f"episode lasts at most {task.max_episode_steps:,} steps, {task.max_episode_steps * task.dt:.4g} s",
        f"spaces: {env.observation_dim} observations, {privileged}{env.action_dim} actions",
    ]


def _actuator(model: mujoco.MjModel, index: int) -> str:
    """An actuator's label, followed by the number of its controls unless that is 1."""
    count = model.actuator_ctrlnum[index]
    return actuator_label(model, index) + (f" ({count} controls)" if count != 1 else "")


def _ranges(rollout: Rollout, names: list[str], privileged_names: list[str]) -> Table:
    table = Table("", title=f"{rollout.totals['steps']:,.0f} world-steps of random actions")
    for column in ("lowest", "highest", "mean", "std"):
        table.add_column(column, justify="right")
    _add_rows(table, rollout.rewards, ["reward"])
    for name, ranges in rollout.terms.items():
        _add_rows(table, ranges, [f"  {name}"])
    table.add_section()
    _add_rows(table, rollout.observations, [f"observation {index} {name}" for index, name in enumerate(names)])
    if rollout.privileged is not None:
        labels = [f"privileged observation {index} {name}" for index, name in enumerate(privileged_names)]
        _add_rows(table, rollout.privileged, labels)
    return table


def _add_rows(table: Table, ranges: Range, names: list[str]) -> None:
    for index, name in enumerate(names[:_ROWS]):
        columns = (ranges.low, ranges.high, ranges.mean, ranges.std)
        table.add_row(name, *(f"{float(column[index]):.4g}" for column in columns))
    if len(names) > _ROWS:
        table.add_row(f"... {len(names) - _ROWS} more (--json has all)")


def _describe_episodes(rollout: Rollout) -> str:
    lengths = rollout.lengths
    ended = f"{len(lengths):,} episodes ended, after {min(lengths):,} to {max(lengths):,} steps" if lengths else ""
    rate = (
        f"{rollout.steps_per_second:,.0f} env steps/s, about {rollout.share_of_bare_rate:.0%} of the bare engine's rate"
    )
    return f"{ended or 'no episode ended'}; {rate}"


def to_json(result: Check) -> dict[str, Any]:
    """Everything found, as JSON data."""
    content: dict[str, Any] = {
        "findings": [{"severity": one.severity, "text": one.text} for one in result.findings],
        "verdict": verdict(result.findings),
    }
    if result.rollout is not None:
        rollout = result.rollout
        content |= {
            "observations": {"name": result.names, **_columns(rollout.observations)},
            "reward": _columns(rollout.rewards),
            "reward_terms": {name: _columns(ranges) for name, ranges in rollout.terms.items()},
            "episode_lengths": rollout.lengths,
            "totals": rollout.totals,
            "steps_per_second": rollout.steps_per_second,
            "bare_steps_per_second": rollout.bare_steps_per_second,
        }
        if rollout.privileged is not None:
            content["privileged"] = {"name": result.privileged_names, **_columns(rollout.privileged)}
    return content


def _columns(ranges: Range) -> dict[str, list[Any]]:
    return {name: getattr(ranges, name).tolist() for name in ("low", "high", "mean", "std")}


def draw(env: BatchEnv, rollout: Rollout, path: Path) -> None:
    """Write a picture of the first world at the rollout's beginning, middle and end, as `saltus play` films it.

    Raises:
        RenderError: no OpenGL.
    """
    frames = []
    with Renderer(env) as renderer:
        for state in rollout.states:
            env.physics.set_state(state)
            frames.append(renderer.frame(0))
    Image.fromarray(np.concatenate(frames, axis=1)).save(path)


def save_failure(env: BatchEnv, rollout: Rollout, path: Path) -> list[Path]:
    """Write the state before the first failure, and the inputs of its step, to an npz file.

    ``mujoco.mj_setState(model, data, file["state"], mujoco.mjtState.mjSTATE_INTEGRATION)`` restores it. If
    the task randomises, an mjb file of the same stem holds the world's model.

    Returns:
        The files.
    """
    failure = rollout.first_failure
    assert failure is not None
    inputs: dict[str, Any] = {name: values.numpy() for name, values in failure.inputs.items()}
    np.savez(path, state=failure.before["integration"][failure.world].numpy(), **inputs)
    env.physics.set_state(failure.before)
    model = env.physics.world_model(failure.world)
    if model is env.physics.model:
        return [path]
    files.write(path.with_suffix(".mjb"), to_binary(model))
    return [path, path.with_suffix(".mjb")]

"""Find what is to be trained on by its name, a task or an environment of another library, and make it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import torch

from envs import make
from envs.environment import Environment
from envs.simulation import Simulation
from envs.task_ref import GYMNASIUM, TaskRef, find_in_file, is_function, resolve_task, split_name
from saltus.errors import SaltusError

if TYPE_CHECKING:
    from envs.external.factory import FactoryRef

EnvironmentRef: TypeAlias = Union[TaskRef, "FactoryRef"]


def resolve_environment(name: str) -> EnvironmentRef:
    """Find a task (see `resolve_task`), ``gym:ID``, or a function as ``path/to/file.py:make_env``.

    Raises:
        SaltusError: an unknown name, or a faulty class or function.
    """
    if name.startswith(GYMNASIUM):
        from envs.external.factory import gymnasium_ref

        return gymnasium_ref(name)
    parts = split_name(name)
    if parts is not None:
        path, text, value = find_in_file(name, *parts)
        if is_function(value):
            from envs.external.factory import file_ref

            return file_ref(f"{path}:{parts[1]}", value, path, text)
    return resolve_task(name)


def options_class(reference: EnvironmentRef) -> type:
    """The class whose fields are the options: the task's own, or a dataclass of the arguments of a function."""
    return reference.task if isinstance(reference, TaskRef) else reference.options


def make_environment(
    reference: EnvironmentRef,
    num_envs: int,
    options: Mapping[str, Any],
    *,
    device: torch.device | str = "cpu",
    simulation_device: torch.device | str | None = None,
    seed: int = 0,
    simulation: Simulation,
    check_task: bool = True,
    render_mode: str | None = None,
) -> Environment:
    """Make an environment with actions in [-1, 1].

    Args:
        reference: a result of `resolve_environment`.
        num_envs: number of worlds.
        options: fields of `options_class`.
        device: where actions come from and transitions go.
        simulation_device: where another library simulates, if its factory takes a `device`; None: `device`.
        seed: seeds the episodes.
        simulation: settings of the worlds of a task; another library has its own.
        check_task: see `BatchEnv`.
        render_mode: of an environment of another library; a task needs none.

    Raises:
        SaltusError: as `saltus.make`, or as `FactoryRef.make`.
    """
    if not isinstance(reference, TaskRef):
        return reference.make(
            num_envs, options, device=device, simulation_device=simulation_device, seed=seed, render_mode=render_mode
        )
    settings = dataclasses.asdict(simulation)
    return make(reference.task, num_envs, device=device, seed=seed, check_task=check_task, **settings, **options)


def refuse_simulation(reference: EnvironmentRef, given: Simulation) -> None:
    """Raise SaltusError if settings of the simulation were given for worlds that another library simulates."""
    if isinstance(reference, TaskRef):
        return
    for item in dataclasses.fields(Simulation):
        if getattr(given, item.name) != item.default:
            raise SaltusError(
                f"--{item.name.replace('_', '-')} has no effect on {reference.name}, which another library simulates: "
                "leave it out"
            )

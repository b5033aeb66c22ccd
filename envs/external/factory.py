"""FactoryRef: a function, or an ID of Gymnasium, that makes an environment of another library."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import gymnasium
import torch
from gymnasium.vector import AutoresetMode

from envs.batch_env import BatchEnv
from envs.external.external_env import ExternalEnv
from envs.external.gymnasium_worlds import GymnasiumWorlds
from envs.external.worlds import Worlds
from envs.task_ref import GYMNASIUM
from saltus.errors import SaltusError

_PLAIN = (bool, int, float, str)
_NOT_OPTIONS = {"num_envs", "device", "seed", "render_mode"}


@dataclass(frozen=True)
class FactoryRef:
    """An environment of another library that was found by its name.

    Attributes:
        name: ``gym:ID``, or ``/absolute/path/to/file.py:function``.
        function: called with `num_envs` and options; returns a vector environment of Gymnasium or a batched environment
            of TorchRL. `device`, `seed` and `render_mode` are passed if it takes them.
        options: a dataclass of the function's other arguments.
        file: the absolute path of the function's file. None: an ID.
        text: the text of that file, as it was executed. None: an ID.
    """

    name: str
    function: Callable[..., Any]
    options: type
    file: Path | None = None
    text: str | None = None

    def make(
        self,
        num_envs: int,
        options: Mapping[str, Any],
        *,
        device: torch.device | str = "cpu",
        simulation_device: torch.device | str | None = None,
        seed: int = 0,
        render_mode: str | None = None,
    ) -> ExternalEnv:
        """Make an environment of `num_envs` worlds.

        Args:
            num_envs: number of worlds.
            options: fields of `self.options`.
            device: where actions come from and transitions go.
            simulation_device: passed to the function as `device`, if it takes one; None: `device`.
            seed: seeds the episodes.
            render_mode: passed to the function, if it takes one.

        Raises:
            SaltusError: the function returned something else, or an environment that cannot be trained on.
        """
        where = device if simulation_device is None else simulation_device
        given: dict[str, Any] = {"device": str(where), "seed": seed}
        if render_mode is not None:
            given["render_mode"] = render_mode
        taken = inspect.signature(self.function).parameters
        env = self.function(num_envs=num_envs, **{key: given[key] for key in given if key in taken}, **options)
        return ExternalEnv(_worlds(self.name, env, num_envs), self.name, device=device, seed=seed)


def file_ref(name: str, function: Callable[..., Any], file: Path, text: str) -> FactoryRef:
    """The reference to a function in a file.

    Raises:
        SaltusError: the function takes no `num_envs`.
    """
    parameters = inspect.signature(function).parameters
    if "num_envs" not in parameters:
        raise SaltusError(
            f"{name} is a function without the argument num_envs, so it is taken for neither a task nor a factory; "
            "expected a subclass of saltus.Task, or def make_env(num_envs), which returns a vector environment of "
            "Gymnasium or a batched environment of TorchRL"
        )
    try:
        hints = get_type_hints(function)
    except Exception:  # names that exist for type checkers only
        hints = {}
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    declared = {key: one for key, one in parameters.items() if key not in _NOT_OPTIONS and one.kind in kinds}
    defaults = {key: one.default for key, one in declared.items()}
    return FactoryRef(name, function, _options(name, defaults, hints), file, text)


def gymnasium_ref(name: str) -> FactoryRef:
    """The reference to ``gym:ID`` or ``gym:module:ID``; the module, which registers the ID, is imported.

    Options are the arguments of the environment whose default is a number or a string, and its time limit.

    Raises:
        SaltusError: an unknown ID, or a module that cannot be imported.
    """
    spec = _find_spec(name)
    try:
        entry = spec.entry_point if callable(spec.entry_point) else _load(str(spec.entry_point))
        parameters = dict(inspect.signature(entry).parameters)
    except (TypeError, ValueError, AttributeError, ImportError, gymnasium.error.Error):  # `make` will say it
        parameters = {}
    defaults = {key: spec.kwargs.get(key, one.default) for key, one in parameters.items() if key not in _NOT_OPTIONS}
    defaults = {key: value for key, value in defaults.items() if isinstance(value, _PLAIN)}
    if spec.max_episode_steps is not None:
        defaults["max_episode_steps"] = spec.max_episode_steps
    return FactoryRef(name, partial(_make_gymnasium, name, spec.id), _options(name, defaults, {}))


def _load(entry_point: str) -> Any:
    module, _, attribute = entry_point.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _find_spec(name: str) -> Any:
    module, _, env_id = name.removeprefix(GYMNASIUM).rpartition(":")
    if not env_id:
        raise SaltusError(f"{name!r} names no environment; expected gym:ID, as in gym:Walker2d-v5")
    try:
        if module:
            importlib.import_module(module)
        return gymnasium.spec(env_id)
    except ImportError as error:
        raise SaltusError(f"{name}: {error}. Install the package that registers {env_id}") from error
    except gymnasium.error.Error as error:
        package = f"; {module} was imported and has not registered it" if module else (
            f". If a package registers it when it is imported, name the package: gym:package:{env_id}, as in "
            "gym:panda_gym:PandaReach-v3"
        )  # fmt: skip
        raise SaltusError(f"Gymnasium finds no environment {env_id!r} ({str(error).rstrip('.')}){package}") from error


def _make_gymnasium(name: str, env_id: str, num_envs: int, render_mode: str | None = None, **options: Any) -> Any:
    """`gymnasium.make_vec` with autoreset mode SAME_STEP, or the environment's own vector form if saltus can step it.

    CartPole's vector class uses NEXT_STEP and ignores reset masks.
    """
    given = options if render_mode is None else {**options, "render_mode": render_mode}
    mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
    try:
        if gymnasium.spec(env_id).vector_entry_point is not None:
            env = gymnasium.make_vec(env_id, num_envs, **given)
            if env.metadata.get("autoreset_mode") != AutoresetMode.NEXT_STEP:
                return env
            env.close()
        return gymnasium.make_vec(env_id, num_envs, vectorization_mode="sync", vector_kwargs=mode, **given)
    except (gymnasium.error.Error, ImportError) as error:
        raise SaltusError(f"Gymnasium cannot make {name}: {error}") from error


def _options(name: str, defaults: Mapping[str, Any], hints: Mapping[str, Any]) -> type:
    """A dataclass of the options, by their defaults (`inspect.Parameter.empty`: required) and type hints."""
    fields: list[Any] = []
    for key, default in defaults.items():
        required = default is inspect.Parameter.empty
        hint = hints.get(key, type(default) if isinstance(default, _PLAIN) else Any)
        value = dataclasses.field(kw_only=True) if required else dataclasses.field(
            kw_only=True, default_factory=partial(_identity, default)
        )  # fmt: skip
        fields.append((key, hint, value))
    return dataclasses.make_dataclass(name.rpartition(":")[2].replace("/", "-"), fields)


def _identity(value: Any) -> Any:
    return value


def _worlds(name: str, env: Any, num_envs: int) -> Worlds:
    """The worlds of an environment that a factory returned.

    Raises:
        SaltusError: something else, or another number of worlds.
    """
    expected = "expected a gymnasium.vector.VectorEnv or a torchrl.envs.EnvBase of batch size [num_envs]"
    if isinstance(env, BatchEnv):
        raise SaltusError(f"{name} returned a BatchEnv; {expected}. Name a task of saltus itself, as file.py:ClassName")
    if "torchrl" in sys.modules:  # else nothing is of TorchRL, whose import takes seconds
        from envs.external.torchrl_worlds import TorchRLWorlds, is_torchrl

        if is_torchrl(env):
            return TorchRLWorlds(env, num_envs)
    parts = ("num_envs", "single_observation_space", "single_action_space", "reset", "step")
    if not all(hasattr(env, part) for part in parts):
        single = ": put it into gymnasium.vector.SyncVectorEnv" if isinstance(env, gymnasium.Env) else ""
        raise SaltusError(f"{name} returned {env!r}; {expected}{single}")
    if env.num_envs != num_envs:
        raise SaltusError(f"{name} returned an environment of {env.num_envs} worlds; expected num_envs = {num_envs}")
    return GymnasiumWorlds(env)

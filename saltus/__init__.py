"""Soft actor-critic on batched MuJoCo simulation. Public names are imported at first use.

>>> import saltus
>>> env = saltus.make("Hopper-v5", num_envs=256)
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saltus._version import __version__ as __version__
from saltus.errors import SaltusError

if TYPE_CHECKING:
    from envs import BatchEnv, Simulation, State, Task, list_tasks, make, register, rewards
    from envs.field_change import offset, scale
    from envs.gymnasium_env import GymnasiumVectorEnv
    from envs.randomization import draw_fields, scale_masses
    from envs.torchrl_env import TorchRLEnv
    from pipeline.evaluate import evaluate
    from pipeline.library import resume, train
    from pipeline.policy import load_policy

__all__ = [
    "BatchEnv", "GymnasiumVectorEnv", "SaltusError", "Simulation", "State", "Task", "TorchRLEnv",
    "draw_fields", "evaluate", "list_tasks", "load_policy", "make", "offset", "register", "resume", "rewards", "scale",
    "scale_masses", "train",
]  # fmt: skip

_OF_ENVS = (
    "BatchEnv", "Simulation", "State", "Task", "draw_fields", "list_tasks", "make", "offset", "register", "rewards",
    "scale", "scale_masses",
)  # fmt: skip
_HOMES = {
    **dict.fromkeys(_OF_ENVS, "envs"),
    "GymnasiumVectorEnv": "envs.gymnasium_env",
    "TorchRLEnv": "envs.torchrl_env",
    "evaluate": "pipeline.evaluate",
    "load_policy": "pipeline.policy",
    "resume": "pipeline.library",
    "train": "pipeline.library",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'saltus' has no attribute {name!r}")
    require_own_packages()
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def require_own_packages() -> None:
    """Check that `envs` and `pipeline` are saltus's own packages, without importing them.

    Raises:
        ImportError: another package or module has one of these names and comes first on Python's path.
    """
    for name in ("envs", "pipeline"):
        own = (Path(__file__).resolve().parent.parent / name).resolve()
        found = _location(sys.modules[name].__spec__ if name in sys.modules else importlib.util.find_spec(name))
        if found not in (own, None):
            raise ImportError(
                f"saltus needs its own package {name!r} ({own}), but Python finds {found} first. Rename that one, or "
                "remove its parent folder from Python's path",
                name=name,
                path=str(found),
            )


def _location(spec: ModuleSpec | None) -> Path | None:
    """The folder of a package (with or without __init__.py), or the file of a module."""
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or [])
    location = folders[0] if folders else spec.origin
    return None if location is None else Path(location).resolve()

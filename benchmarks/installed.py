"""Packages that benchmarks compare with, and the commands that install them."""

from __future__ import annotations

from importlib.util import find_spec

INSTALL = "pip install -c constraints.txt"
PACKAGES = {"stable_baselines3": "stable-baselines3", "sbx": "sbx-rl"}  # those with another name than their module


def install_command(module: str) -> str:
    """The command that installs a module."""
    return f"{INSTALL} {PACKAGES.get(module, module)}"


def is_installed(module: str) -> bool:
    """Whether a module can be imported."""
    return find_spec(module) is not None


def require_statistics() -> None:
    """Raise SystemExit if the package that computes statistics over seeds is missing."""
    _require("scipy", "the statistics need")


def require_shared_storage() -> None:
    """Raise SystemExit if the package that keeps runs in a database is missing."""
    _require("optuna", "--storage needs")


def _require(module: str, subject: str) -> None:
    if not is_installed(module):
        raise SystemExit(f"{subject} {module}: {install_command(module)}")

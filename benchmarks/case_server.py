"""Run one case of the checkout of saltus that comes first on Python's path, turn by turn.

Usage: ``python -P case_server.py SETTINGS``, with the settings as JSON (see `build`).

For each line of the standard input, a number of seconds, the process works at least that long and at least one call,
and replies with a line ``[units, seconds]``. It sends a first reply when the case is built.

The code of the case may be older or newer than this file. This file therefore uses nothing from the package
`benchmarks` except the functions that build a case.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    """Build the case, then run a turn for each line of the standard input."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # keeps the replies apart from anything that a library prints
    settings = json.loads(sys.argv[1])
    require_checkout(Path(settings["checkout"]))
    work = build(settings)
    print(json.dumps([0, 0.0]), file=replies)
    for line in sys.stdin:
        print(json.dumps(turn(work, float(line))), file=replies)


def require_checkout(checkout: Path) -> None:
    """Raise ImportError unless the packages of saltus come from `checkout`."""
    for name in ("benchmarks", "envs", "pipeline"):
        module = importlib.import_module(name)
        if not Path(module.__path__[0]).samefile(checkout / name):
            raise ImportError(f"{name} was imported from {module.__path__[0]} instead of {checkout}")


def build(settings: dict[str, Any]) -> Callable[[], int]:
    """Build a case.

    `_saltus`, `_actions` and `_make` keep their names and arguments, so that later versions can measure earlier ones.

    Args:
        settings: ``benchmark`` and ``threads``, and for ``environment``: ``task``, ``num_envs``; for ``update``:
            ``task``, ``case``, ``buffer_size``, ``updates``, ``device``.
    """
    import torch

    torch.set_num_threads(settings["threads"])
    task = settings["task"]
    if settings["benchmark"] == "environment":
        from benchmarks import environment

        num_envs = settings["num_envs"]
        return environment._saltus(task, num_envs, settings["threads"], environment._actions(task, num_envs))
    import envs
    from benchmarks import update
    from benchmarks.data import random_transitions

    env = envs.make(task, 1)
    data = random_transitions(settings["buffer_size"], env.observation_dim, env.action_dim).to(settings["device"])
    return update._make(settings["case"], task, data, settings["updates"])


def turn(work: Callable[[], int], seconds: float) -> tuple[int, float]:
    """Work until `seconds` have passed, at least one call; return the units of work and the exact duration."""
    units, start = 0, time.perf_counter()
    while True:
        units += work()
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return units, elapsed


if __name__ == "__main__":
    main()

"""The state of a run on several ranks in checkpoints: what they have in common, and the part of each rank.

Rank 0 writes the checkpoint's file, which holds what all ranks have in common and its own part, as that of a usual run.
Every other rank writes its part to a file of its own before.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import checkpoint
from pipeline.config import Config
from pipeline.ranks import Ranks

OWN = ("metrics", "observation", "environment", "buffer", "noise", "random", "random_cuda")
"""Names of what differs between ranks."""


def save(folder: Path, config: Config, state: dict[str, Any], ranks: Ranks) -> None:
    """Write a checkpoint. Waits for all ranks.

    Args:
        folder: created if it does not exist.
        config: the run's configuration.
        state: this rank's state.
        ranks: all ranks call this function.

    Raises:
        CheckpointError: a rank's file could not be written; the checkpoint before is still the last. All ranks raise.
    """
    env_steps, settings = state["env_steps"], config.to_dict()
    with _shared_errors(ranks):
        if ranks.rank > 0:
            checkpoint.save_part(folder, env_steps, ranks.rank, settings, {name: state[name] for name in OWN})
    with _shared_errors(ranks):  # rank 0's file comes last: it completes the checkpoint
        if ranks.rank == 0:
            checkpoint.save(folder, env_steps, settings, state)


@contextmanager
def _shared_errors(ranks: Ranks) -> Iterator[None]:
    """Raise a rank's CheckpointError on all ranks, which would wait for it. Waits for all ranks."""
    own: checkpoint.CheckpointError | None = None
    try:
        yield
    except checkpoint.CheckpointError as error:
        own = error
    reports = ranks.gather((socket.gethostname(), "" if own is None else str(own)))
    if own is not None:
        raise own
    failures = [f"rank {rank} on {host}: {text}" for rank, (host, text) in enumerate(reports) if text]
    if failures:
        raise checkpoint.CheckpointError("; ".join(failures))


def take(content: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Remove the state from a checkpoint's content, and complete it for this rank.

    If the run had another number of ranks, its replay is dealt anew: each rank gets that of its share of the worlds.
    The state then has no worlds, noise and random generators.

    Raises:
        CheckpointError: a rank's part of the checkpoint cannot be read.
    """
    state, num_envs = content.pop("state"), content["config"]["num_envs"]
    saved = state.get("ranks", 1)
    if saved == ranks.size:
        return state | checkpoint.load_part(content["file"], ranks.rank) if ranks.rank else state
    parts = [state["buffer"], *(checkpoint.load_part(content["file"], rank)["buffer"] for rank in range(1, saved))]
    common = {name: value for name, value in state.items() if name not in OWN}
    return {**common, "metrics": state["metrics"], "buffer": deal(parts, num_envs, ranks)}


def deal(parts: list[dict[str, Any]], num_envs: int, ranks: Ranks) -> dict[str, Any]:
    """The part of a rank of the transitions that other ranks stored.

    Args:
        parts: states of the replay buffers of as many worlds each, in the order of worlds.
        num_envs: number of all worlds.
        ranks: this rank gets an equal share of all worlds, in the same order.

    Returns:
        ``"stored"``: transitions by name, oldest first, whole vector steps; ``"num_envs"``: this rank's worlds.
    """
    worlds, count = num_envs // len(parts), ranks.share(num_envs)
    rows = [_rows(part, worlds) for part in parts]
    first = ranks.rank * count
    mine = [divmod(world, worlds) for world in range(first, first + count)]
    sources = sorted({source for source, _ in mine})
    stored = {}
    for name in parts[0]["stored"]:
        columns = []
        for source in sources:
            own = torch.tensor([world for other, world in mine if other == source])
            index = rows[source][:, own]
            columns.append(parts[source]["stored"][name][index.flatten()].unflatten(0, index.shape))
        stored[name] = torch.cat(columns, dim=1).flatten(0, 1)
    return {"stored": stored, "num_envs": count}


def _rows(part: dict[str, Any], worlds: int) -> Tensor:
    """Rows of the whole vector steps in a replay buffer's storage, oldest first, (steps, worlds)."""
    length = len(part["stored"]["observation"])
    oldest = int(part["cursor"]) if part["added"] > length else 0
    steps = length // worlds
    rows = (oldest + torch.arange(length - steps * worlds, length)) % length
    return rows.view(steps, worlds)

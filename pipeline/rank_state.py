"""The state of a run on several ranks in checkpoints: what they have in common, and the part of each rank.

Rank 0 writes the checkpoint's file, which holds what all ranks have in common and its own part, as that of a usual run.
Every other rank writes its part to a file of its own before.
"""

from __future__ import annotations

import socket
import uuid
import warnings
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
    if ranks.size > 1:  # parts of two saves at the same step must not mix
        state = state | {"save": ranks.gather(uuid.uuid4().hex[:8])[0]}
    with _shared_errors(ranks):
        if ranks.rank > 0:
            checkpoint.save_part(
                folder, env_steps, ranks.rank, settings, {name: state[name] for name in (*OWN, "save")}
            )
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


def agree(content: dict[str, Any], config: Config, ranks: Ranks) -> None:
    """Choose the last checkpoint whose common file and parts all ranks can read; warn of damaged ones.

    Args:
        content: of the checkpoint that this rank found (see `checkpoint.load_last`). It becomes that of the chosen
            one, with ``"parts"``: the other ranks' states that this rank needs.
        config: the run's configuration.
        ranks: all ranks call this function, which waits for them.

    Raises:
        CheckpointError: a rank cannot read a file, or no checkpoint is intact. All ranks raise.
    """
    folder, found = content["file"].parent, content["file"].name
    names = [found, *(path.name for path in reversed(checkpoint.find(folder)) if path.name < found)]
    names = ranks.gather(names)[0]
    for name, before in zip(names, [*names[1:], ""], strict=True):
        own = content if name == found else None
        loaded, problem, damaged = _try_to_load(folder / name, own, config, ranks)
        state = loaded["state"] if loaded else {}
        seen = None if problem else (state["env_steps"], state.get("ranks", 1), state.get("save"))
        reports = ranks.gather((socket.gethostname(), problem, damaged, seen))
        if loaded is not None and all(report[3] == seen for report in reports):
            content.update(loaded)
            return
        problems = [f"rank {rank} on {host}: {text}" for rank, (host, text, *_) in enumerate(reports) if text]
        if ranks.size == 1:
            problems = [problem]
        error = "; ".join(problems) or f"the ranks read different contents of checkpoint {folder / name}"
        if any(text and not damage for _, text, damage, _ in reports):
            raise checkpoint.CheckpointError(error)
        if not before:
            raise checkpoint.DamagedCheckpointError(f"{error}. There is no other checkpoint: start the run again")
        if ranks.rank == 0:
            warnings.warn(f"{error}. The one before is used instead: {before}", stacklevel=2)


def _try_to_load(
    path: Path, content: dict[str, Any] | None, config: Config, ranks: Ranks
) -> tuple[dict[str, Any] | None, str, bool]:
    """A checkpoint's content with the parts that this rank needs, or the reason that prevents it, and if it is damage.

    Args:
        path: the checkpoint.
        content: its content; None: not read yet.
        config: the run's configuration.
        ranks: the ranks that read it.
    """
    try:
        content = content or checkpoint.load(path, config.to_dict())
        saved = content["state"].get("ranks", 1)
        needed = range(1, saved) if saved != ranks.size else [ranks.rank] * (ranks.rank > 0)
        return {**content, "parts": [_load_part(content, rank) for rank in needed]}, "", False
    except checkpoint.CheckpointError as error:
        return None, str(error), isinstance(error, checkpoint.DamagedCheckpointError)


def _load_part(content: dict[str, Any], rank: int) -> dict[str, Any]:
    """A rank's part of a checkpoint; a part of another save at the same step counts as damage."""
    save_name = content["state"].get("save")
    part = checkpoint.load_part(content["file"], rank, save_name)
    if part.pop("save", None) != save_name:
        raise checkpoint.DamagedCheckpointError(
            f"rank {rank}'s part of checkpoint {content['file']} belongs to another save"
        )
    return part


def load_state(content: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Remove the state from the content of a checkpoint on which the ranks agreed, and complete it for this rank.

    If the run had another number of ranks, its replay is dealt anew: each rank gets that of its share of the worlds.
    The state then has no worlds, noise and random generators.
    """
    state, parts, num_envs = content.pop("state"), content.pop("parts"), content["config"]["num_envs"]
    if state.get("ranks", 1) == ranks.size:
        return state | parts[0] if parts else state
    buffers = [state["buffer"], *(part["buffer"] for part in parts)]
    common = {name: value for name, value in state.items() if name not in OWN}
    return {**common, "metrics": state["metrics"], "buffer": deal(buffers, num_envs, ranks)}


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

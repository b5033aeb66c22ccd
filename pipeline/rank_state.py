"""The state of a run on several ranks in checkpoints: what they have in common, and the part of each rank.

Rank 0 writes the checkpoint's file, which holds what all ranks have in common and its own part, as that of a usual run.
Every other rank writes its part to a file of its own before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
        CheckpointError: this rank's file could not be written.
    """
    env_steps, settings = state["env_steps"], config.to_dict()
    if ranks.rank > 0:
        checkpoint.save_part(folder, env_steps, ranks.rank, settings, {name: state[name] for name in OWN})
    ranks.gather(None)  # rank 0's file comes last: it completes the checkpoint
    if ranks.rank == 0:
        checkpoint.save(folder, env_steps, settings, state)


def take(content: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Remove the state from a checkpoint's content, and complete it for this rank.

    Raises:
        CheckpointError: the run had another number of ranks, or this rank's part of the checkpoint cannot be read.
    """
    state = content.pop("state")
    saved = state.get("ranks", 1)
    if saved != ranks.size:
        start = f"torchrun --nproc-per-node {saved} -m saltus resume" if saved > 1 else "saltus resume"
        raise checkpoint.CheckpointError(
            f"the run had {saved} rank{'s' * (saved > 1)}, and this is {ranks.size}: resume it with as many, on one "
            f"machine by `{start} RUN`. `saltus evaluate`, `play` and `export` need a single process"
        )
    return state | checkpoint.load_part(content["file"], ranks.rank) if ranks.rank else state

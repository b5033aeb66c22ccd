"""The environment variables by which torchrun numbers the processes that it starts."""

from __future__ import annotations

import os

from saltus.errors import SaltusError

_REQUIRED = ("RANK", "WORLD_SIZE", "MASTER_ADDR")


class SharedError(SaltusError):
    """An error that all ranks raise with the same text, which rank 0 alone prints."""


def size() -> int:
    """Number of processes, on all machines; 1 without torchrun. Other launchers set some of its variables."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _REQUIRED) else 1


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", "0")) if size() > 1 else 0


def local_rank() -> int:
    """Number of this process among those of its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def restarts() -> int:
    """How often torchrun has restarted the processes of this machine after a failure on it."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def max_restarts() -> int:
    """How often torchrun may do so."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))


def keeps_store() -> bool:
    """Whether torchrun's own process has the store at which ranks meet, so that it outlives them."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def prefix() -> str:
    """Start of the messages of a rank other than 0; empty for rank 0, whose messages are those of the run."""
    return f"rank {rank()}: " if rank() else ""

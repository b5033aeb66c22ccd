"""The start of a run on several ranks: torchrun's processes join, agree, and name the one that fails."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch

from envs.task_ref import task_file
from pipeline import restarts, torchrun
from pipeline.config import Config
from pipeline.ranks import ALONE, Ranks, TorchRanks
from saltus.device import cuda_available, resolve_device
from saltus.errors import SaltusError
from saltus.versions import cpu_settings, versions

Value = TypeVar("Value")

TIMEOUT = "SALTUS_RANKS_TIMEOUT"
_NCCL_EXTRA_SECONDS = 120.0  # NCCL's timeout ends the process without a message; gloo's names the rank
_REPORT_SECONDS = 5.0  # ranks notice a failure at about the same time


@contextmanager
def join(config: Config, on_failure: Callable[[], None] = lambda: None) -> Iterator[Ranks]:
    """Join the ranks that torchrun started; a process that it did not start is alone.

    Each rank gets the GPU of its number on its machine, and its share of the cores. If a collective operation fails
    or takes longer than `SALTUS_RANKS_TIMEOUT` seconds, 600 by default, the error names the ranks that took no part.

    Args:
        config: the run's configuration.
        on_failure: called at once if a collective operation fails.

    Raises:
        SaltusError: sizes that cannot be divided, a missing GPU or rank, ranks that differ in configuration, task or
            versions, or a failed operation.
    """
    if torchrun.size() == 1:
        yield ALONE
        return
    import torch.distributed as distributed

    require_divisible(config, torchrun.size())
    _choose_gpu(config)
    timeout = read_timeout()
    store = _check_in(timeout)
    try:
        device = resolve_device(config.device)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=torchrun.rank(),
            world_size=torchrun.size(),
            timeout=timeout,
        )
        if device.type == "cuda":
            _extend_timeout_of_nccl(timeout)
        ranks = TorchRanks()
        ranks.num_threads = _count_threads(ranks)
        ranks.per_host = ranks.gather(socket.gethostname()).count(socket.gethostname())
        require_equal_start(ranks.gather(_describe_start(config, device)))
        yield ranks
    except RuntimeError as error:
        if not is_of_collective(error):
            raise
        on_failure()
        raise SaltusError(_describe_failure(store, error, timeout)) from error
    distributed.destroy_process_group()


def require_divisible(config: Config, size: int) -> None:
    """Raise SaltusError unless `size` ranks can have equal shares of worlds, batches and replay buffer."""
    sizes = {"num_envs": config.num_envs, "batch_size": config.batch_size, "buffer_size": config.max_transitions}
    for name, number in sizes.items():
        if number % size:
            below, above = number // size * size, -(-number // size) * size
            nearest = f"{below:,} or {above:,}" if below else f"{above:,}"
            raise torchrun.SharedError(
                f"{name} is {number:,}, a number of the whole run, and {size} ranks cannot have equal shares of it: "
                f"set --{name.replace('_', '-')} {nearest}"
            )


def on_rank_0(ranks: Ranks, action: Callable[[], Value]) -> Value:
    """Rank 0's result of `action`, on all ranks; its refusal as well.

    Raises:
        SaltusError: the refusal of rank 0.
    """
    if ranks.size == 1:
        return action()
    result: tuple[Any, str] = (None, "")
    if ranks.rank == 0:
        try:
            result = action(), ""
        except (SaltusError, OSError) as error:
            result = None, str(error) or type(error).__name__
    value, refusal = ranks.gather(result)[0]
    if refusal:
        raise torchrun.SharedError(refusal)
    return value


def require_shared(ranks: Ranks, run_dir: Path) -> None:
    """Raise SaltusError, on all ranks, if one does not see the directory that rank 0 writes to."""
    if ranks.size == 1:
        return
    for rank, (host, sees) in enumerate(ranks.gather((socket.gethostname(), run_dir.is_dir()))):
        if not sees:
            raise torchrun.SharedError(
                f"rank {rank} on {host} does not see {run_dir.resolve()}: give a --run-dir on a file system that all "
                "machines share"
            )


def _choose_gpu(config: Config) -> None:
    """Make the GPU of this rank's number on its machine the current one."""
    if config.device == "cpu" or not cuda_available():
        return
    number, count = torchrun.local_rank(), torch.cuda.device_count()
    if number >= count:
        raise SaltusError(
            f"each rank needs a GPU, and {socket.gethostname()} has {count}, too few for its rank {number} (counted "
            f"from 0): give torchrun --nproc-per-node {count}"
        )
    torch.cuda.set_device(number)


def read_timeout() -> timedelta:
    """How long a rank waits for another, from the environment variable `SALTUS_RANKS_TIMEOUT`."""
    text = os.environ.get(TIMEOUT, "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e7:
        raise SaltusError(f"{TIMEOUT} is {text!r}; it must be a number of seconds above 0")
    return timedelta(seconds=seconds)


def _check_in(timeout: timedelta) -> Any:
    """Meet the other ranks at torchrun's store; return it."""
    import torch.distributed as distributed

    size = torchrun.size()
    try:
        store, rank, _ = next(distributed.rendezvous("env://", timeout=timeout))
    except (distributed.DistError, ValueError) as error:
        raise SaltusError(f"this rank found no other of {size} within {timeout.total_seconds():g} s: {error}") from None
    store.set_timeout(timeout)
    store, absent = restarts.meet(store, rank, size, timeout)
    if absent:
        missing = ", ".join(map(str, absent))
        raise SaltusError(
            f"{size} ranks were to start, and rank {missing} did not within {timeout.total_seconds():g} s ({TIMEOUT}): "
            "see its messages, and start torchrun on every node"
        )
    return store


def _count_threads(ranks: Ranks) -> int:
    """This rank's share of the cores that it and others may use."""
    own = socket.gethostname(), sorted(os.sched_getaffinity(0))
    neighbours = sum(other == own for other in ranks.gather(own))
    return max(1, len(own[1]) // neighbours)


def _describe_start(config: Config, device: torch.device) -> dict[str, str]:
    """Settings and versions that must be equal on all ranks, as text by name."""
    file = task_file(config.task)
    digest = "none" if file is None else hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    settings = {name: json.dumps(value) for name, value in config.to_dict().items()}
    cpu = cpu_settings()
    packages = {name: version for name, version in versions().items() if name not in cpu}
    own = {**settings, "the task's file": digest, "type of the device": device.type, **packages}
    return own | cpu if device.type == "cpu" else own


def require_equal_start(starts: list[dict[str, str]]) -> None:
    """Raise SaltusError unless all ranks have the same settings, task, versions and kind of device.

    Args:
        starts: of each rank, by name. Another version of saltus may have other settings.
    """
    first, *others = starts
    for rank, other in enumerate(others, start=1):
        names = dict.fromkeys((*first, *other))
        different = [name for name in names if first.get(name) != other.get(name)]
        if different:
            pairs = ", ".join(
                f"{name}: {other.get(name, 'missing')} instead of {first.get(name, 'missing')}" for name in different
            )
            advice = (
                "set OMP_NUM_THREADS, and use machines of one kind"
                if set(different) <= cpu_settings().keys()
                else "start all ranks with the same command, files and versions"
            )
            raise torchrun.SharedError(f"rank {rank} differs from rank 0 ({pairs}): {advice}")


def _extend_timeout_of_nccl(timeout: timedelta) -> None:
    """Let the exchanges on the CPU, which name the rank that hangs, fail before those on GPUs."""
    import torch.distributed as distributed

    extended = timeout + timedelta(seconds=_NCCL_EXTRA_SECONDS)
    world = distributed.group.WORLD
    assert world is not None
    world._get_backend(torch.device("cuda"))._set_default_timeout(extended)


def is_of_collective(error: RuntimeError) -> bool:
    """Whether torch.distributed raised an error. Those of gloo have no type of their own."""
    from torch.distributed import DistError

    if isinstance(error, DistError):
        return True
    text = str(error).lower()
    return type(error) is RuntimeError and ("gloo" in text or "connection closed by peer" in text)


def _describe_failure(store: Any, error: RuntimeError, timeout: timedelta) -> str:
    """Which ranks do not report the failure of a collective operation, because they ended or hang."""
    size = torchrun.size()
    keys = [f"saltus/failed/{number}" for number in range(size)]
    silent = list(range(size))
    try:
        store.set(keys[torchrun.rank()], "")
        end = time.monotonic() + _REPORT_SECONDS
        while silent and time.monotonic() < end:
            time.sleep(0.1)
            silent = [number for number in silent if not store.check([keys[number]])]
    except RuntimeError:
        return f"the ranks lost each other, and the process that joined them has ended: {_first_line(error)}"
    if not silent:
        return f"the connection between the ranks failed: {_first_line(error)}"
    names = ", ".join(map(str, silent))
    return (
        f"rank {names} of {size} ended, or took no part in a collective operation for {timeout.total_seconds():g} s "
        f"({TIMEOUT}): see its messages. The run resumes from its last checkpoint"
    )


def _first_line(error: RuntimeError) -> str:
    return str(error).strip().partition("\n")[0]

"""Restarts by torchrun: what the processes of a job keep for those that replace them, in torchrun's store.

The store is in torchrun's own process, and outlives the processes that it starts (``torchrun --max-restarts``). So do
the keys in it: ranks that meet again at the addresses of ended ones fail. `meet` gives every start keys of its own.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipeline import torchrun
from saltus.errors import SaltusError

_RUN = "saltus/run"  # of the job, not of one start
_CONNECT_SECONDS = 60.0
_POLL_SECONDS = 0.02


def begun_run() -> Path | None:
    """The directory of the run that this job of torchrun began before a restart; None if it began none.

    Raises:
        SaltusError: torchrun is to restart processes, but the store would end with them; or it does not answer.
    """
    if not torchrun.keeps_store():
        if torchrun.max_restarts():
            raise SaltusError(
                "torchrun's --max-restarts needs a store that outlives the ranks, to find the run again: unset "
                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE, and use --standalone, or --rdzv-backend c10d or static; or "
                "leave --max-restarts out"
            )
        return None
    store = _open()
    return Path(store.get(_RUN).decode()) if store.check([_RUN]) else None


def remember_run(run_dir: Path) -> None:
    """Keep the directory of the job's run for `begun_run`."""
    if torchrun.keeps_store():
        _open().set(_RUN, str(run_dir))


def meet(store: Any, rank: int, size: int, timeout: timedelta) -> tuple[Any, list[int]]:
    """Wait for the other ranks of this start of the job.

    torchrun's count of restarts does not number the starts: it counts those for which a node's own ranks are the
    reason, and differs between nodes. So rank 0 invents a name, and tells it to each rank that asks for it.

    Args:
        store: torchrun's store.
        rank: number of this rank.
        size: number of ranks.
        timeout: time to wait.

    Returns:
        A store of this start alone, and the ranks that did not come, in which case the store must not be used.
    """
    import torch.distributed as distributed

    end = time.monotonic() + timeout.total_seconds()
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"saltus/asks/{rank}", own)
        try:
            store.wait([f"saltus/answer/{own}"], timeout)
        except distributed.DistError:
            return store, [0]
    name = store.get(f"saltus/answer/{own}").decode() if rank else own
    start = distributed.PrefixStore(f"saltus/start/{name}", store)
    keys = [f"joined/{number}" for number in range(size)]
    start.set(keys[rank], "")
    answered: set[bytes] = set()
    while not start.check(keys):
        if time.monotonic() > end:
            return start, [number for number, key in enumerate(keys) if not start.check([key])]
        if rank == 0:
            _answer(store, size, name, answered)
        time.sleep(_POLL_SECONDS)
    return start, []


def _answer(store: Any, size: int, name: str, answered: set[bytes]) -> None:
    """Tell the start's name to each rank that asks. Those of earlier starts asked as well; they do not read it."""
    for key in (f"saltus/asks/{number}" for number in range(1, size)):
        if store.check([key]) and (asker := store.get(key)) not in answered:
            answered.add(asker)
            store.set(f"saltus/answer/{asker.decode()}", name)


def _open() -> Any:
    """A connection to torchrun's store."""
    import torch.distributed as distributed

    try:
        return next(distributed.rendezvous("env://", timeout=timedelta(seconds=_CONNECT_SECONDS)))[0]
    except (distributed.DistError, ValueError) as error:
        raise SaltusError(f"the store of torchrun does not answer: {error}") from None

"""Workers of `python -m benchmarks training --storage`, and their runs, as forks of one process that has imported all.

A fork takes 10 ms, the imports of a process 4 s. The arguments are a folder, the database's URL and the number of
workers. Each is a process group with a log; the first is killed in its first run, once that has been evaluated.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import checkout, curves, shared_training, training, training_run  # noqa: F401 - before the forks
from pipeline import cli, plot, policy, run, train, train_options  # noqa: F401

TOTAL, HALF = 800, 400
OPTIONS = (
    f"--total-env-steps {TOTAL} --eval-every {HALF} --num-envs 8 --utd-ratio 0.125 --learning-starts 80 "
    "--batch-size 32 --actor-hidden 16 --critic-hidden 16 --eval-episodes 2 --device cpu --no-compile --num-threads 1"
)
CASES, LEASE = 5, 6


def main() -> None:
    """Start the workers, kill the first, wait for the others; exit code 0 if they end well."""
    gc.collect()
    gc.freeze()  # else the first collection in each fork copies the memory
    curves.draw, plot._draw = (lambda *_: None), (lambda *_: None)  # drawings take longer than the runs
    folder, url, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    workers = [_fork_worker(folder, url, index) for index in range(number)]
    while f"evaluation at {HALF}" not in (folder / "0.log").read_text():
        time.sleep(0.02)
    os.killpg(workers[0], signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) for worker in workers]
    sys.exit(codes != [-signal.SIGKILL] + [0] * (number - 1))


def _fork_worker(folder: Path, url: str, index: int) -> int:
    log = os.open(folder / f"{index}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    worker = os.fork()
    if worker:
        os.close(log)
        return worker
    os.setsid()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[index % len(cores)]})
    os.dup2(log, 1)
    os.dup2(log, 2)
    training_run.run_for, checkout.run = _run_for, lambda *command: _run_for(None, [*map(str, command)], None)[0]
    training.training(
        ("InvertedPendulum-v5",), tuple(OPTIONS.split()), seeds=tuple(range(CASES)), episodes=2, storage=url,
        lease=LEASE, output=folder / f"{index}.jsonl",
    )  # fmt: skip
    sys.stdout.flush()
    os._exit(0)


def _run_for(
    _limit: float | None, command: Sequence[str], _cache: Path | None, _grace: float = 0.0, prefix: str = ""
) -> tuple[int, float, training_run.Lines]:
    """`training_run.run_for`, with a fork instead of a new process."""
    reader, writer = os.pipe()
    started, lines = time.monotonic(), []
    child = os.fork()
    if child == 0:
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        sys.argv = ["saltus", *command[len(training_run.SALTUS) :]]
        code = 1
        try:
            cli.main()
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    os.close(writer)
    with open(reader) as output:
        for line in output:
            lines.append((time.monotonic() - started, line.rstrip()))
            print(prefix + line, end="", flush=True)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), time.monotonic() - started, lines


if __name__ == "__main__":
    main()

"""Runs of saltus that are disturbed at chosen moments, and what they computed."""

from __future__ import annotations

import csv
import errno
import math
import os
import re
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from file_operations import Listener, Operation
from forked_saltus import Unsupported, Zygote

TIMEOUT = 60.0
NUMBER = int(os.environ.get("SALTUS_FAULTS", "4"))  # of faults in each test that draws them

PENDULUM = '''
"""A pendulum that a torque swings up."""

from dataclasses import dataclass

import torch

from envs import Task


@dataclass
class Pendulum(Task):
    mjcf = """
    <mujoco>
      <worldbody>
        <body>
          <joint name="hinge" axis="0 1 0" damping="0.01"/>
          <geom type="capsule" fromto="0 0 0 0 0 -0.5" size="0.05"/>
        </body>
      </worldbody>
      <actuator><motor joint="hinge" ctrlrange="-10 10"/></actuator>
    </mujoco>
    """
    max_episode_steps: int = 8
    frame_skip: int = 5

    def reset(self, num, generator):
        noise = torch.rand(num, 2, generator=generator, dtype=torch.float64, device=generator.device)
        return 3 * noise[:, :1], noise[:, 1:]

    def observation(self, state):
        return torch.cat([state.qpos.sin(), state.qpos.cos(), state.qvel], dim=-1)

    def reward(self, state, action, next_state):
        return -next_state.qpos[:, 0].cos()
'''
TOTAL = 120
OPTIONS = (
    "--preset crossq --device cpu --no-compile --num-envs 4 --num-threads 1 --learning-starts 20 --utd-ratio 0.125 "
    "--steps-per-round 2 --policy-delay 2 --batch-size 8 --actor-hidden 8 --critic-hidden 8 --eval-episodes 2 "
    f"--log-every 10 --eval-every 60 --checkpoint-every 40 --total-env-steps {TOTAL}"
).split()


class Moment(NamedTuple):
    """The moment before a file operation in a run's directory.

    Attributes:
        operation: its name, and the file relative to the directory with N for numbers: "rename checkpoints/N.partial".
        occurrence: how many times the process has done this before.
    """

    operation: str
    occurrence: int = 0


BETWEEN, BETWEEN_STEPS = Moment("write metrics.csv", 4), 50
"""A moment between the checkpoints at 40 and 80 env steps, and the env steps done by then."""


def spread(moments: list[Moment], number: int) -> list[Moment]:
    """`number` moments, evenly spread over the operations: the first of each, then the second of each, and so on."""
    operations = len({moment.operation for moment in moments})
    ordered = sorted(moments, key=lambda moment: moment.occurrence)
    total = max(operations, min(number, len(moments)))
    number = min(number, total)
    return [ordered[total - 1 - index * total // number] for index in range(number)]


Fault = Callable[[Moment, int], int]
"""Called before each file operation in the run's directory, with the process's id; the errno to fail with, or 0."""


def no_fault(_moment: Moment, _pid: int) -> int:
    return 0


def kill_before(when: Moment) -> Fault:
    """SIGKILL before one operation."""

    def fault(moment: Moment, pid: int) -> int:
        if moment != when:
            return 0
        os.kill(pid, signal.SIGKILL)
        return errno.EINTR  # so that the kernel cannot execute the operation before the signal

    return fault


def fail(error: int, *operations: str, since: Moment | None = None, times: float = math.inf) -> Fault:
    """Let operations fail whose description starts with one of `operations`: the first `times` from one moment on."""
    begun, failed = since is None, 0

    def fault(moment: Moment, _pid: int) -> int:
        nonlocal begun, failed
        begun = begun or moment == since
        if not begun or failed >= times or not moment.operation.startswith(operations):
            return 0
        failed += 1
        return error

    return fault


def at(when: Moment, act: Callable[[int], object]) -> Fault:
    """Call `act` with the process's id before one operation, which is then executed."""

    def fault(moment: Moment, pid: int) -> int:
        if moment == when:
            act(pid)
        return 0

    return fault


@dataclass
class Outcome:
    """How a process ended.

    Attributes:
        status: exit status, or minus the signal that killed it.
        output: stdout and stderr.
        moments: its file operations in the run's directory.
        seconds: wall-clock time.
    """

    status: int
    output: str
    moments: list[Moment]
    seconds: float

    @property
    def text(self) -> str:
        """The output, lines joined."""
        return " ".join(self.output.split())


@dataclass
class Streams:
    """Descriptors that a process gets as stdin, stdout and stderr; None: an empty stdin, the outcome's output.

    Attributes:
        terminal: stdin is the process's controlling terminal.
    """

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    terminal: bool = False


def run_with_faults(
    zygote: Zygote,
    arguments: list[object],
    run_dir: Path,
    fault: Fault = no_fault,
    kill_after: float = TIMEOUT,
    file_size: int | None = None,
    streams: Streams | None = None,
) -> Outcome:
    """Run ``saltus`` to its end.

    Args:
        zygote: starts the process.
        arguments: the command line.
        run_dir: `fault` is called before the operations on its files.
        fault: the disturbance.
        kill_after: seconds until SIGKILL.
        file_size: the largest file that the process may write, in bytes.
        streams: stdin, stdout and stderr.
    """
    streams = streams or Streams()
    started = time.monotonic()
    with tempfile.TemporaryFile() as output, open(os.devnull, "rb") as nothing:
        chosen = [streams.stdin, streams.stdout, streams.stderr]
        default = [nothing.fileno(), output.fileno(), output.fileno()]
        descriptors = [other if one is None else one for one, other in zip(chosen, default, strict=True)]
        try:
            pid, listener = zygote.start(
                arguments, descriptors, terminal=streams.terminal, file_size=file_size, intercept=True
            )
        except Unsupported as error:
            pytest.skip(str(error))
        moments = supervise(listener, pid, run_dir, fault, started + kill_after)
        status = zygote.wait()
        output.seek(0)
        return Outcome(status, output.read().decode(), moments, time.monotonic() - started)


def supervise(descriptor: int, pid: int, run_dir: Path, fault: Fault, deadline: float) -> list[Moment]:
    """Answer a process's file operations until its end; kill it after `deadline`."""
    listener, moments, seen = Listener(descriptor), list[Moment](), Counter[str]()
    try:
        while (operation := listener.receive(deadline)) is not None:
            described = describe(operation, run_dir)
            error = 0
            if described is not None:
                moment = Moment(described, seen[described])
                seen[described] += 1
                moments.append(moment)
                error = fault(moment, pid)
            listener.answer(operation, error)
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
    finally:
        listener.close()
    return moments


def describe(operation: Operation, run_dir: Path) -> str | None:
    """An operation of a `Moment`; None outside the run's directory."""
    if not operation.path.is_relative_to(run_dir):
        return None
    return f"{operation.name} {re.sub('[0-9]+', 'N', str(operation.path.relative_to(run_dir)))}"


def require_no_differences(found: dict[Any, list[str]]) -> None:
    """Fail if a fault of `found` has differences; say which."""
    lines = [f"{fault}: {line}" for fault, differences in found.items() for line in differences]
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The parts of a nested state by name, tensors as bytes."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from leaves(part, f"{name}/{index}")
    elif isinstance(value, torch.Tensor):
        yield name, (value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes())
    else:
        yield name, repr(value)


def checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted((run_dir / "checkpoints").glob("*.pt"))


def saved_steps(run_dir: Path) -> int:
    """Env steps of the last checkpoint, -1 without one."""
    return max((int(path.stem) for path in checkpoints(run_dir)), default=-1)


def computed(run_dir: Path) -> dict[str, Any]:
    """Everything that a run computed, by name: the last checkpoint and the tables, without times and rates."""
    last = checkpoints(run_dir)[-1]
    values = {"last checkpoint": last.name, **dict(leaves(torch.load(last, weights_only=True)))}
    for table in ("metrics.csv", "evaluations.csv", "evaluation_episodes.csv"):
        with open(run_dir / table, newline="") as file:
            values |= {f"{table}/{name}": value for name, value in leaves(list(csv.DictReader(file)))}
    return {name: value for name, value in values.items() if not name.endswith(("/seconds", "_per_second"))}


def file_names(run_dir: Path) -> set[str]:
    """The files of a run, without checkpoints, and TensorBoard's, of which each session writes its own.

    A run killed after its last checkpoint has one more of the earlier checkpoints.
    """
    names = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*")}
    return {name for name in names if not (name.startswith("tensorboard/") or name.endswith(".pt"))}


class Runs:
    """Runs of one training command, each in a directory of its own; all have to compute what the first one did.

    Attributes:
        zygote: starts the processes.
        reference: the first run's directory.
        undisturbed: the first run.
        expected: what it computed.
    """

    def __init__(self, zygote: Zygote):
        self.zygote, self._number = zygote, 0
        (zygote.folder / "pendulum.py").write_text(PENDULUM)
        self.reference = self.new_dir()
        self.undisturbed = self.train(self.reference)
        assert self.undisturbed.status == 0, self.undisturbed.output
        self.expected = computed(self.reference)

    def new_dir(self) -> Path:
        """A directory for a run; none exists there yet."""
        self._number += 1
        return self.zygote.folder / f"run{self._number}"

    def run(self, arguments: list[object], run_dir: Path, fault: Fault = no_fault, **options: Any) -> Outcome:
        return run_with_faults(self.zygote, arguments, run_dir, fault, **options)

    def copy(self, run_dir: Path) -> Path:
        return Path(shutil.copytree(run_dir, self.new_dir()))

    def train(self, run_dir: Path, fault: Fault = no_fault, **options: Any) -> Outcome:
        return self.run(["train", "pendulum.py:Pendulum", *OPTIONS, "--run-dir", run_dir], run_dir, fault, **options)

    def resume(self, run_dir: Path, fault: Fault = no_fault, **options: Any) -> Outcome:
        return self.run(["resume", run_dir], run_dir, fault, **options)

    def go_on(self, run_dir: Path, fault: Fault = no_fault, **options: Any) -> Outcome:
        """Resume a run, or start it again if it saved nothing."""
        command = self.resume if checkpoints(run_dir) else self.train
        return command(run_dir, fault, **options)

    def differences(self, run_dir: Path) -> list[str]:
        """Finish a run without disturbance; how it differs from the undisturbed one."""
        outcome = self.go_on(run_dir)
        if outcome.status != 0:
            return [f"status {outcome.status}: {outcome.output}"]
        found = computed(run_dir)
        names = sorted(found.keys() | self.expected.keys())
        different = [name for name in names if found.get(name) != self.expected.get(name)]
        return different + sorted(file_names(run_dir) ^ file_names(self.reference))

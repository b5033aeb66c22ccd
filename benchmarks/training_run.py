"""One training run of `saltus train` or of another library, in a new process, over wall-clock time."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer
from typing import Any, Literal

from benchmarks import checkout
from benchmarks.code import code_hash as hash_of_code
from envs.task_ref import resolve_task
from pipeline import checkpoint
from pipeline.file_names import CHECKPOINTS, EVALUATION, EVALUATION_OF_LAST, EVALUATIONS
from pipeline.tables import read_table
from pipeline.train_options import RENAMED_OPTIONS

SALTUS = (sys.executable, "-m", "saltus")
PEER_TRAINING = (sys.executable, "-m", "benchmarks.peer_training")
PACKAGES = ("saltus", "envs", "pipeline", "benchmarks/peer_training.py")  # the code that trains
System = Literal["saltus", "stable-baselines3", "sbx"]
Lines = list[tuple[float, str]]
LINES_OF_FAILURE = 20  # the last lines of a failed run's output, which a result file keeps
COLUMNS = {  # of a learning curve, by their names in evaluations.csv
    "env_steps": "env_steps", "wall_seconds": "wall_seconds", "return_mean": "return", "return_low": "return_low",
    "return_high": "return_high", "length_mean": "length",
}  # fmt: skip
FINAL = ("env_steps", "mean", "interval_95")  # what result files keep of an evaluation.json


def present_names(recipe: str) -> str:
    """A preset and its options, as a command had them, under the names that options have today."""
    return " ".join(RENAMED_OPTIONS.get(word, word) for word in recipe.split())


@dataclass(frozen=True, kw_only=True)
class Case:
    """Everything that decides the result of a run.

    Attributes:
        system: saltus or another library.
        task: the task's name.
        preset: a preset and options that change it, as one string; None: the default preset, and other libraries.
        options: options of `saltus train` that all presets get.
        seed: the run's seed.
        minutes: time limit; None: the options limit the run.
        episodes: episodes of the final evaluations.
        cores: number of cores that the run is pinned to.
        at_once: number of runs at a time.
        code: a hash of the code that trains, see `code_hash`.
        machine: its processor and number of cores.
    """

    system: System
    task: str
    preset: str | None
    options: tuple[str, ...]
    seed: int
    minutes: float | None
    episodes: int
    cores: int
    at_once: int
    code: str
    machine: str

    @property
    def label(self) -> str:
        """The system, and its preset if one was named."""
        return self.system if self.preset is None else f"{self.system} {self.preset}"

    def __str__(self) -> str:
        return f"{task_name(self.task)}, {self.label}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Trained(Case):
    """A case's training run. Seconds are wall-clock time from the start of its process.

    Attributes:
        exit_code: of the first process that failed: training, or the evaluation of a policy; 0 if none did.
        seconds: duration of the training.
        curve: the columns of evaluations.csv that `COLUMNS` names.
        best: `FINAL` of the best policy's evaluation.json; None if there was nothing to evaluate, and for other
            libraries, which keep no best policy.
        last: the same of the last policy.
        output: the last lines that a failed run printed.
    """

    exit_code: int
    seconds: float
    curve: dict[str, list[float]]
    best: dict[str, Any] | None
    last: dict[str, Any] | None
    output: list[str]

    @classmethod
    def from_json(cls, measurement: dict[str, Any]) -> Trained:
        """A run that was read from a result file.

        Raises:
            TypeError, KeyError: fields are missing.
        """
        return cls(**measurement | {"options": tuple(measurement["options"])})

    def to_json(self) -> dict[str, Any]:
        """A measurement for a result file."""
        return asdict(self)

    @property
    def case(self) -> Case:
        """The case alone."""
        return Case(**{field.name: getattr(self, field.name) for field in fields(Case)})

    @property
    def returns(self) -> list[float]:
        """Mean returns of the evaluations."""
        return self.column("return")

    def column(self, name: str) -> list[float]:
        """A column of the curve."""
        return self.curve.get(name, [])


def columns(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """The columns of a learning curve that result files keep, of rows of evaluations.csv."""
    return {new: [row[old] for row in rows] for old, new in COLUMNS.items() if rows and old in rows[0]}


def final(path: Path) -> dict[str, Any] | None:
    """`FINAL` of an evaluation.json; None if it does not exist."""
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    return {name: found[name] for name in FINAL}


def task_name(task: str) -> str:
    """A task's name without a path."""
    return task.rpartition(":")[2]


def code_hash(task: str) -> str:
    """Hash of the sources that train, of a task's file, and of the packages' versions.

    Raises:
        SaltusError: there is no such task.
    """
    return hash_of_code(*PACKAGES, text=resolve_task(task).text or "")


def train(case: Case) -> Trained:
    """Train and evaluate. The thread's cores are the run's.

    A run that has the machine to itself has an empty compilation cache; runs side by side share the user's.
    """
    with TemporaryDirectory(prefix="saltus-", ignore_cleanup_errors=True) as folder:  # a compiler may still write there
        run_dir, cache = Path(folder) / "run", Path(folder) / "cache" if case.at_once == 1 else None
        started = time.monotonic()
        try:
            return (_train if case.system == "saltus" else _train_peer)(case, run_dir, cache)
        except (OSError, ValueError, KeyError) as error:  # such as a full disk, or a table that is cut short
            output = [f"{type(error).__name__}: {error}".replace(str(run_dir), "RUN")]
            seconds = time.monotonic() - started
            return Trained(**asdict(case), exit_code=1, seconds=seconds, curve={}, best=None, last=None, output=output)


def _train(case: Case, run_dir: Path, cache: Path | None) -> Trained:
    arguments = [*saltus_arguments(case), "--run-dir", str(run_dir)]
    limit = None if case.minutes is None else 60 * case.minutes
    exit_code, seconds, lines = train_for(limit, arguments, cache, prefix=_prefix(case))
    evaluations = {}
    if checkpoint.find(run_dir / CHECKPOINTS):
        for which, file in (("best", EVALUATION), ("last", EVALUATION_OF_LAST)):
            command = [*SALTUS, "evaluate", str(run_dir), "--policy", which, "--episodes", str(case.episodes)]
            failed = checkout.run(*command)
            exit_code = exit_code or failed
            evaluations[which] = None if failed else final(run_dir / file)
    return _trained(case, run_dir, exit_code, seconds, lines, evaluations.get("best"), evaluations.get("last"))


def saltus_arguments(case: Case) -> list[str]:
    """The arguments of `saltus train`, without the run's directory."""
    preset = [] if case.preset is None else ["--preset", *shlex.split(case.preset)]
    return [case.task, "--seed", str(case.seed), *preset, *case.options]


def _train_peer(case: Case, run_dir: Path, cache: Path | None) -> Trained:
    assert case.minutes is not None
    limit = 60 * case.minutes
    command = [*PEER_TRAINING, "--library", case.system, "--task", case.task, "--seed", str(case.seed)]
    command += ["--run-dir", str(run_dir), "--num-threads", str(case.cores), "--final-episodes", str(case.episodes)]
    command += ["--total-env-steps", str(10**9), "--seconds", str(limit)]
    done = run_for(limit + 600.0, command, cache, prefix=_prefix(case))  # it stops by itself, then evaluates
    return _trained(case, run_dir, *done, best=None, last=final(run_dir / EVALUATION))


def _prefix(case: Case) -> str:
    """The start of each line that a run prints, which tells runs at the same time apart."""
    return f"[{case}] " if case.at_once > 1 else ""


def _trained(
    case: Case,
    run_dir: Path,
    exit_code: int,
    seconds: float,
    lines: Lines,
    best: dict[str, Any] | None,
    last: dict[str, Any] | None,
) -> Trained:
    # Each row of the table is written just before its line is printed.
    times = [when for when, line in lines if line.startswith("evaluation at ")]
    rows = read_table(run_dir / EVALUATIONS)
    curve = columns([row | {"wall_seconds": when} for row, when in zip(rows, times, strict=False)])
    # No path of this machine in results.
    output = [line.replace(str(run_dir), "RUN") for _, line in lines if line.strip()][-LINES_OF_FAILURE:]
    return Trained(
        **asdict(case), exit_code=exit_code, seconds=seconds, curve=curve, best=best, last=last,
        output=output if exit_code else [],
    )  # fmt: skip


def train_for(
    limit: float | None, arguments: Sequence[str], cache: Path | None, grace: float = 300.0, prefix: str = ""
) -> tuple[int, float, Lines]:
    """Run `saltus train`. See `run_for` for the other arguments and the result."""
    return run_for(limit, [*SALTUS, "train", *arguments], cache, grace, prefix)


def run_for(
    limit: float | None, command: Sequence[str], cache: Path | None, grace: float = 300.0, prefix: str = ""
) -> tuple[int, float, Lines]:
    """Run a command; return its exit code, its duration, and its lines of output with their times.

    Args:
        limit: seconds after which it gets SIGTERM, at which saltus saves and ends; None: no limit.
        command: the command and its arguments.
        cache: the folder for torch.compile's cache, and for temporary files, which include Inductor's headers; None:
            those that all processes share.
        grace: seconds after SIGTERM at which it is killed.
        prefix: the start of its lines where they are printed.
    """
    output = []
    folders = {}
    if cache is not None:
        cache.mkdir(exist_ok=True)
        folders = {"TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"), "TMPDIR": str(cache)}
    environment = checkout.environment(PYTHONUNBUFFERED="1", **folders)
    start = time.monotonic()
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        timers = [] if limit is None else [Timer(limit, process.terminate), Timer(limit + grace, process.kill)]
        for timer in timers:
            timer.daemon = True
            timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            output.append((time.monotonic() - start, line.rstrip()))
            print(prefix + line, end="", flush=True)
        exit_code = process.wait()
        for timer in timers:
            timer.cancel()
    return exit_code, time.monotonic() - start, output

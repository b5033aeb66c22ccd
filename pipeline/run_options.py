"""Options of the commands on a run: resume, evaluate, play, export, gradients."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, TypeVar

import tyro

from pipeline.config import Config
from pipeline.run_paths import to_path
from pipeline.train_options import split_words
from saltus.errors import SaltusError


@dataclass(frozen=True)
class OfRun:
    """Options of every command on a run."""

    run: tyro.conf.Positional[Path]
    """The run's directory."""
    task: str | None = None
    """The task, if it has moved: a registered name, or path/to/file.py:ClassName. None: the one in config.json."""
    trust: bool = False
    """Execute a task's file that lies in the run's directory, or the run's copy of a missing one."""


@dataclass(frozen=True)
class Resume(OfRun):
    """Continue a run from its last checkpoint."""


@dataclass(frozen=True)
class Evaluate(OfRun):
    """Play whole episodes with a run's deterministic policy, and print and write their returns.

    The best policy's are written to evaluation.json in the run's directory, the last one's to evaluation-last.json.
    """

    episodes: int = 100
    """Number of episodes, played in parallel."""
    seed: int = 0
    """Seed of the initial states."""
    policy: Literal["best", "last"] = "best"
    """best: the policy with the highest mean return in the run's evaluations. last: the latest policy."""


@dataclass(frozen=True)
class Play(OfRun):
    """Record a run's deterministic policy as an mp4: one episode, or as many as --steps take."""

    output: Path | None = None
    """File to write. None: play.mp4 in the run's directory."""
    seed: int = 0
    """Seed of the initial states."""
    steps: int | None = None
    """Control steps to record; the next episode follows one that ends. None: one episode."""
    camera: str | None = None
    """A camera of the model, or "follow", which follows the first body that moves. None: the model's camera "track" if
    it has one, else "follow"."""
    size: str = "640x480"
    """Width and height of the picture in pixels: even numbers, such as 1280x720."""
    policy: Literal["best", "last"] = "best"
    """best: the policy with the highest mean return in the run's evaluations. last: the latest policy."""


@dataclass(frozen=True)
class Export(OfRun):
    """Write a run's deterministic policy as files that need no saltus: policy.pt2 (torch.export), policy.onnx,
    policy.json (names of observations and actions) and policy.mjb (the model)."""

    output: Path | None = None
    """Folder to write to. None: the run's directory."""
    policy: Literal["best", "last"] = "best"
    """best: the policy with the highest mean return in the run's evaluations. last: the latest policy."""


@dataclass(frozen=True)
class Gradients(OfRun):
    """Compare estimators of the actor's gradient on a run's policy, critics and replay buffer; write gradients.png to
    the run's directory."""

    output: Path | None = None
    """The picture's file, a .png. None: gradients.png in the run's directory."""
    states: int = 256
    """States of the batch, drawn from the replay buffer."""
    estimates: int = 200
    """Estimates of each estimator; an estimate draws one action in every state."""
    reference: int = 2000
    """Estimates in the reference's mean."""
    seed: int = 0
    """Seed of states and actions."""


_SETTINGS = {item.name for item in dataclasses.fields(Config)} - {"task_options"}

Options = TypeVar("Options", bound=OfRun)


def parse(command: type[Options], arguments: list[str]) -> Options:
    """Parse the arguments of a command on a run."""
    for before, word in pairwise(["", *split_words(arguments)]):
        if not word and before.startswith("-"):
            raise SaltusError(f"the argument after {before} is empty (is a shell variable unset?)")
        if not word:
            raise SaltusError("an argument is empty: name a run's directory (is a shell variable unset?)")
        option = word.removeprefix("--no-").removeprefix("--").replace("-", "_")
        if word.startswith("--") and option in _SETTINGS - {item.name for item in dataclasses.fields(command)}:
            raise SaltusError(
                f"{word} is an option of `saltus train`, and a run keeps its settings, also its length: leave it out, "
                "or train a new run"
            )
    options = tyro.cli(command, args=arguments, prog=f"saltus {command.__name__.lower()}")
    return dataclasses.replace(options, run=to_path(options.run))


def refuse_unused(options: Play, name: str) -> None:
    """Raise SaltusError if an option was given that has no effect on the frames of another library."""
    for option in ("camera", "size"):
        if getattr(options, option) != getattr(Play, option):
            raise SaltusError(f"--{option} has no effect on {name}, whose frames another library renders: leave it out")


def require_within(name: str, value: int, low: int, high: float) -> None:
    """Raise SaltusError unless an option's value is from `low` to `high`."""
    if not low <= value <= high:
        raise SaltusError(f"{name} is {value}; it must be at least {low} and at most {high:,}")

"""``saltus check TASK``."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from rich.console import Console

from envs.render import RenderError
from pipeline import files
from pipeline.check.check import Check, check
from pipeline.check.report import draw, report, save_failure, to_json
from pipeline.config_checks import MAXIMA
from pipeline.train_options import parse_task
from saltus.errors import SaltusError


@dataclass(frozen=True)
class CheckOptions:
    """Options of the check itself; the others are the task's own."""

    num_envs: int = 32
    """Number of worlds."""
    steps: int = 300
    """Control steps of the rollout with random actions."""
    seed: int = 0
    """Seed of initial states and actions."""
    picture: Path | None = None
    """File of the picture. None: a new file, check-<task>.png."""
    json: Path | None = None
    """Also write the findings and all ranges to this file."""

    def check(self) -> None:
        """Raise SaltusError for values that do not work."""
        for name, low, high in (
            ("num_envs", 2, MAXIMA["num_envs"]), ("steps", 2, 10**6), ("seed", 0, MAXIMA["seed"]),
        ):  # fmt: skip
            value = getattr(self, name)
            if not low <= value <= high:
                option = name.replace("_", "-")
                raise SaltusError(f"--{option} is {value}; it must be at least {low} and at most {high:,.0f}")
        for name in ("picture", "json"):
            path = getattr(self, name)
            if path is not None and not path.parent.is_dir():
                raise SaltusError(f"--{name} {path}: there is no directory {path.parent}")
        if self.picture is not None and self.picture.suffix != ".png":
            raise SaltusError(f"--picture {self.picture}: the name must end in .png")


def check_task(arguments: list[str], console: Console) -> None:
    """Check a task, print the report and write the picture, the first failure's state and the JSON file.

    Raises:
        SaltusError: options that do not work, or a task that cannot be found.
        SystemExit: code 1, if there are errors.
    """
    reference, task_options, options = parse_task(arguments, "check", CheckOptions())
    options.check()
    result = check(reference.task, task_options, options.num_envs, options.steps, options.seed)
    report(result, console)
    name = reference.task.__name__ if reference.file is not None else reference.name
    _write_files(result, options, name, console)
    if result.failed:
        sys.exit(1)


def _write_files(result: Check, options: CheckOptions, name: str, console: Console) -> None:
    written = []
    try:
        if options.json is not None:
            files.write(options.json, json.dumps(to_json(result), indent=1) + "\n")
            written.append(options.json)
        if result.env is not None and result.rollout is not None:
            if result.rollout.first_failure is not None:
                path = _new_path(f"check-{name}-failure", ".npz", ".mjb")
                written += save_failure(result.env, result.rollout, path)
            picture = options.picture or _new_path(f"check-{name}", ".png")
            draw(result.env, result.rollout, picture)
            written.append(picture)
    except RenderError as error:
        console.print(f"no picture: {error}", markup=False, highlight=False, soft_wrap=True)
    except OSError as error:
        raise SaltusError(f"could not write {error.filename}: {error.strerror}. The report is printed above") from error
    for path in written:
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)


def _new_path(stem: str, suffix: str, *others: str) -> Path:
    """A path in the current folder that no file has, with these suffixes, with a number if need be."""
    paths = (Path(f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}") for number in count(1))
    return next(path for path in paths if not any(path.with_suffix(one).exists() for one in (suffix, *others)))

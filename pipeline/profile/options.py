"""Options of ``saltus profile``, checked before anything long begins."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Config
from saltus.device.cuda_graph import WARMUP_CALLS
from saltus.errors import SaltusError

WARMUP_ROUNDS = 10


@dataclass(frozen=True)
class ProfileOptions:
    """Options of the profile itself; all others are those of `saltus train`."""

    seconds: float = 20.0
    """Length of the measurement, after compilation and warm-up."""
    json: Path | None = None
    """Write the result to this file."""
    compare: Path | None = None
    """Compare with a result of --json; exit code 1 if a rate or a phase became slower."""
    sweep: str | None = None
    """Measure several values of an option, as in num_envs=32,64,128."""
    png: Path | None = None
    """File of the sweep's picture. None: a new file, profile-<task>-<option>.png."""
    trace: Path | None = None
    """Also write a trace of some vector steps for Perfetto or chrome://tracing to this file."""

    def check(self, run_dir: Path | None) -> None:
        """Raise SaltusError for values and combinations that do not work."""
        if not 0 < self.seconds <= 3600:
            raise SaltusError(f"--seconds is {self.seconds:g}; it must be above 0 and at most 3,600")
        for name, value in (("compare", self.compare), ("trace", self.trace), ("run-dir", run_dir)):
            if self.sweep is not None and value is not None:
                raise SaltusError(f"--sweep measures several runs, and --{name} takes one: leave one of them out")
        if self.png is not None and self.sweep is None:
            raise SaltusError("--png has no effect here: it needs --sweep")
        outputs = {"json": self.json, "png": self.png, "trace": self.trace}
        for name, path in outputs.items():
            if path is not None:
                _require_writable(f"--{name}", path)
        named = [path.resolve() for path in (*outputs.values(), self.compare) if path is not None]
        if len({*named}) < len(named):
            raise SaltusError("two of --json, --compare, --png and --trace name the same file: name different ones")


def _require_writable(option: str, path: Path) -> None:
    if path.is_dir():
        raise SaltusError(f"{option} {path} is a directory: name a file")
    if not path.parent.is_dir():
        raise SaltusError(f"{option} {path}: there is no directory {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise SaltusError(f"{option} {path}: the directory {path.parent} cannot be written")


def warmup_rounds(config: Config) -> int:
    """Rounds of updates before the measurement: on CUDA every variant of a round is captured within them.

    The rounds until the first actor update may compile.
    """
    first = math.ceil(config.policy_delay / config.updates_per_round)
    return max(WARMUP_ROUNDS, first + (WARMUP_CALLS + 1) * rounds_per_cycle(config))


def rounds_per_cycle(config: Config) -> int:
    """Rounds after which the places of actor updates in a round repeat."""
    return config.policy_delay // math.gcd(config.updates_per_round, config.policy_delay)


def require_rounds(config: Config) -> None:
    """Raise SaltusError if a run would end before a round is measured, or has its length in minutes."""
    if config.minutes is not None:
        raise SaltusError("--minutes has no effect here: --seconds is the length of the measurement")
    needed = warmup_rounds(config) + 1
    if config.rounds < needed:
        raise SaltusError(
            f"the run has {config.rounds} rounds of updates, and a profile needs {needed}, of which the first "
            f"{needed - 1} warm up: raise total_env_steps ({config.total_env_steps:,})"
        )

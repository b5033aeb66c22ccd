"""Takes the place of the processes that `saltus tune` starts: it writes evaluations at once, fails, or waits.

The folder FAKE_FOLDER has a file for each trial that fails or waits, like fail-trial-0001, and gets one for each that
began. The returns rise with --actor-lr. A run's directory has a checkpoint from which `resume` continues, unless the
folder has the file damaged.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

STEPS = (300, 600, 900, 1200)


def main() -> None:
    """Train, by the arguments after the worker's process id."""
    folder = Path(os.environ["FAKE_FOLDER"])
    if (folder / "broken").exists():
        sys.exit("saltus: no space left on device")
    if sys.argv[2] == "resume":
        resume(folder, Path(sys.argv[3]))
        return
    run_dir = Path(_option("--run-dir"))
    (folder / f"began-{run_dir.name}-{os.getpid()}").touch()
    if (folder / f"fail-{run_dir.name}").exists():
        print("some lines before")
        sys.exit("saltus: alpha is inf at gradient step 7: learning has diverged")
    value = 1000 * float(_option("--actor-lr"))
    run_dir.mkdir()
    (run_dir / "checkpoint").write_text(str(value))
    write(run_dir, STEPS[:2], value)
    if (folder / f"wait-{run_dir.name}").exists():
        time.sleep(600)
    time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
    write(run_dir, STEPS, value)


def resume(folder: Path, run_dir: Path) -> None:
    """Continue from the checkpoint."""
    (folder / f"resumed-{run_dir.name}").touch()
    if (folder / "damaged").exists():
        sys.exit("saltus: the checkpoint is damaged")
    write(run_dir, STEPS, float((run_dir / "checkpoint").read_text()))


def write(run_dir: Path, steps: tuple[int, ...], value: float) -> None:
    """Write the evaluations."""
    lines = [f"{step},{value},{step / 100}\n" for step in steps]
    (run_dir / "evaluations.csv").write_text("env_steps,return_mean,seconds\n" + "".join(lines))


def _option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


if __name__ == "__main__":
    main()

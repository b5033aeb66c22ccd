"""Takes the place of `saltus` and of `benchmarks.peer_training` in child processes: it ends at once, crashes or waits.

The folder FAKE_FOLDER has a file for each seed that crashes or waits, like crash-1, and gets one for each that began.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

EVALUATIONS = "env_steps,return_mean\n100,1.0\n200,{best}\n300,2.0\n"


def main() -> None:
    """Train or evaluate, by the arguments."""
    folder = Path(os.environ["FAKE_FOLDER"])
    if "evaluate" in sys.argv:
        run_dir = Path(sys.argv[sys.argv.index("evaluate") + 1])
        config = json.loads((run_dir / "config.json").read_text())
        evaluate(run_dir, config["seed"], _option("--policy"))
        return
    run_dir, seed = Path(_option("--run-dir")), int(_option("--seed"))
    (folder / f"began-{seed}-{os.getpid()}").touch()
    print(f"cores {len(os.sched_getaffinity(0))}, threads {os.environ['OMP_NUM_THREADS']}")
    if (folder / f"crash-{seed}").exists():
        sys.exit("the physics exploded")
    if (folder / f"wait-{seed}").exists():
        time.sleep(600)
    train(run_dir, seed)
    if "--library" in sys.argv:
        evaluate(run_dir, seed, "last")


def train(run_dir: Path, seed: int) -> None:
    """Write a run's files, with a checkpoint if there is none."""
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "checkpoints" / "000000000300.pt").touch()
    (run_dir / "config.json").write_text(json.dumps({"seed": seed}))
    (run_dir / "evaluations.csv").write_text(EVALUATIONS.format(best=10.0 + seed))
    for steps in (100, 200, 300):
        print(f"evaluation at {steps} env steps")


def evaluate(run_dir: Path, seed: int, policy: str) -> None:
    """Write the evaluation of a policy: the best has a return of 10 and the seed, the last one of 2."""
    mean, env_steps = (10.0 + seed, 200) if policy == "best" else (2.0, 300)
    found = {"policy": policy, "mean": mean, "env_steps": env_steps, "interval_95": [mean - 1, mean + 1]}
    of_saltus = "--library" not in sys.argv
    name = "evaluation-last.json" if of_saltus and policy == "last" else "evaluation.json"
    (run_dir / name).write_text(json.dumps(found))


def _option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


if __name__ == "__main__":
    main()

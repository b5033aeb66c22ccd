"""SAC of Stable-Baselines3 or SBX on a Gymnasium task, evaluated as saltus evaluates its own policies.

It writes the same files as a run of saltus: config.json, evaluations.csv, evaluation.json.
"""

from __future__ import annotations

import csv
import importlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

import envs
from benchmarks.result import PEERS
from pipeline.evaluate import Evaluation, evaluate
from pipeline.seeding import derive_seed
from saltus.versions import versions


@dataclass(frozen=True)
class PeerTraining:
    """A training run. Other settings are the library's defaults: networks of 2x256, one environment, UTD 1.

    Attributes:
        task: a task of Gymnasium.
        run_dir: the folder for the files.
        library: the library whose SAC to train.
        num_threads: threads of PyTorch, also in evaluations; SBX's JAX uses all cores.
        seed: of the library, its environment and the evaluations.
        total_env_steps: env steps after which training ends.
        seconds: time after which training ends in any case.
        learning_starts: env steps with random actions at the start (the libraries' default is 100).
        eval_every: env steps between evaluations.
        eval_episodes: episodes of one evaluation.
        final_episodes: episodes of the last policy's evaluation.
    """

    task: str
    run_dir: Path
    library: Literal["stable-baselines3", "sbx"] = "stable-baselines3"
    num_threads: int = 1
    seed: int = 0
    total_env_steps: int = 100_000
    seconds: float | None = None
    learning_starts: int = 5_000
    eval_every: int = 5_000
    eval_episodes: int = 10
    final_episodes: int = 100


def train(options: PeerTraining) -> None:
    """Train, and evaluate the last policy.

    Raises:
        ModuleNotFoundError: the library is not installed.
    """
    started = time.monotonic()
    import gymnasium
    from stable_baselines3.common.callbacks import BaseCallback

    module = "stable_baselines3" if options.library == "stable-baselines3" else "sbx"
    sac = importlib.import_module(module).SAC
    torch.set_num_threads(options.num_threads)
    options.run_dir.mkdir(parents=True, exist_ok=True)
    config = {name: value for name, value in asdict(options).items() if name != "run_dir"}
    (options.run_dir / "config.json").write_text(
        json.dumps({"config": config, "versions": versions(*PEERS)}, indent=2) + "\n"
    )
    curve = options.run_dir / "evaluations.csv"

    class Evaluate(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps % options.eval_every == 0:
                result = _play(self.model, options, options.eval_episodes, self.num_timesteps)
                with open(curve, "a", newline="") as file:
                    csv.writer(file).writerow([self.num_timesteps, result.mean, result.std, result.failed])
                print(f"evaluation at {self.num_timesteps:,} env steps: {result.summary()}", flush=True)
            return options.seconds is None or time.monotonic() - started < options.seconds

    curve.write_text("env_steps,return_mean,return_std,failed\n")
    env = gymnasium.make(options.task)
    model = sac("MlpPolicy", env, learning_starts=options.learning_starts, seed=options.seed, device="cpu")
    model.learn(options.total_env_steps, callback=Evaluate())
    result = _play(model, options, options.final_episodes, model.num_timesteps)
    final = {
        "env_steps": model.num_timesteps, "mean": result.mean, "std": result.std,
        "interval_95": result.interval, "returns": result.returns,
    }  # fmt: skip
    (options.run_dir / "evaluation.json").write_text(json.dumps(final, indent=1) + "\n")


def _play(model: Any, options: PeerTraining, episodes: int, env_steps: int) -> Evaluation:
    def policy(observation: Tensor) -> Tensor:
        action, _ = model.predict(observation.numpy(), deterministic=True)
        return torch.from_numpy(np.asarray(model.policy.scale_action(action), dtype=np.float32))

    seed = derive_seed(options.seed, "evaluation", env_steps)
    return evaluate(
        policy, envs.make(options.task, episodes, seed=seed, physics="cpu", num_threads=options.num_threads)
    )


if __name__ == "__main__":
    train(tyro.cli(PeerTraining))

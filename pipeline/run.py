"""A training run: all that it consists of, where its files are, how it continues."""

from __future__ import annotations

import fcntl
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

import envs
from envs import transition as transitions
from pipeline import checkpoint
from pipeline.buffer import ReplayBuffer
from pipeline.config import Config
from pipeline.evaluate import Evaluation, evaluate, scale_action
from pipeline.exploration import HeldNoise
from pipeline.learner import Learner
from pipeline.logger import Logger
from pipeline.seeding import stream_seed

LEARNER_METRICS = ("critic_loss", "td_error", "actor_loss", "alpha_loss", "alpha", "entropy")


class Run:
    """All that a training run consists of: worlds, buffer, learner, counters.

    Args:
        config: what to run.
        run_dir: where its files are.
        announce: told what memory is needed, and of what takes long.

    Raises:
        ValueError: a task or a setting that does not work here; MemoryError: worlds or a buffer that do not fit.
    """

    def __init__(self, config: Config, run_dir: Path, announce: Callable[[str], None] = print):
        self.config, self.run_dir = config, run_dir
        self.device = resolve_device(config.device)
        if config.matmul_dtype == "tf32" and self.device.type != "cuda":
            raise ValueError(
                f"--matmul-dtype tf32 is for CUDA, and this run is on {self.device}: use float32 or bfloat16"
            )
        torch.manual_seed(stream_seed(config.seed, "learner"))
        self._task = envs.find_task(config.task)  # once: a file that is edited meanwhile changes nothing
        self.env = self._make_training_env(announce)
        dimensions = self.env.observation_dim, self.env.action_dim
        self.learner = Learner(config, *dimensions, self.device)
        announce(self._memory(dimensions))
        seed = stream_seed(config.seed, "buffer")
        self.buffer = ReplayBuffer(config.capacity, *dimensions, self.device, seed, config.n_step, config.gamma)
        self.noise = HeldNoise(config.num_envs, self.env.action_dim, config.noise_repeat, self.device)
        self.observation = self.env.reset()
        self.metrics: dict[str, torch.Tensor] = {}
        self.env_steps = self.vector_steps = 0
        self.best: dict[str, Any] = {}  # of the policy with the highest mean return so far
        self._logged: dict[str, float] = {}
        self._seconds_before, self._started = 0.0, time.monotonic()

    def _make_training_env(self, announce: Callable[[str], None]) -> envs.BatchEnv:
        config = self.config
        return envs.make(
            self._task,
            config.num_envs,
            device=self.device,
            seed=stream_seed(config.seed, "environment"),
            physics=None if config.physics == "auto" else config.physics,
            num_threads=config.num_threads,
            solver=config.solver,
            max_contacts=config.max_contacts,
            max_constraints=config.max_constraints,
            announce=announce,
            **config.task_options,
        )

    def _make_evaluation_env(self) -> envs.BatchEnv:
        """Worlds of the reference engine, whatever the policy is trained on."""
        config = self.config
        return envs.make(
            self._task,
            config.eval_episodes,
            device=self.device,
            seed=stream_seed(config.seed, "evaluation", self.env_steps),
            physics="cpu",
            num_threads=config.num_threads,
            **config.task_options,
        )

    def _memory(self, dimensions: tuple[int, int]) -> str:
        """What buffer and learner take on the device, and the options that decide it; the physics speaks for itself."""
        size = self.config.capacity * transitions.num_bytes(*dimensions)
        return (
            f"memory on {self.device}: replay buffer: {self.config.capacity:,} transitions, {size / 1e6:,.0f} MB "
            f"(--buffer-size); learner: {self.learner.num_bytes / 1e6:,.1f} MB (--actor-hidden, --critic-hidden)"
        )

    @property
    def seconds(self) -> float:
        """Wall-clock time of the run so far, its earlier sittings included."""
        return self._seconds_before + time.monotonic() - self._started

    def due(self, interval: int) -> bool:
        """Whether the last vector step passed a multiple of `interval` env steps."""
        return self.env_steps // interval > (self.env_steps - self.config.num_envs) // interval

    def act(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Actions in [-1, 1], (num_envs, action_dim), uniform at first, then the policy's; and as controls.

        The controls are in the actuators' units, and where the physics runs. If that is not where the learner is, they
        are waited for; what the learner's device is given to do after this call, the physics need not wait for.

        Raises:
            FloatingPointError: where the CPU simulates: they are not finite, because learning has diverged.
        """
        if self.env_steps < self.config.learning_starts:
            action = 2 * torch.rand(self.env.num_envs, self.env.action_dim, device=self.device) - 1
        else:
            action = self.learner.act(self.observation, self.noise())
        ctrl = scale_action(action, self.env).to(self.env.physics.device)
        if ctrl.device.type == "cpu" and not torch.isfinite(ctrl).all():
            self.learner.check_finite(self.metrics | {"action": action.sum()})
        return action, ctrl

    def step(self, action: torch.Tensor, ctrl: torch.Tensor) -> TensorDict:
        """Apply what `act` gave; return the transition with the actions in [-1, 1], as the learner knows them."""
        transition, self.observation = self.env.step(ctrl)
        self.env_steps += self.config.num_envs
        self.vector_steps += 1
        self.learner.observe(transition)
        return transition.set("action", action)

    def log(self, logger: Logger) -> None:
        """Write a row of metrics: rates and means since the last row, losses of the last round."""
        metrics = self.learner.check_finite(self.metrics)
        totals = self.env.statistics() | {
            "env_steps": self.env_steps,
            "gradient_steps": self.learner.gradient_steps,
            "seconds": self.seconds,
        }
        since = {name: value - self._logged.get(name, 0.0) for name, value in totals.items()}
        self._logged = totals
        episodes = since["episodes"] or float("nan")
        row = {
            "env_steps": self.env_steps,
            "gradient_steps": self.learner.gradient_steps,
            "utd_ratio": self.learner.gradient_steps / self.env_steps,
            "episodes": int(totals["episodes"]),
            "episode_return": since["episode_return"] / episodes,
            "episode_length": since["episode_length"] / episodes,
            "unstable": int(totals["unstable"]),
            "nonfinite": int(totals["nonfinite"]),
            "overflowed": int(totals["overflowed"]),
            **{name: metrics.get(name, float("nan")) for name in LEARNER_METRICS},
            **{name: value / since["steps"] for name, value in since.items() if name.startswith("reward_terms/")},
            "seconds": self.seconds,
            "env_steps_per_second": since["env_steps"] / since["seconds"],
            "gradient_steps_per_second": since["gradient_steps"] / since["seconds"],
        }
        logger.metrics(row)

    def evaluate(self, logger: Logger) -> Evaluation:
        """Play whole episodes with the deterministic policy, from starts that depend on the seed and the step.

        They are played on the CPU engine with the model's own solver, so that returns mean the same everywhere. A copy
        of the policy is kept where none before had a higher mean return.
        """
        logger.phase("evaluating")
        result = evaluate(self.learner.policy, self._make_evaluation_env())
        low, high = result.interval
        row = {
            "env_steps": self.env_steps,
            "gradient_steps": self.learner.gradient_steps,
            "return_mean": result.mean,
            "return_std": result.std,
            "return_low": low,
            "return_high": high,
            "length_mean": sum(result.lengths) / len(result.lengths),
            "episodes": len(result.returns),
            "seconds": self.seconds,
        }
        logger.evaluation(row, result.summary())
        if result.mean >= self.best.get("return_mean", -math.inf):
            self.best = {"return_mean": result.mean, "env_steps": self.env_steps}
            self.best["policy"] = self.learner.policy_state()
        return result

    def save(self, logger: Logger) -> None:
        """Write a checkpoint."""
        logger.phase("saving")
        logger.flush()
        self.learner.check_finite(self.metrics)
        self.learner.check_parameters()
        checkpoint.save(self.run_dir / "checkpoints", self.env_steps, self.config.to_dict(), self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""
        return {
            "device": self.device.type,
            "env_steps": self.env_steps,
            "vector_steps": self.vector_steps,
            "seconds": self.seconds,
            "logged": self._logged,
            "metrics": self.metrics,
            "observation": self.observation,
            "environment": self.env.get_state().to_dict(),
            "buffer": self.buffer.state_dict(),
            "learner": self.learner.state_dict(),
            "noise": self.noise.state_dict(),
            "best": self.best,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave.

        Raises:
            CheckpointError: it was written on another kind of device.
        """
        if state["device"] != self.device.type:
            raise checkpoint.CheckpointError(
                f"the run was on {state['device']} and would go on on {self.device.type}, where its random numbers are "
                f"others: resume it on a machine with {state['device']}"
            )
        self.env_steps, self.vector_steps = state["env_steps"], state["vector_steps"]
        self._seconds_before, self._started = state["seconds"], time.monotonic()
        self._logged = state["logged"]
        self.best = deepcopy(state["best"])  # or the whole file that its tensors are parts of would be kept with them
        self.metrics = {name: value.to(self.device) for name, value in state["metrics"].items()}
        self.observation = state["observation"].to(self.device)
        self.env.set_state(state["environment"])
        self.buffer.load_state_dict(state["buffer"])
        self.learner.load_state_dict(state["learner"])
        self.noise.load_state_dict(state["noise"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self.device)


def create(config: Config, run_dir: Path) -> None:
    """Make a run's directory with its config.json."""
    run_dir.mkdir(parents=True, exist_ok=True)
    content = {"config": config.to_dict(), "versions": checkpoint.versions()}
    partial = run_dir / "config.json.partial"
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(run_dir / "config.json")


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold a run's directory, so that no second process writes into it; the lock ends with the process.

    Raises:
        ValueError: another process holds it.
    """
    with open(run_dir / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is training in {run_dir}: wait for its end, or stop it") from None
        yield


def open_run(run_dir: Path) -> tuple[Config, dict[str, Any]]:
    """A run's configuration, and the state in its last checkpoint.

    Raises:
        ValueError: no run's directory; CheckpointError: a checkpoint that cannot be used.
    """
    file = run_dir / "config.json"
    if not file.is_file():
        raise ValueError(f"{run_dir} is not the directory of a run: it has no config.json")
    try:
        config = Config.from_dict(dict(json.loads(file.read_text())["config"]))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}); a checkpoint of the run holds the same configuration") from None
    found = checkpoint.find(run_dir / "checkpoints")
    if not found:
        raise checkpoint.CheckpointError(f"{run_dir} has no checkpoint: start the run again")
    return config, checkpoint.load(found[-1], config.to_dict())


def resolve_device(name: str) -> torch.device:
    """The device that a configuration names.

    Raises:
        ValueError: cuda where there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for and torch sees no CUDA device: use --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.empty(0, device=name).device  # cuda by its number, as tensors name it

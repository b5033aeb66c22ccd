"""Policy: a trained policy, loaded from a run's directory."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from envs import BatchEnv, Task
from envs.environment import Environment
from envs.simulation import Simulation
from envs.task_ref import name_task
from pipeline import best_policy
from pipeline.agent import Agent
from pipeline.config import Config
from pipeline.dimensions import Dimensions
from pipeline.run_paths import to_path
from pipeline.seeding import derive_seed
from pipeline.stored_run import compare_task, open_run, require_same_dimensions
from pipeline.worlds import environment_maker
from saltus.device import resolve_device
from saltus.errors import SaltusError

Which: TypeAlias = Literal["best", "last"]


class Policy:
    """The deterministic policy of a run: observation (N, obs_dim) float32 -> action (N, action_dim) float32 in [-1, 1].

    Attributes:
        config: the run's configuration.
        which: ``"best"`` or ``"last"``.
        env_steps: env steps of the run after which the policy was saved.
        device: the observations' device.
        agent: the agent that acts.
    """

    def __init__(self, config: Config, agent: Agent, which: Which, env_steps: int):
        self.config, self.which, self.env_steps, self.device = config, which, env_steps, agent.device
        self.agent = agent

    def __call__(self, observation: Tensor) -> Tensor:
        width = self.agent.dimensions.observation_dim
        is_tensor = isinstance(observation, Tensor)
        if not is_tensor or observation.dtype != torch.float32 or observation.shape[1:] != (width,):
            got = (
                f"{observation.dtype} of shape {tuple(observation.shape)}" if is_tensor else type(observation).__name__
            )
            raise SaltusError(f"the observation is {got}; expected a float32 tensor of shape (N, {width})")
        return self.agent.policy(observation)

    @property
    def task(self) -> str:
        """The task: a registered name, or path/to/file.py:ClassName."""
        return self.config.task

    def make_env(self, num_envs: int, seed: int = 0, render_mode: str | None = None) -> Environment:
        """An environment of the policy's task with the run's task options.

        Tasks of saltus are simulated by the CPU engine, and need no `render_mode`.
        """
        return _make_env(self.config, num_envs, seed, str(self.device), render_mode)


def load_policy(
    run_dir: Path | str, which: Which = "best", *, task: str | type[Task] | None = None, trust: bool = False
) -> Policy:
    """Load a policy of a run: the last one from its last intact checkpoint, the best one also if it is newer.

    A policy trained with ``--device cuda`` is loaded onto the GPU if there is one, else onto the CPU. The task's file
    is executed; the logger ``saltus`` gets its path first, at level INFO. Warns if the task has changed since training.

    Args:
        run_dir: the run's directory.
        which: ``"best"``: the policy with the highest mean return in the run's evaluations (the latest of equals), or
            with a warning the last policy before the first evaluation without failures. ``"last"``: the latest policy.
        task: the task, a name or a class, if its file has moved since the run started.
        trust: execute a task's file that lies in the run's directory, or the run's copy of a missing one.

    Raises:
        SaltusError: not a run's directory, a run of another version, or a task's file that is missing or not trusted.
        CheckpointError: no checkpoint, or one that cannot be used.
    """
    if which not in get_args(Which):
        raise SaltusError(f"which is {which!r}; it must be 'best' or 'last'")
    run_dir = to_path(run_dir)
    moved = None if task is None else name_task(task)
    found = best_policy.read(run_dir) if which == "best" else None
    agent, content = load_agent(run_dir, moved, trust, "the policy plays, but not as it was trained")
    config, state = agent.config, content["state"]
    best = best_policy.choose(found, config, state["best"]) if which == "best" else {}
    if best:
        agent.load_policy_state(best["policy"])
        return Policy(config, agent, "best", best["env_steps"])
    if which == "best":
        warnings.warn(
            f"{run_dir} has no best policy, because no evaluation has ended without failures yet: the last policy, "
            f"after {state['env_steps']:,} env steps, is used",
            stacklevel=2,
        )
    return Policy(config, agent, "last", state["env_steps"])


def load_agent(run_dir: Path, task: str | None, trust: bool, effect: str) -> tuple[Agent, dict[str, Any]]:
    """The agent of a run's last intact checkpoint, and the checkpoint's content. See `load_policy`.

    Args:
        run_dir: the run's directory.
        task, trust: as of `load_policy`.
        effect: the consequence of a task that has changed, for the warning.

    Raises:
        SaltusError, CheckpointError: as `load_policy`.
    """
    config, content = open_run(run_dir, task, trust)
    device = resolve_device("auto" if config.device == "cuda" else config.device)
    env = _make_env(config, 1, 0, str(device))
    require_same_dimensions(content, env)
    model = config.simulation.load_model(env.task) if isinstance(env, BatchEnv) else None  # with the run's solver
    compare_task(config, run_dir, model, effect)
    agent = Agent(config, Dimensions.of(env), device)
    agent.load_state_dict(content["state"]["agent"])
    return agent, content


def _make_env(config: Config, num_envs: int, seed: int, device: str, render_mode: str | None = None) -> Environment:
    return environment_maker(config)(
        num_envs,
        device=device,
        seed=derive_seed(seed, "play"),
        simulation=Simulation(physics="cpu", num_threads=config.num_threads),
        check_task=False,  # the worlds of the training were checked
        render_mode=render_mode,
    )

"""Policy: what a run has learned, to be used elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from torch import Tensor

import envs
from pipeline.agent import Agent
from pipeline.config import Config
from pipeline.run_dir import open_run
from pipeline.seeding import derive_seed
from saltus.device import resolve_device

Which: TypeAlias = Literal["best", "last"]


class Policy:
    """The deterministic policy of a run, which `saltus evaluate` plays.

    Called with observations (N, obs_dim) float32 on `device`, it returns actions (N, action_dim) float32 in [-1, 1],
    which `BatchEnv.step` takes.

    Attributes:
        config: of the run.
        which: ``"best"`` or ``"last"``.
        env_steps: after how many the policy was as it is here.
        device: where observations are expected.
    """

    def __init__(self, config: Config, agent: Agent, which: Which, env_steps: int):
        self.config, self.which, self.env_steps, self.device = config, which, env_steps, agent.device
        self._agent = agent

    def __call__(self, observation: Tensor) -> Tensor:
        return self._agent.policy(observation)

    @property
    def task(self) -> str:
        """The task it was trained on, as `saltus train` takes it."""
        return self.config.task

    def make_env(self, num_envs: int, seed: int = 0) -> envs.BatchEnv:
        """Worlds of the task, with the run's options, on the CPU engine, whatever the policy was trained on."""
        return _make_env(self.config, num_envs, seed, str(self.device))


def load_policy(run_dir: Path | str, which: Which = "best") -> Policy:
    """A policy from a run's last checkpoint; on the GPU if the run was there and one is at hand.

    Args:
        run_dir: the run's directory.
        which: ``"best"``: the one with the highest mean return in the run's evaluations (of equals the later), or the
            last, where there was none yet. ``"last"``: as the checkpoint has it.

    Raises:
        ValueError: no run's directory; CheckpointError: it has no checkpoint that can be used.
    """
    config, content = open_run(Path(run_dir))
    device = resolve_device("auto" if config.device == "cuda" else config.device)
    sizes = _make_env(config, 1, 0, "cpu")
    agent = Agent(config, sizes.observation_dim, sizes.action_dim, device)
    state = content["state"]
    agent.load_state_dict(state["agent"])
    if which == "last" or not state["best"]:
        return Policy(config, agent, "last", state["env_steps"])
    agent.load_policy_state(state["best"]["policy"])
    return Policy(config, agent, "best", state["best"]["env_steps"])


def _make_env(config: Config, num_envs: int, seed: int, device: str) -> envs.BatchEnv:
    return envs.make(
        config.task,
        num_envs,
        device=device,
        seed=derive_seed(seed, "play"),
        physics="cpu",
        num_threads=config.num_threads,
        **config.task_options,
    )

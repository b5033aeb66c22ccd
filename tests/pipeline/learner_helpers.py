"""Settings and rounds of learners, for the tests of eager, compiled and captured updates."""

from __future__ import annotations

from typing import Any

import torch
from pipeline_helpers import ACTION_DIM, clone_state, filled_buffer, random_transition
from torch import Tensor

from pipeline.learner import Learner

# Settings that let few small graphs cover every part of an update; crossq alone has a second one, with delayed actors.
# Layers of 64 are wide enough for oneDNN.
WIDE: dict[str, Any] = {"actor_hidden": (64,), "critic_hidden": (64,), "batch_size": 64, "learning_starts": 100}
SETTINGS: dict[str, dict[str, Any]] = {
    "sac": {**WIDE, "policy_delay": 1},
    "sac-v1": {"n_step": 3, "normalize_observations": True, "policy_delay": 1},
    "redq": {"num_critics": 3, "normalize_observations": True, "eval_policy_averaging": 0.5, "policy_delay": 1},
    "droq": {"n_step": 3, "policy_delay": 1},
    "crossq": {**WIDE, "n_step": 3, "eval_policy_averaging": 0.5, "lr_final_fraction": 0.1, "policy_delay": 2},
    "xqc": {"normalize_observations": True, "n_step": 3, "num_atoms": 11, "policy_delay": 1},
    "flashsac": {"num_atoms": 11, "eval_policy_averaging": 0.5, "policy_delay": 1},
    "fast": {"matmul_dtype": "float32", "n_step": 3, "num_atoms": 11, "eval_policy_averaging": 0.5, "policy_delay": 1},
}


def run_rounds(learner: Learner, counts: list[int], seed: int = 0) -> list[dict[str, Tensor]]:
    """Run rounds of these numbers of updates, with moving statistics; return copies of their metrics.

    Data and random numbers depend on the seed alone.
    """
    config = learner.agent.config
    buffer = filled_buffer(n_step=config.rewards_per_target(ACTION_DIM))
    torch.manual_seed(seed)
    metrics = []
    for number, count in enumerate(counts):
        transition = random_transition(config.num_envs, seed=number)
        transition["observation"] = 1 + 2 * transition["observation"]
        transition["next", "reward"] *= 3
        learner.agent.observe(transition)
        learner.agent.apply_schedules(number / len(counts), 250_000 * number, 0.008)
        metrics.append(clone_state(learner.round(buffer, count)))
    return metrics


def round_results(learner: Learner, counts: list[int]) -> list[Any]:
    """Everything that rounds compute: metrics, the agent's state and the state of the random generator."""
    return [run_rounds(learner, counts), clone_state(learner.agent.state_dict()), torch.get_rng_state()]

"""Differences between two physics engines: in one step from the same states, and in random episodes."""

from __future__ import annotations

import torch
from torch import Tensor

import envs

# The index in qpos of the torso's height, by task; by default 1. In InvertedPendulum it is the pole's angle.
_HEIGHT = {"Humanoid": 2}


def step_differences(reference: envs.BatchEnv, other: envs.BatchEnv, steps: int) -> Tensor:
    """Relative differences of the observations after one control step, (worlds * steps,).

    The difference at a state is the largest one of an entry, divided by the largest absolute entry or by 1. States are
    those that `reference` visits under random actions, rounded to float32.
    """
    generator = torch.Generator().manual_seed(0)
    differences = []
    reference.reset()
    other.reset()
    for _ in range(steps):
        action = 2 * torch.rand(reference.num_envs, reference.action_dim, generator=generator) - 1
        fields = reference.get_state()["fields"]
        found = []
        for env in (reference, other):
            env.set_qpos_qvel(fields["qpos"].float(), fields["qvel"].float())
            transition, _ = env.step(action.to(env.device))
            found.append(transition["next", "observation"].cpu())
        size = found[0].abs().amax(1).clamp(min=1)
        differences.append((found[0] - found[1]).abs().amax(1) / size)
    return torch.cat(differences)


def random_episodes(env: envs.BatchEnv, steps: int) -> dict[str, Tensor]:
    """Return, length and mean height of each world's first episode, of `steps` at most, under random actions."""
    generator = torch.Generator(env.device).manual_seed(1)
    env.reset()
    totals = torch.zeros(3, env.num_envs, device=env.device)
    running = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    for _ in range(steps):
        if not running.any():
            break
        action = 2 * torch.rand(env.num_envs, env.action_dim, generator=generator, device=env.device) - 1
        height = env.state.qpos[:, _HEIGHT.get(type(env.task).__name__, 1)].float().clone()
        transition, _ = env.step(action)
        step = torch.stack([transition["next", "reward"].squeeze(-1), torch.ones_like(height), height])
        totals += torch.where(running, step, 0.0)
        running &= ~transition["next", "done"].squeeze(-1)
    returns, lengths, heights = totals.cpu()
    return {"return": returns, "length": lengths, "height": heights / lengths}


def interval(values: Tensor) -> tuple[float, float]:
    """The mean, and half the width of its 95% confidence interval."""
    return float(values.mean()), float(1.96 * values.std() / len(values) ** 0.5)

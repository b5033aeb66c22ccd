"""Videos of a policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import torch
from torch import Tensor

from envs import BatchEnv
from envs.render import Renderer
from pipeline.evaluate import require_normalized_actions


def record(policy: Callable[[Tensor], Tensor], env: BatchEnv, path: Path, max_fps: float = 60) -> tuple[float, int]:
    """Play one episode in the first world of `env` and write it as a real-time mp4.

    Args:
        policy: observation (N, obs_dim) -> action (N, action_dim) in [-1, 1].
        env: an environment with normalized actions; `record` resets it.
        path: the file to write.
        max_fps: maximum frames per second. A task with more steps per second has only every k-th step drawn.

    Returns:
        The episode's return, and its length in control steps.

    Raises:
        SaltusError: the environment's actions are not normalized.
        RenderError: no OpenGL.
    """
    require_normalized_actions(env)
    stride = max(1, round(1 / (env.task.dt * max_fps)))
    total, steps = 0.0, 0
    with Renderer(env) as renderer:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer: Any  # imageio's own annotation lacks append_data
        with imageio.get_writer(path, fps=1 / (env.task.dt * stride), macro_block_size=16) as writer:
            for reward, frame in _episode(policy, env, renderer, stride):
                total += reward
                steps += 1
                if frame is not None:
                    writer.append_data(frame)
    return total, steps


@torch.no_grad()
def _episode(
    policy: Callable[[Tensor], Tensor], env: BatchEnv, renderer: Renderer, stride: int
) -> Iterator[tuple[float, np.ndarray | None]]:
    """Yield each step's reward, with a frame at every `stride`-th step, until the episode ends."""
    observation = env.reset()
    for step in range(env.task.max_episode_steps):
        frame = renderer.frame(0) if step % stride == 0 else None
        transition, observation = env.step(policy(observation))
        yield float(transition["next", "reward"][0]), frame
        if transition["next", "done"][0]:
            return

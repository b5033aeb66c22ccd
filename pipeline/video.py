"""Videos of a policy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import torch
from torch import Tensor

from envs import BatchEnv
from envs.render import Renderer
from pipeline.evaluate import require_normalized_actions
from saltus.errors import SaltusError

CONTAINERS = (".mp4", ".mkv", ".mov", ".avi")


def record(policy: Callable[[Tensor], Tensor], env: BatchEnv, path: Path, max_fps: float = 60) -> tuple[float, int]:
    """Play one episode in the first world of `env` and write it as a real-time mp4.

    Args:
        policy: observation (N, obs_dim) -> action (N, action_dim) in [-1, 1].
        env: an environment with normalized actions; `record` resets it.
        path: the file to write.
            Its ending selects the container.
        max_fps: maximum frames per second. A task with more steps per second has only every k-th step drawn.

    Returns:
        The episode's return, and its length in control steps.

    Raises:
        SaltusError: the environment's actions are not normalized, or the file cannot be written.
        RenderError: no OpenGL.
    """
    require_normalized_actions(env)
    _check_name(path)
    stride = max(1, round(1 / (env.task.dt * max_fps)))
    total, steps = 0.0, 0
    with Renderer(env) as renderer, _writer(path, 1 / (env.task.dt * stride)) as writer:
        for reward, frame in _episode(policy, env, renderer, stride):
            total += reward
            steps += 1
            if frame is not None:
                writer.append_data(frame)
    return total, steps


def _check_name(path: Path) -> None:
    """Raise SaltusError unless a path is one of a video."""
    if path.is_dir():
        raise SaltusError(f"{path} is a folder: name the file, such as {path / 'play.mp4'}")
    if path.suffix.lower() not in CONTAINERS:
        raise SaltusError(
            f"{path} is no name of a video: it must end in {', '.join(CONTAINERS[:-1])} or {CONTAINERS[-1]}"
        )


@contextmanager
def _writer(path: Path, fps: float) -> Iterator[Any]:
    """Yield imageio's writer of a video, which gets its name when it is complete."""
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        partial.touch(exist_ok=False)  # ffmpeg's own message would be a page long
        with imageio.get_writer(partial, format="FFMPEG", fps=fps, macro_block_size=16) as writer:
            yield writer
        os.replace(partial, path)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise SaltusError(f"could not write {path}: {reason}. Choose another file with --output") from error
    finally:
        with suppress(OSError):
            partial.unlink()


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

"""Videos of a policy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import torch
from tensordict import TensorDict
from torch import Tensor

from envs import BatchEnv
from envs.render import Renderer
from pipeline.evaluate import require_normalized_actions
from pipeline.file_names import VIDEO
from saltus.errors import SaltusError

CONTAINERS = (".mp4", ".mkv", ".mov", ".avi")


@dataclass(frozen=True)
class Episode:
    """An episode of one world.

    Attributes:
        total: its return.
        length: its control steps.
        states: states of the physics, one for each frame of a video.
        stride: control steps between two of them.
    """

    total: float
    length: int
    states: list[TensorDict]
    stride: int


@torch.no_grad()
def play_episode(policy: Callable[[Tensor], Tensor], env: BatchEnv, max_fps: float = 60) -> Episode:
    """Play one episode in an environment of one world, which is reset.

    Args:
        policy: observation (1, obs_dim) -> action (1, action_dim) in [-1, 1].
        env: an environment with normalized actions.
        max_fps: maximum frames per second. A task with more steps per second has only every k-th state kept.

    Raises:
        SaltusError: the environment's actions are not normalized.
    """
    require_normalized_actions(env)
    stride = max(1, round(1 / (env.task.dt * max_fps)))
    observation, states, rewards = env.reset(), list[TensorDict](), list[float]()
    for step in range(env.task.max_episode_steps):
        if step % stride == 0:
            states.append(env.physics.get_state())
        transition, observation = env.step(policy(observation))
        rewards.append(float(transition["next", "reward"][0]))
        if transition["next", "done"][0]:
            break
    return Episode(sum(rewards), len(rewards), states, stride)


def write_video(episode: Episode, env: BatchEnv, path: Path) -> None:
    """Write an episode as a real-time video.

    Args:
        episode: the episode.
        env: the environment in which it was played; its state changes.
        path: the file, whose ending selects the container (see `check_name`).

    Raises:
        SaltusError: the file cannot be written.
        RenderError: no OpenGL.
    """
    with Renderer(env) as renderer, _writer(path, 1 / (env.task.dt * episode.stride)) as writer:
        for state in episode.states:
            env.physics.set_state(state)
            writer.append_data(renderer.frame(0))


def check_name(path: Path) -> None:
    """Raise SaltusError unless a path is one of a video."""
    if path.is_dir():
        raise SaltusError(f"{path} is a folder: name the file, such as {path / VIDEO}")
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

"""Videos of a policy."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import mujoco
import torch
from tensordict import TensorDict
from torch import Tensor

from envs import BatchEnv
from envs.environment import Environment
from envs.external.external_env import ExternalEnv
from envs.render import Renderer
from pipeline.evaluate import require_playable
from pipeline.file_names import VIDEO
from pipeline.numbers import describe_return
from saltus.errors import SaltusError

CONTAINERS = (".mp4", ".mkv", ".mov", ".avi")
MAX_STEPS = 100_000
MAX_FPS = 60
DEFAULT_SIZE = (640, 480)
_SIZES = range(64, 4097, 2)  # even: the encoder halves the resolution of colours

Report = Callable[[int], None]
"""Called with the number of steps or frames that are done."""


def _ignore(_done: int) -> None:
    pass


@dataclass(frozen=True)
class Recording:
    """Episodes of one world, one after the other.

    Attributes:
        returns: the return of each episode, so far if it did not end.
        ended: whether the last episode ended.
        length: control steps of all episodes.
        states: states of the physics, one for each frame of a video.
        stride: control steps between two of them.
    """

    returns: list[float]
    ended: bool
    length: int
    states: list[TensorDict]
    stride: int

    def summary(self) -> str:
        """Returns and length in one line of text."""
        steps = f"in {self.length:,} steps"
        if len(self.returns) == 1:
            return (
                f"return {describe_return(self.returns[0])}{'' if self.ended else ' of an unfinished episode'} {steps}"
            )
        whole = self.returns if self.ended else self.returns[:-1]
        mean, episodes = sum(whole) / len(whole), "1 episode" if len(whole) == 1 else f"{len(whole):,} episodes"
        return (
            f"mean return {describe_return(mean)} of {episodes}{'' if self.ended else ' and an unfinished one'} {steps}"
        )


@torch.no_grad()
def record(
    policy: Callable[[Tensor], Tensor],
    env: BatchEnv,
    steps: int | None = None,
    *,
    max_fps: float = MAX_FPS,
    report: Report = _ignore,
) -> Recording:
    """Play in an environment of one world, which is reset.

    Args:
        policy: observation (1, obs_dim) -> action (1, action_dim) in [-1, 1].
        env: an environment with normalized actions.
        steps: number of control steps, in as many episodes as they take. None: one episode.
        max_fps: maximum frames per second. A task with more steps per second has only every k-th state kept.
        report: called after each step.

    Raises:
        SaltusError: the environment's actions are not normalized.
    """
    states: list[TensorDict] = []
    stride = _stride(env, max_fps)
    returns, ended, length = _play(policy, env, steps, lambda: states.append(env.physics.get_state()), stride, report)
    return Recording(returns, ended, length, states, stride)


@torch.no_grad()
def record_video(
    policy: Callable[[Tensor], Tensor],
    env: ExternalEnv,
    path: Path,
    steps: int | None = None,
    *,
    report: Report = _ignore,
) -> Recording:
    """Play in an environment of another library, and write its frames as a real-time video.

    Args:
        policy, steps, report: as for `record`.
        env: an environment of one world, which is reset.
        path: the file, whose ending selects the container (see `check_name`).

    Raises:
        SaltusError: an environment without frames, or the file cannot be written.
    """
    stride = _stride(env, MAX_FPS)
    with _writer(path, 1 / (env.dt * stride)) as writer:
        played = _play(policy, env, steps, lambda: writer.append_data(env.render()), stride, report)
    return Recording(*played, [], stride)


def _stride(env: Environment, max_fps: float) -> int:
    return max(1, round(1 / (env.dt * max_fps)))


def _play(
    policy: Callable[[Tensor], Tensor],
    env: Environment,
    steps: int | None,
    keep: Callable[[], None],
    stride: int,
    report: Report,
) -> tuple[list[float], bool, int]:
    """Play, and call `keep` before every `stride`-th step; return returns, whether the last episode ended, length."""
    require_playable(policy, env)
    observation, returns, ended, length = env.reset(), list[float](), True, 0
    while length < (steps or env.max_episode_steps):
        if ended:
            returns.append(0.0)
        if length % stride == 0:
            keep()
        transition, observation = env.step(policy(observation))
        returns[-1] += float(transition["next", "reward"][0])
        ended = bool(transition["next", "done"][0])
        length += 1
        report(length)
        if ended and steps is None:
            break
    return returns, ended, length


def write_video(
    recording: Recording,
    env: BatchEnv,
    path: Path,
    camera: str | mujoco.MjvCamera | None = None,
    size: tuple[int, int] = DEFAULT_SIZE,
    report: Report = _ignore,
) -> None:
    """Write a recording as a real-time video.

    Args:
        recording: the recording.
        env: the environment in which it was played; its state changes.
        path: the file, whose ending selects the container (see `check_name`).
        camera: a result of `envs.render.choose_camera`; None: its default.
        size: width and height in pixels (see `parse_size`).
        report: called after each frame.

    Raises:
        SaltusError: the file cannot be written.
        RenderError: no OpenGL.
    """
    width, height = size
    fps = 1 / (env.dt * recording.stride)
    with Renderer(env, height, width, camera) as renderer, _writer(path, fps) as writer:
        for done, state in enumerate(recording.states, 1):
            env.physics.set_state(state)
            writer.append_data(renderer.frame(0))
            report(done)


def parse_size(text: str) -> tuple[int, int]:
    """Width and height of a video, from text such as ``"1280x720"``.

    Raises:
        SaltusError: other text, or numbers that no video is made of.
    """
    found = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", text)
    width, height = (int(found[1]), int(found[2])) if found else (0, 0)
    if width not in _SIZES or height not in _SIZES:
        raise SaltusError(
            f"size is {text!r}; it must be WIDTHxHEIGHT in pixels, such as 1280x720: even numbers from {_SIZES[0]} to "
            f"{_SIZES[-1]:,}"
        )
    return width, height


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
        with imageio.get_writer(partial, format="FFMPEG", fps=fps, macro_block_size=2) as writer:
            yield writer
        os.replace(partial, path)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise SaltusError(f"could not write {path}: {reason}. Choose another file with --output") from error
    finally:
        with suppress(OSError):
            partial.unlink()

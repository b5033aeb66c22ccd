"""The file of a video: refused in one line if it cannot be written, complete or not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import mujoco
import numpy as np
import pytest
import torch
from torch import Tensor

import envs
from envs.render import following_camera
from pipeline import video
from saltus import SaltusError


class FakeRenderer:
    """Renders noise without OpenGL; `fail` is called before each frame."""

    fail: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, env: envs.BatchEnv):
        self._random = np.random.default_rng(0)

    def __enter__(self) -> FakeRenderer:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def frame(self, world: int) -> np.ndarray:
        FakeRenderer.fail()
        return self._random.integers(0, 255, (64, 64, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def without_opengl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "Renderer", FakeRenderer)


def record(path: Path) -> tuple[float, int]:
    def idle(observation: Tensor) -> Tensor:
        return torch.zeros(len(observation), 1)

    env = envs.make("InvertedPendulum-v5", 1, max_episode_steps=5)
    episode = video.play_episode(idle, env)
    video.write_video(episode, env, path)
    return episode.total, episode.length


@pytest.mark.parametrize("name", ["play.mp4", "a/new/folder/play.mkv", "PLAY.MP4"])
def test_video_is_written(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    assert record(path) == (5.0, 5)
    assert len(imageio.mimread(path, memtest=False)) == 5
    assert [found.name for found in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("play.txt", r"play\.txt is no name of a video: it must end in \.mp4, \.mkv, \.mov or \.avi"),
        ("play", r"play is no name of a video"),
        ("folder", r"folder is a folder: name the file, such as .*folder/play\.mp4"),
        ("folder.mp4", r"folder\.mp4 is a folder"),
    ],
)
def test_name_that_is_no_videos_is_refused(name: str, message: str, tmp_path: Path) -> None:
    for folder in ("folder", "folder.mp4"):
        (tmp_path / folder).mkdir()
    with pytest.raises(SaltusError, match=message):
        video.check_name(tmp_path / name)


def test_frames_show_the_states_of_the_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, played = [], []
    env = envs.make("InvertedPendulum-v5", 1, max_episode_steps=6)
    monkeypatch.setattr(FakeRenderer, "fail", staticmethod(lambda: shown.append(env.physics.mj_data(0).qpos.tolist())))

    def push(observation: Tensor) -> Tensor:
        played.append(env.physics.mj_data(0).qpos.tolist())
        return torch.full((len(observation), 1), 0.1)

    episode = video.play_episode(push, env, max_fps=1 / (2 * env.task.dt))
    video.write_video(episode, env, tmp_path / "play.mp4")
    assert shown == played[::2]
    assert shown[0] != shown[1] != shown[2]


def test_file_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", fail)
    with pytest.raises(
        SaltusError, match=r"^could not write .*play\.mp4: .*Permission denied\. Choose another file with --output$"
    ):
        record(tmp_path / "play.mp4")


def test_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaltusError, match=r"^could not write .*File exists.*--output$"):
        record(tmp_path / "file" / "play.mp4")


def test_video_that_is_interrupted_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device\n\nFFMPEG COMMAND: and a page of text")

    path = tmp_path / "play.mp4"
    path.write_bytes(b"old")
    monkeypatch.setattr(FakeRenderer, "fail", staticmethod(fail))
    with pytest.raises(SaltusError, match=r"could not write .*: \[Errno 28\] No space left on device\. Choose another"):
        record(path)
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["play.mp4"]


def test_symbolic_link_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"mine")
    (tmp_path / "play.mp4").symlink_to(tmp_path / "target")
    record(tmp_path / "play.mp4")
    assert (tmp_path / "target").read_bytes() == b"mine"


ROBOT = """
<mujoco>
  <worldbody>
    <geom type="plane" size="50 50 1"/>
    <body name="goal" mocap="true" pos="0 0.5 0"><geom size="0.1"/></body>
    <body name="mount" pos="3 0 0"><geom size="0.1"/>
      <body name="arm"><joint axis="0 1 0"/><geom type="capsule" fromto="0 0 0 0 0 1" size="0.1"/></body>
    </body>
  </worldbody>
</mujoco>
"""


def test_camera_follows_the_first_body_with_a_joint_and_shows_all_that_move() -> None:
    model = mujoco.MjModel.from_xml_string(ROBOT)
    camera = following_camera(model)
    assert camera.type == mujoco.mjtCamera.mjCAMERA_TRACKING
    assert model.body(camera.trackbodyid).name == "arm"
    distance_of_the_goal = float(np.hypot(3, 0.5)) + 0.1
    assert camera.distance == pytest.approx(3 * distance_of_the_goal)


def test_camera_of_a_model_in_which_nothing_moves_is_free() -> None:
    model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
    assert following_camera(model).type == mujoco.mjtCamera.mjCAMERA_FREE

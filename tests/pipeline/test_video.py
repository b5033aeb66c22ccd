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
from envs.render import choose_camera, following_camera
from pipeline import video
from saltus import SaltusError


class FakeRenderer:
    """Renders noise without OpenGL; `fail` is called before each frame."""

    fail: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, env: envs.BatchEnv, height: int, width: int, camera: Any):
        self._random, self._size = np.random.default_rng(0), (height, width, 3)

    def __enter__(self) -> FakeRenderer:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def frame(self, world: int) -> np.ndarray:
        FakeRenderer.fail()
        return self._random.integers(0, 255, self._size, dtype=np.uint8)


@pytest.fixture(autouse=True)
def without_opengl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "Renderer", FakeRenderer)


def idle(observation: Tensor) -> Tensor:
    return torch.zeros(len(observation), 1)


def record(path: Path) -> tuple[list[float], int]:
    env = envs.make("InvertedPendulum-v5", 1, max_episode_steps=5)
    recording = video.record(idle, env)
    video.write_video(recording, env, path, size=(64, 64))
    return recording.returns, recording.length


@pytest.mark.parametrize("name", ["play.mp4", "a/new/folder/play.mkv", "PLAY.MP4"])
def test_video_is_written(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    assert record(path) == ([5.0], 5)
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

    recording = video.record(push, env, max_fps=1 / (2 * env.task.dt))
    video.write_video(recording, env, tmp_path / "play.mp4", size=(64, 64))
    assert shown == played[::2]
    assert shown[0] != shown[1] != shown[2]


@pytest.mark.parametrize(
    ("steps", "returns", "ended", "summary"),
    [
        (None, [5.0], True, "return 5.0 in 5 steps"),
        (3, [3.0], False, "return 3.0 of an unfinished episode in 3 steps"),
        (5, [5.0], True, "return 5.0 in 5 steps"),
        (7, [5.0, 2.0], False, "mean return 5.0 of 1 episode and an unfinished one in 7 steps"),
        (10, [5.0, 5.0], True, "mean return 5.0 of 2 episodes in 10 steps"),
        (1012, [5.0] * 202 + [2.0], False, "mean return 5.0 of 202 episodes and an unfinished one in 1,012 steps"),
    ],
)
def test_recording_has_the_steps_asked_for(
    steps: int | None, returns: list[float], ended: bool, summary: str, tmp_path: Path
) -> None:
    env, reported = envs.make("InvertedPendulum-v5", 1, max_episode_steps=5), list[int]()
    recording = video.record(idle, env, steps, report=reported.append)
    assert (recording.returns, recording.ended, recording.length) == (returns, ended, steps or 5)
    assert recording.summary() == summary
    assert len(recording.states) == recording.length
    assert reported == list(range(1, recording.length + 1))


def test_episodes_of_a_recording_are_those_that_the_environment_plays(tmp_path: Path) -> None:
    env, again = (envs.make("InvertedPendulum-v5", 1, max_episode_steps=5, seed=3) for _ in range(2))
    recording = video.record(idle, env, 12)
    again.reset()
    for state in recording.states:
        assert torch.equal(state["integration"], again.physics.get_state()["integration"])
        again.step(torch.zeros(1, 1))


@pytest.mark.parametrize("size", [(64, 128), (638, 362)])
def test_video_has_the_size_asked_for(size: tuple[int, int], tmp_path: Path) -> None:
    env, reported = envs.make("InvertedPendulum-v5", 1), list[int]()
    recording = video.record(idle, env, 3)
    video.write_video(recording, env, tmp_path / "play.mp4", size=size, report=reported.append)
    assert imageio.mimread(tmp_path / "play.mp4", memtest=False)[0].shape == (size[1], size[0], 3)
    assert reported == [1, 2, 3]


@pytest.mark.parametrize(("text", "size"), [("640x480", (640, 480)), ("64x4096", (64, 4096))])
def test_size_is_parsed(text: str, size: tuple[int, int]) -> None:
    assert video.parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "640", "640x", "641x480", "640x481", "62x64", "64x4098", "640X480", "-640x480", "6.4e2x480", "9" * 99],
)
def test_size_that_no_video_has_is_refused(text: str) -> None:
    with pytest.raises(SaltusError) as error:
        video.parse_size(text)
    expected = "it must be WIDTHxHEIGHT in pixels, such as 1280x720: even numbers from 64 to 4,096"
    assert str(error.value) == f"size is {text!r}; {expected}"


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


CAMERAS = ROBOT.replace("<geom type=", '<camera name="side"/><camera/><camera name="top"/><geom type=', 1)


@pytest.mark.parametrize(
    ("cameras", "name", "chosen"),
    [
        (CAMERAS, "top", "top"),
        (CAMERAS, None, "following"),
        (CAMERAS, "follow", "following"),
        (CAMERAS.replace("top", "track"), None, "track"),
        (CAMERAS.replace("top", "track"), "follow", "following"),
        (CAMERAS.replace("top", "follow"), "follow", "follow"),
    ],
)
def test_camera_is_the_one_asked_for(cameras: str, name: str | None, chosen: str) -> None:
    camera = choose_camera(mujoco.MjModel.from_xml_string(cameras), name)
    assert (camera if isinstance(camera, str) else "following") == chosen


@pytest.mark.parametrize(
    ("model", "known"),
    [(CAMERAS, "its cameras are side, top"), (ROBOT, "it has no camera with a name")],
)
@pytest.mark.parametrize("name", ["front", ""])
def test_unknown_camera_is_refused_with_those_that_exist(model: str, known: str, name: str) -> None:
    with pytest.raises(SaltusError) as error:
        choose_camera(mujoco.MjModel.from_xml_string(model), name)
    expected = f"{known}; 'follow' is a camera that follows the first body that moves"
    assert str(error.value) == f"the model has no camera {name!r}: {expected}"


def test_camera_of_a_model_in_which_nothing_moves_is_free() -> None:
    model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
    assert following_camera(model).type == mujoco.mjtCamera.mjCAMERA_FREE

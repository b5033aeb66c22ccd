"""`saltus evaluate` and `saltus play`: policies, results, videos."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import mujoco
import pytest
from cli_helpers import Command, assert_refused
from pipeline_helpers import finish, saltus, small_arguments

from envs import BatchEnv
from envs.render import RenderError
from pipeline import files, video
from pipeline.policy import Policy

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def test_evaluate_plays_the_episodes_asked_for_and_is_deterministic(command: Command, run_dir: Path) -> None:
    found = []
    for seed in (0, 0, 1):
        outcome = command("evaluate", run_dir, "--episodes", 7, "--seed", seed)
        assert outcome.code == 0
        found.append(json.loads((run_dir / "evaluation.json").read_text()))
        assert f"{found[-1]['mean']:.1f}" in outcome.out
    first, same, other = found
    assert len(first["returns"]) == len(first["lengths"]) == 7
    assert first["mean"] == pytest.approx(sum(first["returns"]) / 7)
    assert first["interval_95"][0] <= first["mean"] <= first["interval_95"][1]
    assert (first["task"], first["env_steps"], first["failed"]) == ("Hopper-v5", 200, 0)
    assert first == same
    assert first["returns"] != other["returns"]


CHOICES = [((), "best"), (("--policy", "best"), "best"), (("--policy", "last"), "last")]


@pytest.mark.parametrize(("arguments", "expected"), CHOICES)
def test_evaluate_uses_the_policy_asked_for(
    command: Command, run_dir: Path, arguments: tuple[str, ...], expected: str
) -> None:
    outcome = command("evaluate", run_dir, "--episodes", 2, *arguments)
    assert f"Hopper-v5, {expected} policy (after 200 env steps): return" in outcome.out
    file = run_dir / ("evaluation-last.json" if expected == "last" else "evaluation.json")
    assert json.loads(file.read_text())["policy"] == expected
    assert outcome.out.splitlines()[-1] == str(file)


@pytest.mark.parametrize(("arguments", "expected"), CHOICES)
@pytest.mark.parametrize("output", [None, "videos/hopper.mp4"])
def test_play_uses_the_policy_and_the_file_asked_for(
    command: Command,
    run_dir: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    expected: str,
    output: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = []

    def record(policy: Policy, env: BatchEnv, steps: int | None, **_: Any) -> video.Recording:
        recorded.append((policy.which, env.num_envs, steps))
        return video.Recording([12.3], True, 4, [], 1)

    monkeypatch.setattr(video, "record", record)
    monkeypatch.setattr(video, "write_video", lambda _recording, _env, path, *_: recorded.append(path))
    monkeypatch.setenv("MUJOCO_GL", "egl")
    flags = () if output is None else ("--output", tmp_path / output)
    outcome = command("play", run_dir, *arguments, *flags)
    path = run_dir / "play.mp4" if output is None else tmp_path / output
    assert recorded == [(expected, 1, None), path]
    assert f"Hopper-v5, {expected} policy (after 200 env steps): return 12.3 in 4 steps (0.0 s)" in outcome.out
    assert str(path) in outcome.out


def test_home_is_expanded_in_the_path_of_a_video(
    command: Command, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    monkeypatch.setattr(video, "record", lambda *_, **__: video.Recording([1.0], True, 1, [], 1))
    monkeypatch.setattr(video, "write_video", lambda _recording, _env, path, *_: written.append(path))
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command("play", run_dir, "--output=~/x.mp4").code == 0
    assert written == [tmp_path / "x.mp4"]


@pytest.mark.parametrize("name", ["evaluate", "play", "export"])
def test_unknown_policy_is_refused(command: Command, run_dir: Path, name: str) -> None:
    assert command(name, run_dir, "--policy", "first").code == 2


def test_evaluate_refuses_zero_episodes(command: Command, run_dir: Path) -> None:
    assert_refused(command("evaluate", run_dir, "--episodes", 0), "episodes is 0; it must be at least 1")


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("evaluate", ["--episodes", 10**12], f"episodes is {10**12}; it must be at least 1 and at most 100,000"),
        ("evaluate", ["--episodes", -1], "episodes is -1; it must be at least 1"),
        ("evaluate", ["--seed", -1], "seed is -1; it must be at least 0"),
        ("evaluate", ["--seed", 2**63], f"seed is {2**63}; it must be at least 0 and at most"),
        ("gradients", ["--states", 1], "states is 1; it must be at least 2 and at most 65,536"),
        ("gradients", ["--estimates", 1001], "estimates is 1001; it must be at least 2 and at most 1,000"),
        ("gradients", ["--reference", 0], "reference is 0; it must be at least 1"),
        ("gradients", ["--output", "curve.pdf"], "--output curve.pdf: the name must end in .png"),
        ("play", ["--seed", -1], "seed is -1; it must be at least 0"),
        ("play", ["--steps", 0], "steps is 0; it must be at least 1"),
        ("play", ["--steps", 10**6], "steps is 1000000; it must be at least 1 and at most 100,000"),
        ("play", ["--size", "641x480"], "size is '641x480'; it must be WIDTHxHEIGHT in pixels"),
        ("play", ["--camera", "front"], "the model has no camera 'front': its cameras are track; 'follow' is"),
    ],
)
def test_numbers_beyond_sense_are_refused(
    command: Command, run_dir: Path, name: str, flags: list[object], message: str
) -> None:
    assert_refused(command(name, run_dir, *flags), message)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_evaluate_prints_its_result_where_it_cannot_write(
    command: Command, run_dir: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = OSError(number, os.strerror(number))
    monkeypatch.setattr(files, "write", lambda *_: (_ for _ in ()).throw(error))
    outcome = command("evaluate", run_dir, "--episodes", 2)
    assert "best policy (after 200 env steps): return" in outcome.out
    message = f"could not write {run_dir}/evaluation.json: {os.strerror(number)}. The result is printed above"
    assert_refused(outcome, message)


@pytest.mark.parametrize("fails", ["open", "folder"])
def test_play_prints_its_result_where_it_cannot_write(
    command: Command, run_dir: Path, tmp_path: Path, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_opengl(*_: object) -> None:
        raise RenderError("no OpenGL to render with")

    monkeypatch.setattr(video, "Renderer", no_opengl if fails == "open" else lambda *_: nullcontext())
    monkeypatch.setenv("MUJOCO_GL", "egl")
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "play.mp4"
    outcome = command("play", run_dir, "--output", path)
    assert "best policy (after 200 env steps): return" in outcome.out
    assert str(path) not in outcome.out
    assert_refused(outcome, "no OpenGL" if fails == "open" else f"could not write {path}: ")


def test_play_refuses_a_name_that_is_no_videos_at_once(command: Command, run_dir: Path) -> None:
    outcome = command("play", run_dir, "--output", "play.txt")
    assert_refused(outcome, "play.txt is no name of a video")
    assert outcome.out == ""


def test_play_records_as_asked(command: Command, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Any] = []
    monkeypatch.setattr(video, "write_video", lambda recording, _env, _path, *rest: written.extend([recording, *rest]))
    monkeypatch.setenv("MUJOCO_GL", "egl")
    outcome = command("play", run_dir, "--steps", 30, "--camera", "track", "--size", "320x200")
    recording, camera, size, _ = written
    assert (recording.length, camera, size) == (30, "track", (320, 200))
    assert f"best policy (after 200 env steps): {recording.summary()} (0.2 s)" in outcome.out
    assert command("play", run_dir, "--camera", "follow").code == 0
    assert written[5].type == mujoco.mjtCamera.mjCAMERA_TRACKING


def has_opengl() -> bool:
    """Whether MuJoCo finds an OpenGL for machines without a display."""
    code = "import mujoco; mujoco.GLContext(64, 64).make_current()"
    return any(
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "MUJOCO_GL": name}, capture_output=True, check=False
        ).returncode == 0
        for name in ("egl", "osmesa")
    )  # fmt: skip


@pytest.mark.slow
def test_play_writes_a_video_of_an_own_task(command: Command, swinger: str, tmp_path: Path) -> None:
    if not has_opengl():
        pytest.skip("no OpenGL")
    assert command("train", swinger, *small_arguments(total_env_steps=60), "--run-dir", "run").code == 0
    environment = {name: "" for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")}
    path = tmp_path / "videos" / "swinger.mp4"
    output = finish(saltus("play", tmp_path / "run", "--output", path, cwd=tmp_path / "mine", **environment))
    assert "Swinger, best policy (after 60 env steps): return" in output
    frames = imageio.mimread(path, memtest=False)
    assert len(frames) == 10, "every second of 20 steps of 0.01 s, for at most 60 frames per second"
    with imageio.get_reader(path) as reader:
        assert reader.get_meta_data()["fps"] == pytest.approx(50)
    assert all(frame.std() > 1 for frame in frames)
    assert (frames[0].astype(float) - frames[-1]).std() > 0.1, "the world does not move"


@pytest.mark.slow
def test_play_without_opengl_says_what_to_install(run_dir: Path) -> None:
    process = saltus("play", run_dir, MUJOCO_GL="disable")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "apt install libegl1" in output
    assert "apt install libosmesa6" in output
    assert "Traceback" not in output
    assert not (run_dir / "play.mp4").exists()
    result, error = output.strip().splitlines()
    assert "best policy (after 200 env steps): return" in result
    assert error.startswith("saltus: no OpenGL")

"""The interception sees a process's file operations in time to prevent them."""

from __future__ import annotations

import errno
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fault_harness import Fault, Moment, fail, kill_before, no_fault, supervise

START = """
import os, shutil, socket, sys
sys.path.insert(0, {folder!r})
from file_operations import intercept
listener = intercept()
socket.send_fds(socket.socket(fileno={channel}), [b"started"], [listener])
os.chdir({run_dir!r})
"""


def run(code: str, run_dir: Path, fault: Fault) -> tuple[int, list[str]]:
    """Run Python code in `run_dir`; its exit status and the operations in `run_dir`."""
    channel, other = socket.socketpair()
    start = START.format(folder=str(Path(__file__).parents[1]), channel=other.fileno(), run_dir=str(run_dir))
    with channel, subprocess.Popen([sys.executable, "-c", start + code], pass_fds=[other.fileno()]) as process:
        other.close()
        _, listeners, *_ = socket.recv_fds(channel, 100, 1)
        if not listeners:
            pytest.skip("no user notifications of seccomp")
        moments = supervise(listeners[0], process.pid, run_dir, fault, time.monotonic() + 30)
    return process.returncode, [moment.operation for moment in moments]


@pytest.mark.parametrize(
    ("code", "operations"),
    [
        ("os.open('new', os.O_WRONLY | os.O_CREAT)", ["open new"]),
        ("os.open('folder/../old', os.O_RDONLY)", ["read old"]),
        ("os.write(os.open('old', os.O_WRONLY), b'x')", ["open old", "write old"]),
        ("os.writev(os.open('old', os.O_WRONLY), [b'x'])", ["open old", "write old"]),
        ("os.truncate('old', 1)", ["truncate old"]),
        ("open('old', 'r+').truncate(1)", ["open old", "truncate old"]),
        ("os.fsync(os.open('old', os.O_RDWR))", ["open old", "fsync old"]),
        ("os.replace('old', 'new')", ["rename old"]),
        ("os.rename('old', 'x', src_dir_fd=os.open('.', 0))", ["read .", "rename old"]),
        ("os.unlink('old')", ["unlink old"]),
        ("os.mkdir('folder/b22')", ["mkdir folder/bN"]),
        ("os.rmdir('folder')", ["rmdir folder"]),
        ("os.link('old', 'new')", ["link old"]),
        ("os.symlink('old', 'new')", ["symlink new"]),
        ("import fcntl; fcntl.flock(os.open('old', os.O_WRONLY), fcntl.LOCK_EX)", ["open old", "flock old"]),
    ],
)
def test_operations_are_seen_and_prevented(tmp_path: Path, code: str, operations: list[str]) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "old").write_text("old")
    last = Moment(operations[-1])
    before = content(tmp_path)
    assert run(code, tmp_path, kill_before(last)) == (-signal.SIGKILL, operations)
    assert content(tmp_path) == before
    status_is_errno = f"try:\n  {code}\nexcept OSError as error: sys.exit(error.errno)"
    assert run(status_is_errno, tmp_path, fail(errno.ENOSPC, last.operation)) == (errno.ENOSPC, operations)
    assert content(tmp_path) == before
    assert run(code, tmp_path, no_fault) == (0, operations)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def test_operations_elsewhere_are_not_reported(tmp_path: Path) -> None:
    assert run("open('/dev/null', 'w').write('x')", tmp_path, fail(errno.ENOSPC, "")) == (0, [])

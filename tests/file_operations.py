"""Interception of a process's file operations: each waits for an answer before the kernel executes it.

Uses seccomp's user notifications (seccomp_unotify(2)), which cover every library in the process. Needs Linux 5.19 or
newer on x86-64.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

PR_SET_NO_NEW_PRIVS = 38
SYS_SECCOMP, SECCOMP_SET_MODE_FILTER = 317, 1
NEW_LISTENER, WAIT_KILLABLE_RECV = 1 << 3, 1 << 5  # the latter: other signals than SIGKILL wait for the answer
NOTIFICATION, ANSWER = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI")
IOCTL_RECEIVE, IOCTL_SEND = 0xC0502100, 0xC0182101
EXECUTE = 1  # flag of an answer: the kernel goes on with the operation
AUDIT_ARCH_X86_64 = 0xC000003E
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
RET_ALLOW, RET_NOTIFY = 0x7FFF0000, 0x7FC00000
OFFSET_NUMBER, OFFSET_ARCHITECTURE = 0, 4
AT_FDCWD = -100


class SystemCall(NamedTuple):
    """A system call that works on a file.

    Attributes:
        name: what it does; variants of a call share it.
        path: index of the argument that is a path, or None.
        descriptor: index of the argument that is a file descriptor, of the file or of the path's folder, or None.
    """

    name: str
    path: int | None
    descriptor: int | None


SYSTEM_CALLS = {
    1: SystemCall("write", None, 0),
    18: SystemCall("write", None, 0),  # pwrite64
    20: SystemCall("write", None, 0),  # writev
    40: SystemCall("write", None, 0),  # sendfile
    326: SystemCall("write", None, 2),  # copy_file_range
    2: SystemCall("open", 0, None),
    257: SystemCall("open", 1, 0),  # openat
    73: SystemCall("flock", None, 0),
    74: SystemCall("fsync", None, 0),
    75: SystemCall("fsync", None, 0),  # fdatasync
    76: SystemCall("truncate", 0, None),
    77: SystemCall("truncate", None, 0),  # ftruncate
    82: SystemCall("rename", 0, None),
    264: SystemCall("rename", 1, 0),  # renameat
    316: SystemCall("rename", 1, 0),  # renameat2
    83: SystemCall("mkdir", 0, None),
    258: SystemCall("mkdir", 1, 0),  # mkdirat
    84: SystemCall("rmdir", 0, None),
    86: SystemCall("link", 0, None),
    265: SystemCall("link", 1, 0),  # linkat
    87: SystemCall("unlink", 0, None),
    263: SystemCall("unlink", 1, 0),  # unlinkat
    88: SystemCall("symlink", 1, None),
}


@dataclass(frozen=True)
class Operation:
    """A file operation that waits for an answer.

    Attributes:
        name: a name of `SYSTEM_CALLS`; "read" is the opening of a file for reading.
        path: the absolute path.
        pid: the thread.
        key: the kernel's number of the notification.
    """

    name: str
    path: Path
    pid: int
    key: int


class _Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("value", ctypes.c_uint32)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction))]


def intercept() -> int:
    """Make this process's file operations wait; return the descriptor of a `Listener`.

    Raises:
        OSError: the system has no user notifications.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    instructions = list(_filter(SYSTEM_CALLS))
    program = _Program(len(instructions), (_Instruction * len(instructions))(*instructions))
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    flags = NEW_LISTENER | WAIT_KILLABLE_RECV
    descriptor = libc.syscall(SYS_SECCOMP, SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(program))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "no user notifications of seccomp")
    return descriptor


def _filter(numbers: Iterable[int]) -> Iterable[_Instruction]:
    """The filter of system calls, in BPF."""
    yield _Instruction(LOAD, 0, 0, OFFSET_ARCHITECTURE)
    yield _Instruction(JUMP_IF_EQUAL, 1, 0, AUDIT_ARCH_X86_64)
    yield _Instruction(RETURN, 0, 0, RET_ALLOW)
    yield _Instruction(LOAD, 0, 0, OFFSET_NUMBER)
    for number in numbers:
        yield _Instruction(JUMP_IF_EQUAL, 0, 1, number)
        yield _Instruction(RETURN, 0, 0, RET_NOTIFY)
    yield _Instruction(RETURN, 0, 0, RET_ALLOW)


class Listener:
    """Receives the operations of a process that called `intercept`, and answers them."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def receive(self, deadline: float) -> Operation | None:
        """The next operation, or None after the process has ended.

        Raises:
            TimeoutError: nothing happened until `deadline` (as `time.monotonic`).
        """
        while True:
            events = self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not events:
                raise TimeoutError
            if not events[0][1] & select.POLLIN:
                return None
            with suppress(FileNotFoundError, ProcessLookupError):  # the process was killed meanwhile
                return self._next()

    def _next(self) -> Operation:
        buffer = bytearray(NOTIFICATION.size)
        fcntl.ioctl(self._descriptor, IOCTL_RECEIVE, buffer)
        key, pid, _, number, _, _, *arguments = NOTIFICATION.unpack(buffer)
        call = SYSTEM_CALLS[number]
        name = call.name
        if name == "open":
            flags = arguments[call.path + 1]
            name = "open" if flags & (os.O_WRONLY | os.O_RDWR) else "read"
        return Operation(name, _path(call, arguments, pid), pid, key)

    def answer(self, operation: Operation, error: int) -> None:
        """Execute the operation if `error` is 0, else let it fail with this errno."""
        with suppress(FileNotFoundError):  # the process was killed meanwhile
            fcntl.ioctl(self._descriptor, IOCTL_SEND, ANSWER.pack(operation.key, 0, -error, 0 if error else EXECUTE))

    def close(self) -> None:
        os.close(self._descriptor)


def _path(call: SystemCall, arguments: list[int], pid: int) -> Path:
    """The absolute path of a system call's file."""
    base = Path(f"/proc/{pid}/cwd")
    if call.descriptor is not None:
        descriptor = ctypes.c_int32(arguments[call.descriptor]).value
        if descriptor != AT_FDCWD:
            base = Path(f"/proc/{pid}/fd/{descriptor}")
    try:
        folder = os.readlink(base)
    except FileNotFoundError:  # a descriptor that is not open
        folder = "/"
    name = "" if call.path is None else _string(pid, arguments[call.path])
    return Path(os.path.normpath(os.path.join(folder, name)))


def _string(pid: int, address: int) -> str:
    """The string at an address of another process."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return os.fsdecode(memory.read(4096).partition(b"\0")[0])
